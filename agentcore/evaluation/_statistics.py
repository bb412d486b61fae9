"""Paired tests of a mean gain, each with an interval that agrees with its p-value.

Differences are optimized minus baseline, one per example. Each procedure may consist of several tests: the
p-value is the largest of theirs and the interval covers all of theirs, so p < 0.05 exactly if the interval
excludes 0. docs/statistics.md has the error rates, power and coverage of each."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from agentcore.errors import DataError

CONFIDENCE = 0.95
ALPHA = 0.05
MIN_CLUSTERS = 6
"""Fewer clusters can't reach ALPHA: flipping all of 5 has p = 2 · 2⁻⁵ = 0.0625."""
NOISE = 1e-12
"""Differences up to this size are rounding errors."""
_GRID = 200_000
"""Steps on which the sums of flipped cluster totals are enumerated."""

_APPENDED = np.array([1.0, 1.0, -1.0, -1.0])
_APPENDED_CLUSTERS = np.array([1.0, -1.0])
APPENDED = _APPENDED.size
"""Number of differences that `mean_test` appends."""

Method = Literal["exact", "mean", "clusters"]
Verdict = Literal["better", "worse", "not proven"]


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """The outcome of a paired test."""

    method: Method
    difference: float
    """Mean difference."""
    interval: Interval
    """95% interval of the mean difference."""
    p_value: float
    """Two-sided."""

    @property
    def verdict(self) -> Verdict:
        if self.p_value >= ALPHA:
            return "not proven"
        return "better" if self.difference > 0 else "worse"


def paired_test(
    differences: Sequence[float], clusters: Sequence[Hashable] | None = None, *, scale: float = 1.0
) -> PairedTest:
    """Test whether the mean difference is 0, by the procedure that fits the differences.

    Args:
        differences: at least one; between −`scale` and `scale`.
        clusters: the cluster of each difference, such as its conversation; None for independent examples.

    Raises:
        DataError: there are no differences.
    """
    values = np.asarray(differences, dtype=float)
    if not values.size:
        raise DataError("there are no examples to compare")
    values = np.where(np.abs(values) <= NOISE * scale, 0.0, values) / scale
    if clusters is not None and len(set(clusters)) < values.size:
        found = cluster_test(values, clusters)
    elif scale == 1.0 and is_binary(values):
        found = exact_test(int((values > 0).sum()), int((values < 0).sum()), values.size)
    else:
        found = mean_test(values)
    low, high = (scale * bound for bound in found.interval)
    return PairedTest(found.method, scale * found.difference, Interval(low, high), found.p_value)


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Interval:
    """95% interval of a mean of scores (0–1), by the t of `mean_test` around the middle of the scale.

    Raises:
        DataError: there are no values.
    """
    if not values:
        raise DataError("there are no scores")
    centred = 2 * np.asarray(values, dtype=float) - 1
    if clusters is not None and len(set(clusters)) < centred.size:
        totals, sizes = cluster_totals(centred, clusters)
        _, interval = _student(totals, sizes, math.sqrt(float(sizes.mean())) * _APPENDED_CLUSTERS)
    else:
        _, interval = _student(centred, np.ones(centred.size), _APPENDED)
    low, high = ((bound + 1) / 2 for bound in interval)
    mean = float(np.mean(values))
    return Interval(max(0.0, min(low, mean)), min(1.0, max(high, mean)))


def is_binary(values: "np.ndarray | Sequence[float]") -> bool:
    """Whether all differences are −1, 0 or 1, as those of 0/1 scores are."""
    return bool(np.all(np.isin(np.asarray(values), (-1.0, 0.0, 1.0))))


def exact_test(fixed: int, broken: int, examples: int) -> PairedTest:
    """0/1 scores: the exact McNemar test (McNemar 1947; the binomial test of `fixed` among all changed), with
    the interval of Bonett and Price (2012), extended to 0 if the test doesn't reject."""
    p = float(min(1.0, 2 * stats.binom.sf(max(fixed, broken) - 1, fixed + broken, 0.5)))
    return PairedTest(
        "exact", (fixed - broken) / examples, _agreeing(bonett_price(fixed, broken, examples), p), p
    )


def bonett_price(fixed: int, broken: int, examples: int, confidence: float = CONFIDENCE) -> Interval:
    """d̂ ± z·√((p₊ + p₋ − d̂²)/(n + 2)), with p₊ = (fixed + 1)/(n + 2), p₋ = (broken + 1)/(n + 2) and
    d̂ = p₊ − p₋."""
    size = examples + 2
    up, down = (fixed + 1) / size, (broken + 1) / size
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    half = z * math.sqrt((up + down - (up - down) ** 2) / size)
    return Interval(max(-1.0, up - down - half), min(1.0, up - down + half))


def mean_test(values: "np.ndarray") -> PairedTest:
    """Graded scores: Student's t, and t with Hall's (1992) correction for skewness, on the differences with
    two values of +1 and two of −1 appended (in place of losses too rare to have been seen).

    A sign-flip test would test symmetry, not the mean."""
    p, interval = _student(values, np.ones(values.size), _APPENDED)
    difference = float(values.mean())
    return PairedTest("mean", difference, _covering(interval, difference), p)


def cluster_test(values: "np.ndarray", clusters: Sequence[Hashable]) -> PairedTest:
    """Examples that come in clusters: flipping the signs of whole clusters (exact, by convolution), and
    `mean_test` on the clusters' totals, with clusters of √(mean size) examples appended.

    With fewer than `MIN_CLUSTERS` clusters, nothing is proven: p is 1 and the interval is [−1, 1]."""
    totals, sizes = cluster_totals(values, clusters)
    difference = float(values.mean())
    if totals.size < MIN_CLUSTERS:
        return PairedTest("clusters", difference, Interval(-1.0, 1.0), 1.0)
    p, interval = _student(totals, sizes, math.sqrt(float(sizes.mean())) * _APPENDED_CLUSTERS)
    p = max(p, flip_p_value(totals))
    return PairedTest("clusters", difference, _covering(_agreeing(interval, p), difference), p)


def cluster_totals(values: "np.ndarray", clusters: Sequence[Hashable]) -> tuple["np.ndarray", "np.ndarray"]:
    """The total and the size of each cluster."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(clusters))}
    index = np.asarray([numbers[key] for key in clusters])
    return np.bincount(index, weights=values), np.bincount(index).astype(float)


def flip_p_value(totals: "np.ndarray") -> float:
    """Two-sided p-value of flipping the signs of totals at random (Fisher 1935), over all sign patterns."""
    return float(min(1.0, 2 * min(flip_distribution(totals))))


def flip_distribution(totals: "np.ndarray") -> tuple[float, float]:
    """The probabilities that totals with random signs sum to at least, and to at most, what these sum to.

    Totals that aren't whole numbers are rounded to a grid of at least a 100,000th of their sum."""
    sizes = np.abs(totals[np.abs(totals) > NOISE])
    if not sizes.size:
        return 1.0, 1.0
    whole = bool(np.all(np.abs(sizes - np.round(sizes)) <= NOISE)) and sizes.sum() <= _GRID
    steps = np.maximum(1, np.round(sizes * (1.0 if whole else _GRID / 2 / sizes.sum()))).astype(int)
    reached = int(steps[totals[np.abs(totals) > NOISE] > 0].sum())
    chances = np.zeros(int(steps.sum()) + 1)
    chances[0] = 1.0
    top = 0
    for step in steps:  # the distribution of the sum of the positive totals
        chances[step : top + step + 1] += chances[: top + 1].copy()
        chances[: top + step + 1] /= 2
        top += int(step)
    slack = 0 if whole else sizes.size // 2 + 1  # of rounding, towards a larger p-value
    above = chances[max(0, reached - slack) :].sum()
    below = chances[: reached + slack + 1].sum()
    return float(above), float(below)


def _student(totals: "np.ndarray", sizes: "np.ndarray", appended: "np.ndarray") -> tuple[float, Interval]:
    """p-value and interval of the mean Σtotals/Σsizes over units of these sizes: the larger of Student's and
    of Hall's p-value, and the interval that covers both."""
    every, weights = np.append(totals, appended), np.append(sizes, np.abs(appended))
    count = every.size
    mean = float(every.sum() / weights.sum())
    variance = float(((every - mean * weights) ** 2).sum() / (count - 1))
    error = math.sqrt(variance / count) * count / float(weights.sum())
    own = totals - float(totals.sum() / sizes.sum()) * sizes
    skew = float((own**3).sum() / count / variance**1.5) / math.sqrt(count)
    t = mean / error
    corrected = _corrected(t, skew)
    p = max(2 * float(stats.t.sf(abs(value), count - 1)) for value in (t, corrected))
    limit = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    high = max(limit, _uncorrected(limit, skew))
    low = min(-limit, _uncorrected(-limit, skew))
    interval = Interval(max(-1.0, mean - high * error), min(1.0, mean - low * error))
    return (p if t * corrected > 0 else 1.0), interval


def _corrected(t: float, skew: float) -> float:
    """Hall's (1992) transformation of t, for `skew` = skewness / √n."""
    return t + skew / 3 * t**2 + skew**2 / 27 * t**3 + skew / 6


def _uncorrected(value: float, skew: float) -> float:
    """The t that Hall's transformation maps to `value`."""
    if abs(skew) < NOISE:
        return value
    return float(3 / skew * (np.cbrt(1 + skew * (value - skew / 6)) - 1))


def _agreeing(interval: Interval, p: float) -> Interval:
    """The interval, extended to 0 if the test does not reject 0."""
    return interval if p < ALPHA else Interval(min(interval.low, 0.0), max(interval.high, 0.0))


def _covering(interval: Interval, value: float) -> Interval:
    """The interval, extended to the mean itself: appended values pull it towards 0."""
    return Interval(min(interval.low, value), max(interval.high, value))
