"""Several optimizers in one search: each after the other, compared on the validation split."""

from collections.abc import Sequence
from typing import Any

from agentcore.dspy_optimization.optimizers._base import Optimizer
from agentcore.dspy_optimization.optimizers._task import SearchTask


class Several:
    """What one has measured of a candidate no other asks again."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        self.name = "+".join(item.name for item in self.optimizers)

    def settings(self) -> dict[str, Any]:
        return {
            f"{item.name}.{key}": value for item in self.optimizers for key, value in item.settings().items()
        }

    @property
    def freezes(self) -> bool:
        return all(getattr(item, "freezes", False) for item in self.optimizers)

    async def optimize(self, task: SearchTask) -> Any:
        scores: dict[str, float] = {}
        for optimizer in self.optimizers:
            before = len(task.trials)
            await optimizer.optimize(task.part(optimizer.name))
            own = max(
                task.trials[before:],
                key=lambda item: (not item.stopped, item.examples, item.score, -item.number),
            )
            # An optimizer may validate on a part: compared is what all of them are scored on.
            whole = task.validation.examples
            scores[optimizer.name] = await task.score(own.program, whole, full=True)
            task.details["algorithms"] = {
                "best_validation_score": dict(scores),
                "winner": max(scores, key=lambda name: scores[name]),
            }
        assert task.best is not None
        return task.best.program
