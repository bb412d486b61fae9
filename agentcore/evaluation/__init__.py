"""Run a program over a dataset: per-example records, metrics, statistics."""

from typing import TYPE_CHECKING, Any

from agentcore.evaluation._compare import (
    Comparison,
    Interval,
    bca_interval,
    compare,
    gain_that_can_show,
    sign_flip_p_value,
    smallest_detectable_gain,
)
from agentcore.evaluation._executor import Executor, Local, Place, Ran, Runner, first_error
from agentcore.evaluation._metric import ExactMatch, Metric, Score, ScoredMetric, exact_match, resolve_metric
from agentcore.evaluation._records import EvaluationReport, ExampleRecord, PerformanceMetrics
from agentcore.evaluation._resolve import resolve_executor
from agentcore.evaluation._run import EvaluationLimits, evaluate

if TYPE_CHECKING:
    from agentcore.evaluation.ray import RayExecutor

__all__ = [
    "Comparison",
    "EvaluationLimits",
    "EvaluationReport",
    "ExactMatch",
    "ExampleRecord",
    "Executor",
    "Interval",
    "Local",
    "Metric",
    "PerformanceMetrics",
    "Place",
    "Ran",
    "RayExecutor",
    "Runner",
    "Score",
    "ScoredMetric",
    "bca_interval",
    "compare",
    "evaluate",
    "exact_match",
    "first_error",
    "gain_that_can_show",
    "resolve_executor",
    "resolve_metric",
    "sign_flip_p_value",
    "smallest_detectable_gain",
]


def __getattr__(name: str) -> Any:
    if name == "RayExecutor":  # Ray is an extra
        from agentcore.evaluation.ray import RayExecutor

        return RayExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
