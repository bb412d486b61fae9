"""Agents in operation: evaluation, drift, comparison, request metrics, alerts.

Names load on first use: DSPy and MLflow take seconds to import.
"""

from typing import TYPE_CHECKING

from agentcore._imports import lazy

if TYPE_CHECKING:
    from agentcore.monitoring._agent_tracker import AgentTracker, AsyncAgentTracker
    from agentcore.monitoring._agents import prediction_of
    from agentcore.monitoring._alerts import Alerts, AsyncAlerts
    from agentcore.monitoring._canary import CanaryResult
    from agentcore.monitoring._collector import (
        AsyncMetricsCollector,
        MetricsCollector,
        get_metrics_collector,
        merged_summary,
        recorded_summary,
    )
    from agentcore.monitoring._compare import RunComparison, compare_runs, find_runs
    from agentcore.monitoring._compare_text import (
        comparison_markdown,
        comparison_notes,
        comparison_page,
        comparison_tables,
    )
    from agentcore.monitoring._drift import DriftReport, MetricDrift
    from agentcore.monitoring._evaluation_tracker import (
        AsyncEvaluationTracker,
        EvaluationTracker,
        track_evaluation,
    )
    from agentcore.monitoring._evaluator import AsyncModelEvaluator, ModelEvaluator, detect_drift
    from agentcore.monitoring._fields import FieldDrift, field_drift
    from agentcore.monitoring._generators import GenerationReport
    from agentcore.monitoring._models import FIGURES, EvaluationMetrics
    from agentcore.monitoring._personal import scrubbed, texts_in
    from agentcore.monitoring._plots import plot_trends
    from agentcore.monitoring._recorded import Regression
    from agentcore.monitoring._units import shown

_MODULES = {
    "AgentTracker": "_agent_tracker",
    "Alerts": "_alerts",
    "AsyncAgentTracker": "_agent_tracker",
    "AsyncAlerts": "_alerts",
    "AsyncEvaluationTracker": "_evaluation_tracker",
    "AsyncMetricsCollector": "_collector",
    "AsyncModelEvaluator": "_evaluator",
    "CanaryResult": "_canary",
    "DriftReport": "_drift",
    "EvaluationMetrics": "_models",
    "EvaluationTracker": "_evaluation_tracker",
    "FIGURES": "_models",
    "FieldDrift": "_fields",
    "GenerationReport": "_generators",
    "MetricDrift": "_drift",
    "MetricsCollector": "_collector",
    "ModelEvaluator": "_evaluator",
    "Regression": "_recorded",
    "RunComparison": "_compare",
    "compare_runs": "_compare",
    "comparison_markdown": "_compare_text",
    "comparison_notes": "_compare_text",
    "comparison_page": "_compare_text",
    "comparison_tables": "_compare_text",
    "detect_drift": "_evaluator",
    "field_drift": "_fields",
    "find_runs": "_compare",
    "get_metrics_collector": "_collector",
    "merged_summary": "_collector",
    "plot_trends": "_plots",
    "prediction_of": "_agents",
    "recorded_summary": "_collector",
    "scrubbed": "_personal",
    "shown": "_units",
    "texts_in": "_personal",
    "track_evaluation": "_evaluation_tracker",
}

__all__ = [
    "FIGURES",
    "AgentTracker",
    "Alerts",
    "AsyncAgentTracker",
    "AsyncAlerts",
    "AsyncEvaluationTracker",
    "AsyncMetricsCollector",
    "AsyncModelEvaluator",
    "CanaryResult",
    "DriftReport",
    "EvaluationMetrics",
    "EvaluationTracker",
    "FieldDrift",
    "GenerationReport",
    "MetricDrift",
    "MetricsCollector",
    "ModelEvaluator",
    "Regression",
    "RunComparison",
    "compare_runs",
    "comparison_markdown",
    "comparison_notes",
    "comparison_page",
    "comparison_tables",
    "detect_drift",
    "field_drift",
    "find_runs",
    "get_metrics_collector",
    "merged_summary",
    "plot_trends",
    "prediction_of",
    "recorded_summary",
    "scrubbed",
    "shown",
    "texts_in",
    "track_evaluation",
]

__getattr__ = lazy(__name__, _MODULES)
