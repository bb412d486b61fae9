"""COPRO: instructions improved by coordinate ascent, from those tried before and their scores."""

from typing import Any

import dspy
from pydantic import BaseModel, ConfigDict, Field

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._base import Work
from agentcore.dspy_optimization.optimizers._dspy import compile_in_thread, metric_for
from agentcore.dspy_optimization.optimizers._task import SearchTask


class COPROSettings(BaseModel):
    """DSPy's own names and defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    breadth: int = Field(default=10, ge=2)
    depth: int = Field(default=3, ge=1)
    init_temperature: float = Field(default=1.4, ge=0)


class COPRO:
    """DSPy's own; it learns from scores alone, so that all of them are of the validation split."""

    name = "copro"

    def __init__(self, **settings: Any) -> None:
        self._settings = COPROSettings(**settings)

    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> Work:
        settings = self._settings
        rounds = predictors * settings.depth
        candidates = rounds * settings.breadth
        if predictors > 1:  # each round scores those of the rounds before again
            candidates = candidates * (settings.depth + 1) // 2
        return Work(
            proposals=rounds * settings.breadth,
            trials=(2 + candidates) * len(validation),
            chain=candidates * predictors,
        )

    async def optimize(self, task: SearchTask) -> Any:
        settings, validation = self._settings, task.validation
        predictors = len(task.program.predictors())
        task.space({}, {}, 2 + predictors * settings.breadth * settings.depth)
        await task.score(task.program, validation.examples, full=True)
        prompt_lm = task.prompt_lm.copy()
        prompt_lm.inspect_history = lambda *_, **__: None  # COPRO prints it
        optimizer = dspy.COPRO(prompt_model=prompt_lm, metric=metric_for(task), **settings.model_dump())
        evaluation = {"num_threads": task.max_concurrency, "display_progress": False, "display_table": 0}
        return await compile_in_thread(
            task,
            lambda: optimizer.compile(
                task.program.deepcopy(), trainset=validation.dspy(), eval_kwargs=evaluation
            ),
        )
