"""Creates optimizers by name, and combines several in one search."""

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._base import Optimizer, WorkEstimate
from agentcore.dspy_optimization.optimizers._task import SearchTask
from agentcore.errors import ConfigurationError
from agentcore.settings import explain, nearest

if TYPE_CHECKING:
    import dspy

GROUP = "agentcore.optimizers"


def available_optimizers() -> list[str]:
    """Names of the registered optimizers."""
    return sorted(entry_points(group=GROUP).names)


def make_optimizer(name: str, settings: Mapping[str, Any] | None = None) -> Optimizer:
    """Create the optimizer called `name` with these settings.

    Raises:
        ConfigurationError: no such optimizer, settings that it doesn't take, or a class that is not an
            `Optimizer`.
    """
    found = entry_points(group=GROUP, name=name)
    if not found:
        known = available_optimizers()
        raise ConfigurationError(
            f"no optimizer {name!r}{nearest(name, known)}: use one of {', '.join(known)}"
        )
    kind = next(iter(found)).load()
    try:
        optimizer = kind(**(settings or {}))
    except ValidationError as error:
        taken = list(getattr(getattr(kind, "settings_type", None), "model_fields", ()))
        raise ConfigurationError(f"optimizer {name}: {explain(error, taken)}") from None
    except TypeError as error:
        raise ConfigurationError(f"optimizer {name}: {error}") from None
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(
            f"optimizer {name}: {type(optimizer).__name__} is not an Optimizer. Derive it from "
            "agentcore.dspy_optimization.optimizers.BaseOptimizer"
        )
    return optimizer


class Several:
    """Several optimizers, one after the other, compared on the validation split. They share the results of
    candidates, so that nothing is measured twice."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)

    @property
    def name(self) -> str:
        return "+".join(item.name for item in self.optimizers)

    @property
    def freezes(self) -> bool:
        return all(item.freezes for item in self.optimizers)

    def settings(self) -> dict[str, Any]:
        """The settings of all optimizers, prefixed with their names."""
        return {
            f"{item.name}.{key}": value for item in self.optimizers for key, value in item.settings().items()
        }

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> WorkEstimate:
        """The sum of what the optimizers take."""
        total = WorkEstimate()
        for item in self.optimizers:
            total = total.plus(item.work(train, validation, predictors))
        return total

    async def optimize(self, task: SearchTask) -> "dspy.Module":
        """Run the optimizers one after the other; the best on validation wins."""
        found: dict[str, dict[str, float]] = {}
        meter, clock = task.log.progress.meter, task.log.clock
        for optimizer in self.optimizers:
            before, calls, began = len(task.trials), meter.total.calls, clock.seconds
            await optimizer.optimize(task.part(optimizer.name))
            best = max(
                task.trials[before:],
                key=lambda item: (not item.stopped, item.examples, item.score, -item.number),
            )
            # An optimizer may validate on part of the split: compare the winners on all of it.
            whole = task.validation.examples
            score = await task.score(best.program, whole, full=True)

            async def account(calls: int = calls, began: float = began) -> dict[str, float]:
                return {"lm_calls": meter.total.calls - calls, "seconds": clock.seconds - began}

            # A step, since a resumed run replays what an earlier process has paid for.
            spent = await task.step(f"{optimizer.name}-account", account)
            found[optimizer.name] = {"validation_score": score, **spent}
            task.details["optimizers"] = dict(found)
            task.details["winner"] = max(found, key=lambda name: found[name]["validation_score"])
        assert task.best is not None
        return task.best.program
