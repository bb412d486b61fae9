"""The request for an optimization, and its result."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentcore.evaluation import Comparison, Interval, PerformanceMetrics
from agentcore.lm import Spend

__all__ = [
    "MetricName",
    "OptimizationConstraints",
    "OptimizationObjective",
    "OptimizationRequest",
    "OptimizationResult",
    "OptimizationTarget",
    "PerformanceMetrics",
    "Status",
]

MetricName = Literal["success_rate", "avg_cost", "avg_latency_ms", "quality_score"]
Status = Literal["completed", "failed", "cancelled", "budget_exhausted"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OptimizationTarget(_Strict):
    """What is optimized; both parts name the run and stand on it as tags."""

    type: Literal["agent", "workflow", "component"] = "component"
    id: str = Field(min_length=1)


class OptimizationObjective(_Strict):
    """One figure to improve. More is better for rates and scores, less for cost and latency."""

    metric: MetricName = "quality_score"
    target_value: float | None = None
    """A value to reach; the result says whether it was."""
    weight: float = Field(default=1.0, gt=0)


class OptimizationConstraints(_Strict):
    """Bounds of an optimization."""

    max_optimization_time: float = Field(default=7200, gt=0)
    """Seconds that the search may take; the best candidate so far is then kept."""
    max_lm_calls: int | None = Field(default=None, gt=0)
    """Answered LM calls of the whole run. This cap and the next two are never exceeded: what a call could
    take is reserved before it is made. The search stops in time for the winner to be measured."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Input and output tokens of the whole run."""
    max_cost_usd: float | None = Field(default=None, gt=0)
    """USD of the whole run; every model's price must be known."""
    min_improvement_threshold: float = Field(default=0.05, ge=0)
    """The improvement, a fraction, below which the result says that the gain is not worth it."""
    max_error_rate: float = Field(default=0.1, ge=0, lt=1)
    """Share of examples that may fail before an evaluation is an error."""
    success_threshold: float = Field(default=0.5, gt=0, le=1)
    """The least score of an example that counts as a success."""


class OptimizationRequest(_Strict):
    """What to optimize, for what, how, and within which bounds."""

    target: OptimizationTarget
    objectives: list[OptimizationObjective] = Field(
        default_factory=lambda: [OptimizationObjective()], min_length=1
    )
    algorithms: list[str] = Field(default_factory=lambda: ["miprov2"], min_length=1)
    """Several are run one after the other and compared on the validation split; the winner is measured on
    the test split once."""
    optimizer_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By algorithm: `{"miprov2": {"auto": "medium"}}`."""
    constraints: OptimizationConstraints = Field(default_factory=OptimizationConstraints)
    freeze: list[str] = Field(default_factory=list)
    """What no optimizer may change: a predictor's name, `name.instructions`, `name.demos`, or `instructions`
    or `demos` for those of all predictors."""


class OptimizationResult(BaseModel):
    """What an optimization found. All figures were measured on the test split, which no optimizer saw."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    optimization_id: str
    run_id: str | None
    """MLflow's run id; None with tracking off."""
    status: Status
    """`completed`, or `budget_exhausted` where a limit stopped the search. A failed run raises."""
    baseline_performance: PerformanceMetrics
    """The caller's `baseline_metrics` if given, else `measured_baseline`."""
    measured_baseline: PerformanceMetrics
    optimized_performance: PerformanceMetrics
    improvement_percentage: float
    """A fraction (0.25 means 25%), from the measured baseline; see `improvement`."""
    statistical_significance: float
    """A p-value; see `agentcore.evaluation.compare` for what it does not mean."""
    interval: Interval
    """95% interval of the gain in mean score."""
    smallest_detectable_gain: float
    comparison: Comparison
    meets_threshold: bool
    """Whether the improvement reached `min_improvement_threshold`."""
    targets_met: dict[str, bool]
    """By objective with a `target_value`, whether the optimized program reached it."""
    optimization_details: dict[str, Any]
    spend: Spend
    spend_by_stage: dict[str, Spend]
    warnings: list[str] = Field(default_factory=list)
    program: Any = Field(default=None, exclude=True, repr=False)
    """The optimized `dspy.Module`."""
