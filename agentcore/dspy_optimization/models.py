"""The request for an optimization, and its result."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentcore._naming import run_name
from agentcore.dspy_optimization import _summary
from agentcore.evaluation import Claim, Comparison, Figure, Interval, PerformanceMetrics, Verdict
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

MetricName = Figure
Status = Literal["completed", "failed", "cancelled", "budget_exhausted"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OptimizationTarget(_Strict):
    """What is optimized. Both parts appear in the run's name and tags."""

    type: Literal["agent", "workflow", "component"] = "component"
    id: str = Field(min_length=1)


class OptimizationObjective(_Strict):
    """A metric to improve: higher is better for rates and scores, lower for cost and latency."""

    metric: MetricName = "quality_score"
    target_value: float | None = None
    """Value to reach; the result reports whether it was reached."""
    weight: float = Field(default=1.0, gt=0)


class OptimizationConstraints(_Strict):
    """Limits of an optimization."""

    max_optimization_time: float = Field(default=7200, gt=0)
    """Time limit of the search in seconds; on reaching it, the best candidate so far is kept."""
    max_lm_calls: int | None = Field(default=None, gt=0)
    """Cap on the LM calls of the whole run. This cap and the next two are never exceeded: the most a call
    could cost is reserved before it is made. The search stops early enough to measure the winner."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Cap on the input and output tokens of the whole run."""
    max_cost_usd: float | None = Field(default=None, gt=0)
    """Cap on the cost of the whole run in USD; every model's price must be known."""
    min_improvement_threshold: float = Field(default=0.05, ge=0)
    """Minimum improvement, as a fraction, of a proven gain for `OptimizationResult.meets_threshold` to be
    true."""
    max_error_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of examples that may fail before the baseline's or the winner's evaluation raises. With 1, a
    program whose answers mostly can't be parsed is measured as it is, 0 for each failure; the model itself
    may fail on at most half of the examples."""
    success_threshold: float = Field(default=0.5, gt=0, le=1)
    """Minimum score for an example to count as a success."""


class OptimizationRequest(_Strict):
    """What to optimize, for which objectives, how, and within which limits."""

    target: OptimizationTarget
    objectives: list[OptimizationObjective] = Field(
        default_factory=lambda: [OptimizationObjective()], min_length=1
    )
    algorithms: list[str] = Field(default_factory=lambda: ["miprov2"], min_length=1)
    """Several run one after the other and are compared on the validation split; only the winner is measured
    on the test split."""
    optimizer_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By algorithm: `{"miprov2": {"auto": "medium"}}`."""
    constraints: OptimizationConstraints = Field(default_factory=OptimizationConstraints)
    freeze: list[str] = Field(default_factory=list)
    """Parts that no optimizer may change: a predictor's name, `name.instructions`, `name.demos`, or
    `instructions` or `demos` for all predictors."""

    def run_name(self) -> str:
        """`opt_{target_type}_{target_id}_{UTC timestamp}`."""
        return run_name("opt", self.target.type, self.target.id)

    def run_tags(self) -> dict[str, str]:
        """The tags that every run of this request carries."""
        return {"target_type": self.target.type, "target_id": self.target.id}


class OptimizationResult(BaseModel):
    """What an optimization found. All figures were measured on the test split, which no optimizer saw.

    `model_dump(mode="json")` is what the journal and the artifact `result.json` hold; `schema_version`
    changes when a field changes its meaning."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    schema_version: Literal[1, 2] = 2
    """2: `meets_threshold` requires a proven gain. The fields that version 1 lacks are None or empty."""
    optimization_id: str
    run_id: str | None
    """MLflow's run id, or a local one while MLflow doesn't have the run; None without tracking."""
    status: Status
    """`completed`, or `budget_exhausted` if a limit stopped the search. A failed run raises."""
    verdict: Verdict | None = None
    """What is proven: `better`, `worse` or `not proven`; see `agentcore.evaluation.verdict_of`."""
    claims: tuple[Claim, ...] = ()
    """The figures that the verdict rests on, each with the p-value and interval of its own paired test:
    quality, and every objective."""
    baseline_performance: PerformanceMetrics
    """The caller's `baseline_metrics` if given, else `measured_baseline`."""
    measured_baseline: PerformanceMetrics
    optimized_performance: PerformanceMetrics
    quality_interval: Interval | None = None
    """95% interval of the optimized program's quality score."""
    improvement_percentage: float
    """A fraction (0.25 means 25%), from the measured baseline; see `improvement`. Says nothing about
    whether it is proven."""
    statistical_significance: float
    """The p-value of the gain in quality score; see `Comparison.p_value`."""
    interval: Interval
    """95% interval of the gain in mean score."""
    smallest_detectable_gain: float | None
    comparison: Comparison
    winning_optimizer: str | None = None
    """The name of the optimizer that found the optimized program; None if the original program was kept."""
    meets_threshold: bool
    """Whether the verdict is `better` and the improvement reached `min_improvement_threshold`."""
    targets_met: dict[str, bool]
    """Whether the optimized program reached each objective's `target_value`."""
    optimization_details: dict[str, Any]
    spend: Spend
    spend_by_stage: dict[str, Spend]
    warnings: list[str] = Field(default_factory=list)
    program: Any = Field(default=None, exclude=True, repr=False)
    """The optimized `dspy.Module`; None in a result that was read back."""

    def __str__(self) -> str:
        return _summary.text(self)

    def _repr_html_(self) -> str:
        return _summary.html(self)
