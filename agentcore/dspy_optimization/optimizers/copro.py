"""COPRO: instructions improved by coordinate ascent, from those tried before and their scores."""

import dspy
from pydantic import Field

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._base import BaseOptimizer, OptimizerSettings, WorkEstimate
from agentcore.dspy_optimization.optimizers._dspy import compile_in_thread, metric_for
from agentcore.dspy_optimization.optimizers._task import SearchTask


class COPROSettings(OptimizerSettings):
    """DSPy's own names and defaults."""

    breadth: int = Field(default=10, ge=2)
    depth: int = Field(default=3, ge=1)
    init_temperature: float = Field(default=1.4, ge=0)


class COPRO(BaseOptimizer[COPROSettings]):
    """DSPy's COPRO. It learns only from scores, all on the validation split."""

    name = "copro"
    settings_type = COPROSettings

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> WorkEstimate:
        settings = self._settings
        rounds = predictors * settings.depth
        candidates = rounds * settings.breadth
        if predictors > 1:  # each round scores the candidates of earlier rounds again
            candidates = candidates * (settings.depth + 1) // 2
        return WorkEstimate(
            proposals=rounds * settings.breadth,
            trials=(2 + candidates) * len(validation),
            chain=candidates * predictors,
        )

    async def optimize(self, task: SearchTask) -> dspy.Module:
        settings, validation = self._settings, task.validation
        predictors = len(task.program.predictors())
        task.space({}, {}, 2 + predictors * settings.breadth * settings.depth)
        await task.score(task.program, validation.examples, full=True)
        prompt_lm = task.prompt_lm.copy()
        prompt_lm.inspect_history = lambda *_, **__: None  # COPRO would print it
        optimizer = dspy.COPRO(prompt_model=prompt_lm, metric=metric_for(task), **settings.model_dump())
        evaluation = {"num_threads": task.max_concurrency, "display_progress": False, "display_table": 0}
        return await compile_in_thread(
            task,
            lambda student: optimizer.compile(student, trainset=validation.dspy(), eval_kwargs=evaluation),
        )
