"""GEPA (Agrawal et al. 2025, arXiv 2507.19457): instructions improved by reflecting on what went wrong."""

from typing import Any, Literal

import dspy
from dspy.teleprompt.gepa.gepa import AUTO_RUN_SETTINGS
from pydantic import Field, model_validator

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._base import BaseOptimizer, OptimizerSettings, WorkEstimate
from agentcore.dspy_optimization.optimizers._dspy import compile_in_thread
from agentcore.dspy_optimization.optimizers._task import SearchTask


class GEPASettings(OptimizerSettings):
    """DSPy's own names and defaults."""

    auto: Literal["light", "medium", "heavy"] | None = "light"
    """How much to search; None uses `max_full_evals` or `max_metric_calls` instead."""
    max_full_evals: int | None = Field(default=None, ge=1)
    max_metric_calls: int | None = Field(default=None, ge=1)
    reflection_minibatch_size: int = Field(default=3, ge=1)
    candidate_selection_strategy: Literal["pareto", "current_best"] = "pareto"
    use_merge: bool = True
    max_merge_invocations: int = Field(default=5, ge=0)

    @model_validator(mode="after")
    def _one_way_to_say_how_much(self) -> "GEPASettings":
        limits = [self.auto, self.max_full_evals, self.max_metric_calls]
        if sum(value is not None for value in limits) != 1:
            raise ValueError(
                "set exactly one of auto, max_full_evals and max_metric_calls (the last two need auto=None)"
            )
        return self


class GEPA(BaseOptimizer[GEPASettings]):
    """DSPy's GEPA. Works best with a metric that returns `dspy.Prediction(score=…, feedback=…)`."""

    name = "gepa"
    settings_type = GEPASettings

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> WorkEstimate:
        settings = self._settings
        if settings.auto is not None:
            # DSPy's own formula, which needs neither metric nor model.
            sized = dspy.GEPA.auto_budget
            budget = sized(None, predictors, AUTO_RUN_SETTINGS[settings.auto]["n"], len(validation))
        elif settings.max_full_evals is not None:
            budget = settings.max_full_evals * (len(train) + len(validation))
        else:
            budget = settings.max_metric_calls or 0
        reflections = budget // (2 * settings.reflection_minibatch_size)
        return WorkEstimate(proposals=reflections, trials=budget + 2 * len(validation), chain=3 * reflections)

    async def optimize(self, task: SearchTask) -> dspy.Module:
        task.space({}, {}, 0)
        await task.score(task.program, task.validation.examples, full=True)

        def metric(
            gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
        ) -> Any:
            if pred is None:
                return dspy.Prediction(score=0.0, feedback="The program failed on this example.")
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
            lambda student: optimizer.compile(
                student, trainset=task.train.dspy(), valset=task.validation.dspy()
            ),
        )
