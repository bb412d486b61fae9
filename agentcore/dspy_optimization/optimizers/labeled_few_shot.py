"""Labelled examples as demonstrations: the cheapest improvement."""

import dspy
from pydantic import Field

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._base import BaseOptimizer, OptimizerSettings, WorkEstimate
from agentcore.dspy_optimization.optimizers._demos import keep_models
from agentcore.dspy_optimization.optimizers._racing import Race
from agentcore.dspy_optimization.optimizers._task import SearchTask


class LabeledFewShotSettings(OptimizerSettings):
    k: int = Field(default=16, ge=1)
    """Number of demonstrations."""
    sample: bool = True
    """Whether to draw them at random instead of taking the first ones."""


class LabeledFewShot(BaseOptimizer[LabeledFewShotSettings]):
    """DSPy's `LabeledFewShot`; makes no LM call of its own."""

    name = "labeled_few_shot"
    freezes = True
    settings_type = LabeledFewShotSettings

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> WorkEstimate:
        return WorkEstimate(
            trials=2 * len(validation), chain=predictors, demos=min(self._settings.k, len(train))
        )

    async def optimize(self, task: SearchTask) -> dspy.Module:
        optimizer = dspy.LabeledFewShot(k=self._settings.k)
        labeled = optimizer.compile(
            task.program.deepcopy(), trainset=task.train.dspy(), sample=self._settings.sample
        )
        keep_models(labeled, task.program)
        task.space({}, {}, 2)
        race = Race(task, task.validation.examples, 0)
        entered = await race.enter([task.program, task.restored(labeled)])
        await race.race(entered, len(task.validation))
        for item in entered:
            race.report(item, len(task.validation))
        await task.durable()
        assert task.best is not None
        return task.best.program
