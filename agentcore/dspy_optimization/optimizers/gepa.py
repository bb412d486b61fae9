"""GEPA (Agrawal et al. 2025, arXiv 2507.19457): instructions improved by reflecting on what went wrong."""

from typing import Any, Literal

import dspy
from dspy.teleprompt.gepa.gepa import AUTO_RUN_SETTINGS
from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._base import Work
from agentcore.dspy_optimization.optimizers._dspy import compile_in_thread
from agentcore.dspy_optimization.optimizers._task import SearchTask


class GEPASettings(BaseModel):
    """DSPy's own names and defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auto: Literal["light", "medium", "heavy"] | None = "light"
    """How much to search; None takes `max_full_evals` or `max_metric_calls` instead."""
    max_full_evals: int | None = Field(default=None, ge=1)
    max_metric_calls: int | None = Field(default=None, ge=1)
    reflection_minibatch_size: int = Field(default=3, ge=1)
    candidate_selection_strategy: Literal["pareto", "current_best"] = "pareto"
    use_merge: bool = True
    max_merge_invocations: int = Field(default=5, ge=0)

    @model_validator(mode="after")
    def _one_way_to_say_how_much(self) -> "GEPASettings":
        given = [self.auto, self.max_full_evals, self.max_metric_calls]
        if sum(value is not None for value in given) != 1:
            raise ValueError(
                "give one of auto, max_full_evals and max_metric_calls (the last two need auto=None)"
            )
        return self


class GEPA:
    """DSPy's own. A metric that returns `dspy.Prediction(score=…, feedback=…)` tells it what went wrong."""

    name = "gepa"

    def __init__(self, **settings: Any) -> None:
        self._settings = GEPASettings(**settings)

    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> Work:
        settings = self._settings
        if settings.auto is not None:
            # DSPy's own sum of it, which needs neither metric nor model.
            sized = dspy.GEPA.auto_budget
            most = sized(None, predictors, AUTO_RUN_SETTINGS[settings.auto]["n"], len(validation))
        elif settings.max_full_evals is not None:
            most = settings.max_full_evals * (len(train) + len(validation))
        else:
            most = settings.max_metric_calls or 0
        reflections = most // (2 * settings.reflection_minibatch_size)
        return Work(proposals=reflections, trials=most + 2 * len(validation), chain=3 * reflections)

    async def optimize(self, task: SearchTask) -> Any:
        task.space({}, {}, 0)
        await task.score(task.program, task.validation.examples, full=True)

        def metric(
            gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
        ) -> Any:
            found = task.from_thread(lambda: task.scored(gold, pred, trace, pred_name, pred_trace))
            feedback = found.feedback or f"This trajectory got a score of {found.value:g}."
            return dspy.Prediction(score=found.value, feedback=feedback)

        optimizer = dspy.GEPA(
            metric=metric,
            reflection_lm=task.prompt_lm,
            num_threads=task.max_concurrency,
            seed=task.seed,
            warn_on_score_mismatch=False,
            **self._settings.model_dump(),
        )
        return await compile_in_thread(
            task,
            lambda: optimizer.compile(
                task.program.deepcopy(), trainset=task.train.dspy(), valset=task.validation.dspy()
            ),
        )
