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
from agentcore.evaluation._executor import Executor, Local, Place, Ran, Runner
from agentcore.evaluation._first_error import first_error
from agentcore.evaluation._metric import ExactMatch, Metric, Score, ScoredMetric, exact_match, resolve_metric
from agentcore.evaluation._records import EvaluationReport, ExampleRecord, PerformanceMetrics
from agentcore.evaluation._run import Limits, evaluate
from agentcore.evaluation._where import resolve_executor

if TYPE_CHECKING:
    from agentcore.evaluation._ray import RayExecutor

__all__ = [
    "Comparison",
    "EvaluationReport",
    "ExactMatch",
    "ExampleRecord",
    "Executor",
    "Interval",
    "Limits",
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
        from agentcore.evaluation._ray import RayExecutor

        return RayExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
