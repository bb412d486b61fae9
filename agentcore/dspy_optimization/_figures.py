"""Computes a result's figures and summary from measurements."""

from collections.abc import Sequence
from typing import Any

from agentcore.dspy_optimization.models import OptimizationObjective, PerformanceMetrics
from agentcore.errors import EvaluationError
from agentcore.evaluation import Comparison

_LESS_IS_BETTER = ("avg_cost", "avg_latency_ms")


def improvement(
    baseline: PerformanceMetrics, optimized: PerformanceMetrics, objectives: Sequence[OptimizationObjective]
) -> float:
    """The weighted mean, over the objectives, of the relative change in the better direction.

    A fraction: 0.25 means 25% better. If a baseline is 0, its change is absolute.
    """
    changes: list[float] = []
    for objective in objectives:
        before, after = getattr(baseline, objective.metric), getattr(optimized, objective.metric)
        if before is None or after is None:
            raise EvaluationError(unknown_figure(objective.metric))
        change = after - before if objective.metric not in _LESS_IS_BETTER else before - after
        changes.append(objective.weight * (change / before if before else change))
    return sum(changes) / sum(objective.weight for objective in objectives)


def unknown_figure(metric: str) -> str:
    why = {
        "avg_cost": "the price of the LM's tokens is unknown to litellm",
        "avg_latency_ms": "the cache answered every example: pass an LM with cache=False",
    }
    reason = why.get(metric, "it has no value")
    return f"objective {metric} can't be measured: {reason}. Choose another objective"


def targets_met(
    optimized: PerformanceMetrics, objectives: Sequence[OptimizationObjective]
) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for objective in objectives:
        value = getattr(optimized, objective.metric)
        if objective.target_value is not None and value is not None:
            below = objective.metric in _LESS_IS_BETTER
            met = value <= objective.target_value if below else value >= objective.target_value
            found[objective.metric] = met
    return found


def contradictions(claimed: PerformanceMetrics, measured: PerformanceMetrics, examples: int) -> list[str]:
    """Warnings for figures of the caller's baseline that differ from the measured ones by more than 1.96
    standard errors of a proportion over that many examples (at least 0.02)."""
    found = []
    for name in ("success_rate", "quality_score"):
        said, seen = getattr(claimed, name), getattr(measured, name)
        tolerance = max(0.02, 1.96 * (seen * (1 - seen) / examples) ** 0.5)
        if abs(said - seen) > tolerance:
            found.append(
                f"baseline_metrics says {name} {said:.3f}, but {seen:.3f} was measured on the test split: "
                "the improvement is computed from the measured value"
            )
    return found


def key_improvements(
    baseline: PerformanceMetrics,
    optimized: PerformanceMetrics,
    comparison: Comparison,
    before: Any,
    after: Any,
) -> list[str]:
    """What changed, one line each."""
    low, high = comparison.interval
    lines = [
        f"quality_score {baseline.quality_score:.3f} → {optimized.quality_score:.3f}: "
        f"{comparison.difference:+.3f}, 95% interval {low:+.3f} to {high:+.3f}, "
        f"p = {comparison.p_value:.2g}, over {comparison.examples} test examples: {comparison.verdict}",
        f"success_rate {baseline.success_rate:.3f} → {optimized.success_rate:.3f}: "
        f"{len(comparison.fixed)} examples fixed, {len(comparison.broken)} broken",
    ]
    if baseline.avg_cost and optimized.avg_cost is not None:
        lines.append(f"avg_cost {baseline.avg_cost:.6f} → {optimized.avg_cost:.6f} USD per example")
    old = dict(before.named_predictors())
    for name, predictor in after.named_predictors():
        if name in old and predictor.signature.instructions != old[name].signature.instructions:
            lines.append(f"{name}: new instruction: {' '.join(predictor.signature.instructions.split())}")
        count, was = len(predictor.demos), len(old[name].demos) if name in old else 0
        if count != was:
            lines.append(f"{name}: {count} demonstrations (before: {was})")
    return lines
