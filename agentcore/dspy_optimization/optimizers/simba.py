"""SIMBA: demonstrations and rules from the examples on which runs of the program differ most."""

import dspy
from pydantic import Field

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._base import BaseOptimizer, OptimizerSettings, WorkEstimate
from agentcore.dspy_optimization.optimizers._dspy import compile_in_thread, metric_for
from agentcore.dspy_optimization.optimizers._task import SearchTask


class SIMBASettings(OptimizerSettings):
    """DSPy's own names and defaults."""

    bsize: int = Field(default=32, ge=1)
    """Minibatch size; at most the number of training examples."""
    num_candidates: int = Field(default=6, ge=1)
    max_steps: int = Field(default=8, ge=1)
    max_demos: int = Field(default=4, ge=0)


class SIMBA(BaseOptimizer[SIMBASettings]):
    """DSPy's SIMBA; its result is scored on the validation split."""

    name = "simba"
    settings_type = SIMBASettings

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> WorkEstimate:
        settings, size = self._settings, min(self._settings.bsize, len(train))
        last = (settings.num_candidates + 1) * len(train)
        return WorkEstimate(
            proposals=settings.max_steps * settings.num_candidates,
            trials=2 * settings.max_steps * size * settings.num_candidates + last + 2 * len(validation),
            chain=3 * settings.max_steps * predictors,
            demos=settings.max_demos,
        )

    async def optimize(self, task: SearchTask) -> dspy.Module:
        task.space({}, {}, 2)
        await task.score(task.program, task.validation.examples, full=True)
        settings = self._settings
        optimizer = dspy.SIMBA(
            metric=metric_for(task),
            bsize=min(settings.bsize, len(task.train)),
            num_candidates=settings.num_candidates,
            max_steps=settings.max_steps,
            max_demos=settings.max_demos,
            prompt_model=task.prompt_lm,
            num_threads=task.max_concurrency,
        )
        return await compile_in_thread(
            task,
            lambda student: optimizer.compile(student, trainset=task.train.dspy(), seed=task.seed),
        )
