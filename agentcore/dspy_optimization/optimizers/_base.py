"""The optimizer interface."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._task import SearchTask

if TYPE_CHECKING:
    import dspy


@dataclass(frozen=True)
class WorkEstimate:
    """Upper bound on the work of a search: program runs, and LM calls of the proposer."""

    bootstrap: int = 0
    """Runs of the teacher."""
    proposals: int = 0
    """LM calls of the proposer."""
    trials: int = 0
    """Runs of candidates."""
    chain: int = 0
    """Length of the longest chain of dependent LM calls."""
    demos: float = 0
    """Approximate number of demonstrations per candidate."""
    unknown: tuple[str, ...] = ()
    """Names of optimizers that can't estimate their work."""

    def plus(self, other: "WorkEstimate") -> "WorkEstimate":
        """Both searches, one after the other."""
        return WorkEstimate(
            self.bootstrap + other.bootstrap,
            self.proposals + other.proposals,
            self.trials + other.trials,
            self.chain + other.chain,
            max(self.demos, other.demos),
            (*self.unknown, *other.unknown),
        )


@runtime_checkable
class Optimizer(Protocol):
    """An optimization algorithm; `BaseOptimizer` has defaults for all but `name` and `optimize`.

    `optimize` reports every scored candidate through `task.score` or `task.report` and returns the program
    to keep. It makes LM calls only under `task.guard`, raises `SearchStopped` once that stops, and gives the
    same candidates for the same task and seed. One instance serves one search at a time.
    """

    @property
    def name(self) -> str: ...

    @property
    def freezes(self) -> bool:
        """Whether it can leave parts of a program unchanged (`task.frozen`)."""
        ...

    def settings(self) -> dict[str, Any]:
        """The algorithm's own settings, JSON values only, as logged with the run."""
        ...

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> WorkEstimate:
        """Upper bound on the work of a search, for an estimate before it starts."""
        ...

    async def optimize(self, task: SearchTask) -> "dspy.Module":
        """Search, and return the program to keep."""
        ...


class OptimizerSettings(BaseModel):
    """Base of an algorithm's settings: immutable, rejects unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=OptimizerSettings)


class BaseOptimizer(Generic[S]):
    """An `Optimizer` with the settings `S`, made from keyword arguments."""

    name: ClassVar[str]
    freezes: ClassVar[bool] = False
    settings_type: ClassVar[type[OptimizerSettings]] = OptimizerSettings

    def __init__(self, **settings: Any) -> None:
        self._settings: S = self.settings_type(**settings)  # type: ignore[assignment]  # the subclass's own

    def settings(self) -> dict[str, Any]:
        """The settings in effect, JSON values only."""
        return self._settings.model_dump()

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> WorkEstimate:
        """What the search takes at most; unknown unless overridden."""
        return WorkEstimate(unknown=(self.name,))
