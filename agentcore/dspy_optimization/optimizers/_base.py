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


@dataclass(frozen=True)
class Lead:
    """A candidate that was ahead of the fullest scored one when a limit was reached."""

    program: Any
    gain: float
    """In mean score, on the examples that both have answered."""
    examples: int
    over: float
    """The other's mean score on all examples that it has answered."""


@dataclass(frozen=True)
class Work:
    """What a search takes at most, for an estimate: runs of the program, LM calls of the proposer.

    An optimizer that can tell has `work(train, validation, predictors) -> Work`.
    """

    bootstrap: int = 0
    """Runs of the teacher."""
    proposals: int = 0
    """LM calls of the proposer."""
    trials: int = 0
    """Runs of candidates."""
    chain: int = 0
    """LM calls that wait for each other, however many may be in flight."""
    demos: float = 0
    """Demonstrations that a candidate has, about."""

    def plus(self, other: "Work") -> "Work":
        return Work(
            self.bootstrap + other.bootstrap,
            self.proposals + other.proposals,
            self.trials + other.trials,
            self.chain + other.chain,
            max(self.demos, other.demos),
        )


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
