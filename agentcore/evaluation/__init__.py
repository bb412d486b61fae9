"""Run a program over a dataset: per-example records, metrics, statistics."""

from typing import TYPE_CHECKING, Any

from agentcore.evaluation._compare import (
    Claim,
    Comparison,
    Figure,
    claims,
    compare,
    paired,
    score_interval,
    verdict_of,
)
from agentcore.evaluation._executor import (
    Executor,
    Local,
    Place,
    Ran,
    Runner,
    call_program,
    first_error,
    place_of,
)
from agentcore.evaluation._interface import Interface, check_reserved, interface_of
from agentcore.evaluation._match import ExactMatch, equal, exact_match
from agentcore.evaluation._metric import (
    BUILTIN_METRICS,
    Metric,
    Score,
    ScoredMetric,
    resolve_metric,
)
from agentcore.evaluation._power import (
    exact_power,
    examples_needed,
    gain_that_can_show,
    smallest_detectable_gain,
)
from agentcore.evaluation._records import EvaluationReport, ExampleRecord, PerformanceMetrics
from agentcore.evaluation._resolve import resolve_executor
from agentcore.evaluation._run import MAX_LM_FAILURES, EvaluationLimits, evaluate, tolerable
from agentcore.evaluation._statistics import (
    Interval,
    PairedTest,
    Verdict,
    bonett_price,
    cluster_totals,
    exact_test,
    is_binary,
    mean_interval,
    paired_test,
)

if TYPE_CHECKING:
    from agentcore.evaluation.ray import RayExecutor

__all__ = [
    "BUILTIN_METRICS",
    "MAX_LM_FAILURES",
    "Claim",
    "Comparison",
    "EvaluationLimits",
    "EvaluationReport",
    "ExactMatch",
    "ExampleRecord",
    "Executor",
    "Figure",
    "Interface",
    "Interval",
    "Local",
    "Metric",
    "PairedTest",
    "PerformanceMetrics",
    "Place",
    "Ran",
    "RayExecutor",
    "Runner",
    "Score",
    "ScoredMetric",
    "Verdict",
    "bonett_price",
    "call_program",
    "check_reserved",
    "claims",
    "cluster_totals",
    "compare",
    "equal",
    "evaluate",
    "exact_match",
    "exact_power",
    "exact_test",
    "examples_needed",
    "first_error",
    "gain_that_can_show",
    "interface_of",
    "is_binary",
    "mean_interval",
    "paired",
    "paired_test",
    "place_of",
    "resolve_executor",
    "resolve_metric",
    "score_interval",
    "smallest_detectable_gain",
    "tolerable",
    "verdict_of",
]


def __getattr__(name: str) -> Any:
    if name == "RayExecutor":  # Ray is an extra
        from agentcore.evaluation.ray import RayExecutor

        return RayExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
