"""What an optimizer has to be."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from agentcore.dspy_optimization.optimizers._task import SearchTask


@dataclass(frozen=True)
class Trial:
    """One scored candidate. Number 0 is the program as given."""

    number: int
    program: Any
    score: float
    """Mean score, 0–1."""
    full: bool
    """Whether all that the search validates on was scored, or a part of it."""
    examples: int
    stopped: bool = False
    """Whether it was given up before the end of its minibatch, since it couldn't win any more."""


@runtime_checkable
class Optimizer(Protocol):
    """An optimization algorithm.

    `optimize` reports every scored candidate through `task.score` or `task.report` and returns the program
    to keep. It makes LM calls only under `task.guard`, raises `SearchStopped` once that stops, and gives the
    same candidates for the same task and seed. One instance serves one search at a time.
    """

    name: str

    def settings(self) -> dict[str, Any]:
        """The algorithm's own settings, JSON values only, as logged with the run."""
        ...

    async def optimize(self, task: "SearchTask") -> Any: ...
