"""Labelled examples as demonstrations: the cheapest improvement, and the one to beat."""

from typing import Any

import dspy
from pydantic import BaseModel, ConfigDict, Field

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._base import Work
from agentcore.dspy_optimization.optimizers._task import SearchTask
from agentcore.dspy_optimization.search import Race


class LabeledFewShotSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(default=16, ge=1)
    """Demonstrations."""
    sample: bool = True
    """Whether they are drawn at random, or are the first."""


class LabeledFewShot:
    """DSPy's `LabeledFewShot`; makes no LM call of its own."""

    name = "labeled_few_shot"
    freezes = True

    def __init__(self, **settings: Any) -> None:
        self._settings = LabeledFewShotSettings(**settings)

    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> Work:
        return Work(trials=2 * len(validation), chain=predictors, demos=min(self._settings.k, len(train)))

    async def optimize(self, task: SearchTask) -> Any:
        optimizer = dspy.LabeledFewShot(k=self._settings.k)
        labeled = optimizer.compile(
            task.program.deepcopy(), trainset=task.train.dspy(), sample=self._settings.sample
        )
        task.space({}, {}, 2)
        race = Race(task, task.validation.examples, 0)
        entered = await race.enter([task.program, task.restored(labeled)])
        await race.race(entered, len(task.validation))
        for item in entered:
            race.report(item, len(task.validation))
        await task.durable()
        assert task.best is not None
        return task.best.program
