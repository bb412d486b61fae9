"""Drift: whether an agent does worse on current data than on a baseline, and whether the data changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentcore.evaluation import Interval
from agentcore.monitoring._canary import CanaryResult
from agentcore.monitoring._fields import FieldDrift, field_drift
from agentcore.monitoring._models import EvaluationMetrics
from agentcore.monitoring._quality import proportion_interval
from agentcore.monitoring._two_samples import (
    difference_interval,
    holm,
    loss_from_intervals,
    loss_in_mean,
    rise_in_log,
    rise_in_mean,
)

ACCURACY_ALPHA = 0.03
OTHERS_ALPHA = 0.005
CANARY_ALPHA = 0.00125
"""One-sided, within the 0.5 % of both tests of the canary (CHANGED_ALPHA). Together with FIELD_ALPHA, at most
5 % of the checks alarm where nothing has changed."""
_RELATIVE = 0.2
"""A rise in latency or cost below 20 % is not told from the noise of machines and prices."""
_FEW = 50
_ON_CANARY = "canary_accuracy"

Cause = Literal["none", "inputs", "model", "inputs and model", "unknown"]


@dataclass(frozen=True)
class MetricDrift:
    """One figure on two data sets.

    Attributes:
        degradation: how much worse it is; for latency and cost the relative rise of the geometric mean, for
            mae that of the mean, for all others the difference.
        interval: 95% interval of the degradation.
        p_value: one-sided, of a test for two samples, adjusted for the number of figures; for latency and
            cost that the rise is at most the threshold.
        threshold: from which a degradation matters.
        drifted: whether the degradation is over the threshold and proven.
    """

    name: str
    baseline: float
    current: float
    degradation: float
    interval: Interval
    p_value: float
    threshold: float
    drifted: bool

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return {**vars(self), "interval": list(self.interval)}


@dataclass(frozen=True)
class DriftReport:
    """What a drift check found. `report["has_drift"]` works too.

    Attributes:
        has_drift: whether a figure of the agent has drifted.
        has_input_drift: whether a field of the data has.
        cause: what changed, as far as the canary tells; `unknown` without one.
    """

    baseline: EvaluationMetrics
    current: EvaluationMetrics
    threshold: float
    metrics: tuple[MetricDrift, ...]
    fields: tuple[FieldDrift, ...]
    canary: CanaryResult | None = None
    run_id: str | None = field(default=None, compare=False)

    @property
    def has_drift(self) -> bool:
        return any(item.drifted for item in self.metrics)

    @property
    def has_input_drift(self) -> bool:
        return any(item.drifted for item in self.fields)

    @property
    def drifted_fields(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.fields if item.drifted)

    @property
    def cause(self) -> Cause:
        if self.canary is None:
            return "unknown" if self.has_drift or self.has_input_drift else "none"
        # The agent answers both data sets at the same time: a gap between them is theirs, not the model's.
        inputs = self.has_input_drift or any(item.drifted for item in self.metrics if item.name != _ON_CANARY)
        if self.canary.model_changed:
            return "inputs and model" if inputs else "model"
        return "inputs" if inputs else "none"

    def headline(self) -> str:
        """The result in one sentence."""
        worse = [f"{item.name} by {item.degradation:.3f}" for item in self.metrics if item.drifted]
        told = (
            f"Performance drift: worse in {', '.join(worse)}." if worse else "No performance drift is proven."
        )
        fields = self.drifted_fields
        told += (
            f" Inputs have changed: {', '.join(fields)}." if fields else " No change of the inputs is proven."
        )
        if self.canary is not None:
            told += {
                "none": "",
                "inputs": " The model answers the canary as before: the inputs changed, not the model.",
                "model": " The model no longer answers the canary as before: the model changed.",
                "inputs and model": " Both the inputs and the model changed.",
                "unknown": "",
            }[self.cause]
        elif self.cause == "unknown":
            told += " Without a canary, a changed model can't be told from changed inputs."
        return told

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {
            "has_drift": self.has_drift,
            "has_input_drift": self.has_input_drift,
            "cause": self.cause,
            "threshold": self.threshold,
            "metrics": {item.name: item.as_dict() for item in self.metrics},
            "fields": {item.name: item.as_dict() for item in self.fields},
            "drifted_fields": list(self.drifted_fields),
            "canary": None
            if self.canary is None
            else {**vars(self.canary), "model_changed": self.canary.model_changed},
            "baseline": self.baseline.as_dict(),
            "current": self.current.as_dict(),
            "run_id": self.run_id,
        }

    def __getitem__(self, name: str) -> Any:
        return self.as_dict()[name]

    def __contains__(self, name: object) -> bool:
        return name in self.as_dict()


def drift_between(
    baseline: EvaluationMetrics,
    current: EvaluationMetrics,
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    *,
    threshold: float = 0.05,
    canary: CanaryResult | None = None,
) -> DriftReport:
    """Compare two evaluations of an agent, and the rows that they are of.

    The rows are not pairs, so each figure has a test for two samples. Accuracy is tested at 3 %, all other
    figures together at 0.5 % (Holm), the fields at 1 % (Benjamini and Hochberg), and the loss on the canary
    at 0.5 %.
    """
    return DriftReport(
        baseline,
        current,
        threshold,
        (
            *_metrics(baseline, current, threshold),
            *([] if canary is None else [_on_canary(canary, threshold)]),
        ),
        tuple(field_drift(before, after)),
        canary,
    )


def _metrics(baseline: EvaluationMetrics, current: EvaluationMetrics, threshold: float) -> list[MetricDrift]:
    found = [_quality("accuracy", baseline, current, threshold)]
    for name in ("precision", "recall", "f1_score"):
        if getattr(baseline, name) is not None and getattr(current, name) is not None:
            found.append(_quality(name, baseline, current, threshold))
    found.append(_failures(baseline, current, threshold))
    if (errors := _errors(baseline, current, max(threshold, _RELATIVE))) is not None:
        found.append(errors)
    found += [
        item
        for name in ("latency_ms", "cost_usd")
        if (item := _relative(name, baseline, current, max(threshold, _RELATIVE))) is not None
    ]
    adjusted = [found[0].p_value, *holm([item.p_value for item in found[1:]])]
    levels = [ACCURACY_ALPHA, *[OTHERS_ALPHA] * (len(found) - 1)]
    return [
        MetricDrift(
            **{
                **vars(item),
                "p_value": p,
                "drifted": item.degradation > item.threshold and p < level and item.interval.low > 0,
            }
        )
        for item, p, level in zip(found, adjusted, levels, strict=True)
    ]


def _quality(
    name: str, baseline: EvaluationMetrics, current: EvaluationMetrics, threshold: float
) -> MetricDrift:
    before, after = getattr(baseline, name), getattr(current, name)
    old, new = baseline.intervals[name], current.intervals[name]
    if name != "accuracy" and baseline.quality and current.quality and baseline.quality.counts is not None:
        # Over the classes that both data sets expect: others have no figure to compare with.
        common = [label for label in baseline.quality.expected if label in current.quality.expected]
        if common:
            before, old = baseline.quality.macro(name, common)
            after, new = current.quality.macro(name, common)
    if name == "accuracy" and baseline.quality is not None and current.quality is not None:
        p = loss_in_mean(baseline.quality.values, current.quality.values)
    else:
        p = loss_from_intervals(before, old, after, new)
    interval = difference_interval(before, old, after, new)
    return MetricDrift(name, before, after, before - after, interval, p, threshold, False)


def _on_canary(canary: CanaryResult, threshold: float) -> MetricDrift:
    """The loss on the canary since its answers were recorded. Its rows are the same, so that the test is
    paired: a worse model shows here even if it is worse on baseline and current data alike."""
    loss = -canary.accuracy_change
    p = canary.accuracy_p_value / 2 if loss > 0 else 1 - canary.accuracy_p_value / 2
    low, high = canary.accuracy_interval
    return MetricDrift(
        _ON_CANARY,
        canary.recorded_accuracy,
        canary.recorded_accuracy + canary.accuracy_change,
        loss,
        Interval(-high, -low),
        p,
        threshold,
        loss > threshold and p < CANARY_ALPHA,
    )


def _failures(baseline: EvaluationMetrics, current: EvaluationMetrics, threshold: float) -> MetricDrift:
    """The share of rows that the agent failed on."""
    values = [[1.0] * (item.examples - item.failures) + [0.0] * item.failures for item in (baseline, current)]
    shares = [item.failures / item.examples for item in (baseline, current)]
    intervals = [proportion_interval(item) for item in values]
    answered = [1 - share for share in shares]
    interval = difference_interval(answered[0], intervals[0], answered[1], intervals[1])
    p = loss_in_mean(values[0], values[1])
    return MetricDrift(
        "failure_rate", shares[0], shares[1], shares[1] - shares[0], interval, p, threshold, False
    )


def _errors(baseline: EvaluationMetrics, current: EvaluationMetrics, threshold: float) -> MetricDrift | None:
    """The mean absolute error of numbers."""
    if baseline.quality is None or current.quality is None:
        return None
    old, new = baseline.quality.errors, current.quality.errors
    if min(len(old), len(new)) < _FEW or not (any(old) and any(new)):
        return None
    change, interval, p = rise_in_mean(old, new)
    return MetricDrift(
        "mae", baseline.errors["mae"], current.errors["mae"], change, interval, p, threshold, False
    )


def _relative(
    name: str, baseline: EvaluationMetrics, current: EvaluationMetrics, threshold: float
) -> MetricDrift | None:
    values = [
        [value for row in item.rows if (value := getattr(row, name)) is not None and value > 0]
        for item in (baseline, current)
    ]
    if min(map(len, values)) < _FEW:
        return None
    change, interval, p = rise_in_log(values[0], values[1], threshold)
    before, after = (sum(item) / len(item) for item in values)
    shown = {"latency_ms": "avg_latency_ms", "cost_usd": "avg_cost"}[name]
    return MetricDrift(shown, before, after, change, interval, p, threshold, False)
