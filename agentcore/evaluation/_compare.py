"""Paired comparison of two evaluations: what it claims, and how certain that is."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agentcore.errors import DataError
from agentcore.evaluation._power import (
    examples_needed,
    observed_effective,
    smallest_detectable_gain,
)
from agentcore.evaluation._records import EvaluationReport, ExampleRecord
from agentcore.evaluation._statistics import (
    Interval,
    Method,
    PairedTest,
    Verdict,
    mean_interval,
    paired_test,
)

Figure = Literal["quality_score", "success_rate", "avg_cost", "avg_latency_ms"]
QUALITY_MARGIN = 0.05
"""Loss in quality that must be ruled out before a gain in cost or latency makes a program better."""


@dataclass(frozen=True)
class Claim:
    """What the test examples say about one figure, from one paired test."""

    figure: Figure
    baseline: float
    optimized: float
    gain: float
    """Positive if better. For scores and rates the difference, for cost USD per example, and for latency the
    fraction by which its geometric mean fell."""
    interval: Interval
    """95% interval of `gain`."""
    p_value: float
    """Two-sided."""
    examples: int
    """Number of pairs."""
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of per-example scores (0–1), optimized minus baseline."""

    examples: int
    """Number of pairs compared. An example on which the LM failed in either evaluation is left out."""
    difference: float
    p_value: float
    """Two-sided. Not the probability that the gain is real, and valid for a single look at the examples."""
    interval: Interval
    """95% interval of the mean difference; excludes 0 exactly if p < 0.05."""
    smallest_detectable_gain: float | None
    """The smallest true gain that these examples show with 80% power; None if there is none."""
    fixed: tuple[int, ...]
    """Indices of examples that failed with the baseline and succeed with the optimized program."""
    broken: tuple[int, ...]
    method: Method = "exact"
    """`exact` for 0/1 scores, `mean` for graded ones, `clusters` for clustered ones."""
    verdict: Verdict = "not proven"
    examples_needed: int | None = None
    """If not proven: about how many test examples would show this gain; None if there is no gain."""
    clusters: int | None = None
    """Number of clusters, if the examples come in clusters."""


def compare(
    baseline: EvaluationReport,
    optimized: EvaluationReport,
    *,
    clusters: Sequence[Hashable] | None = None,
) -> Comparison:
    """Compare the scores of two evaluations over the same examples in the same order.

    Args:
        clusters: the cluster of each example; None for independent examples.

    Raises:
        DataError: the evaluations are over different examples, or no pair has both scores.
    """
    baseline, optimized, clusters = paired(baseline, optimized, clusters)
    before, after = baseline.all_scores, optimized.all_scores
    differences = [own - other for own, other in zip(after, before, strict=True)]
    tested = paired_test(differences, clusters)
    effective = (
        observed_effective(differences, clusters) if tested.method == "clusters" and clusters else None
    )
    threshold = baseline.success_threshold
    pairs = list(zip((record.index for record in baseline.records), before, after, strict=True))
    return Comparison(
        examples=len(pairs),
        difference=tested.difference,
        p_value=tested.p_value,
        interval=tested.interval,
        smallest_detectable_gain=smallest_detectable_gain(differences, effective),
        fixed=tuple(index for index, old, new in pairs if old < threshold <= new),
        broken=tuple(index for index, old, new in pairs if new < threshold <= old),
        method=tested.method,
        verdict=tested.verdict,
        examples_needed=examples_needed(differences, effective) if tested.verdict == "not proven" else None,
        clusters=len(set(clusters)) if clusters is not None else None,
    )


def paired(
    baseline: EvaluationReport, optimized: EvaluationReport, clusters: Sequence[Hashable] | None = None
) -> tuple[EvaluationReport, EvaluationReport, Sequence[Hashable] | None]:
    """Both evaluations, limited to the examples with a score in both: figures over different examples can't
    be compared.

    Raises:
        DataError: the evaluations are over different examples, or no pair has both scores.
    """
    if [record.digest for record in baseline.records] != [record.digest for record in optimized.records]:
        raise DataError("the two evaluations are over different examples and can't be paired")
    kept = [
        number
        for number, (before, after) in enumerate(zip(baseline.scores, optimized.scores, strict=True))
        if before is not None and after is not None
    ]
    if not kept:
        raise DataError("no example was scored in both evaluations")
    chosen = None if clusters is None else [clusters[number] for number in kept]
    return baseline.only(kept), optimized.only(kept), chosen


def claims(
    baseline: EvaluationReport,
    optimized: EvaluationReport,
    figures: Sequence[Figure],
    *,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[Claim, ...]:
    """What can be said about the quality score, and about each further figure that both evaluations have."""
    baseline, optimized, clusters = paired(baseline, optimized, clusters)
    found = [
        _claim(name, baseline, optimized, clusters) for name in dict.fromkeys(("quality_score", *figures))
    ]
    return tuple(item for item in found if item is not None)


def verdict_of(claimed: Sequence[Claim], objectives: Sequence[Figure]) -> Verdict:
    """One word for a whole result.

    `better`: every objective is better, and where quality is none of them, a loss of 0.05 in the quality
    score is ruled out. `worse`: an objective or the quality is worse. Otherwise `not proven`. No correction
    for several objectives is needed, since all of them have to be better (Berger 1982).
    """
    by_figure = {item.figure: item for item in claimed}
    quality = by_figure["quality_score"]
    wanted = [by_figure.get(name) for name in objectives]
    if quality.verdict == "worse" or any(item is not None and item.verdict == "worse" for item in wanted):
        return "worse"
    proven = all(item is not None and item.verdict == "better" for item in wanted)
    of_quality = any(name in ("quality_score", "success_rate") for name in objectives)
    return "better" if proven and (of_quality or quality.interval.low > -QUALITY_MARGIN) else "not proven"


def score_interval(report: EvaluationReport, clusters: Sequence[Hashable] | None = None) -> Interval:
    """95% interval of the mean score; see `mean_interval`."""
    kept = [number for number, score in enumerate(report.scores) if score is not None]
    chosen = None if clusters is None else [clusters[number] for number in kept]
    return mean_interval(report.only(kept).all_scores, chosen)


def _claim(
    figure: Figure,
    baseline: EvaluationReport,
    optimized: EvaluationReport,
    clusters: Sequence[Hashable] | None,
) -> Claim | None:
    value, scale = _VALUES[figure](baseline.success_threshold)
    rows = [
        (old, new, None if clusters is None else clusters[number])
        for number, (before, after) in enumerate(zip(baseline.records, optimized.records, strict=True))
        if (old := value(before)) is not None and (new := value(after)) is not None
    ]
    if not rows:
        return None
    before, after = float(np.mean([row[0] for row in rows])), float(np.mean([row[1] for row in rows]))
    of_rows = None if clusters is None else [row[2] for row in rows]
    if figure == "avg_latency_ms":
        logs = [math.log(max(row[0], 1e-3) / max(row[1], 1e-3)) for row in rows]
        tested = paired_test(logs, of_rows, scale=_largest(logs))
        gain, interval = 1 - math.exp(-tested.difference), _fractions(tested)
    else:
        sign = -1.0 if figure == "avg_cost" else 1.0
        differences = [sign * (row[1] - row[0]) for row in rows]
        tested = paired_test(differences, of_rows, scale=scale or _largest(differences))
        gain, interval = tested.difference, tested.interval
    return Claim(figure, before, after, gain, interval, tested.p_value, len(rows), tested.verdict)


def _fractions(tested: PairedTest) -> Interval:
    return Interval(1 - math.exp(-tested.interval.low), 1 - math.exp(-tested.interval.high))


def _largest(differences: Sequence[float]) -> float:
    return max(map(abs, differences)) or 1.0


_Value = Callable[[ExampleRecord], float | None]


def _cost(record: ExampleRecord) -> float | None:
    known = record.cost_usd is not None and not record.cache_hits and record.failed != "lm"
    return record.cost_usd / record.draws if known and record.cost_usd is not None else None


def _latency(record: ExampleRecord) -> float | None:
    return None if record.cache_hits else record.latency_ms


_VALUES: dict[Figure, Callable[[float], tuple[_Value, float | None]]] = {
    "quality_score": lambda _: (lambda record: record.score, 1.0),
    "success_rate": lambda threshold: (
        lambda record: None if record.score is None else float(record.score >= threshold),
        1.0,
    ),
    "avg_cost": lambda _: (_cost, None),
    "avg_latency_ms": lambda _: (_latency, None),
}
"""What is compared of each record, and the largest difference there can be; None if unbounded."""
