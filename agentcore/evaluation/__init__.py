"""Run a program over a dataset: per-example records, metrics, statistics."""

from agentcore.evaluation._compare import (
    Comparison,
    Interval,
    bca_interval,
    compare,
    gain_that_can_show,
    sign_flip_p_value,
    smallest_detectable_gain,
)
from agentcore.evaluation._metric import ExactMatch, Metric, Score, ScoredMetric, exact_match, resolve_metric
from agentcore.evaluation._records import EvaluationReport, ExampleRecord, PerformanceMetrics
from agentcore.evaluation._run import Limits, call_program, evaluate, first_error

__all__ = [
    "Comparison",
    "EvaluationReport",
    "ExactMatch",
    "ExampleRecord",
    "Interval",
    "Limits",
    "Metric",
    "PerformanceMetrics",
    "Score",
    "ScoredMetric",
    "bca_interval",
    "call_program",
    "compare",
    "evaluate",
    "exact_match",
    "first_error",
    "gain_that_can_show",
    "resolve_metric",
    "sign_flip_p_value",
    "smallest_detectable_gain",
]
