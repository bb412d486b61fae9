"""Tests of two independent samples, such as two data sets: their rows are not pairs."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from agentcore.evaluation import Interval

_Z = float(stats.norm.ppf(0.975))
_EXACT_ROWS = 200
"""Up to this many rows in each sample the test of two proportions is exact (Boschloo 1970); it takes seconds
for more."""
_EXPECTED = 10
"""Errors or successes expected in the smaller sample, from which the z test keeps its level."""
_BLOCK = 10
_ROUNDING = 1e-9
_APPENDED = np.array([0.0, 1.0])


def loss_in_mean(before: Sequence[float], after: Sequence[float]) -> float:
    """One-sided p-value that the mean of values in 0–1 has fallen.

    For values of 0 and 1 Boschloo's exact test; for large samples the z test with pooled variance, or
    Fisher's exact test where few errors or successes are expected. For
    others Welch's t, with one 0 and one 1 appended to each sample in place of values too rare to be seen.
    """
    old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if np.all(np.isin(old, (0.0, 1.0))) and np.all(np.isin(new, (0.0, 1.0))):
        return _loss_in_proportion(int(old.sum()), old.size, int(new.sum()), new.size)
    old, new = np.append(old, _APPENDED), np.append(new, _APPENDED)
    return float(stats.ttest_ind(old, new, equal_var=False, alternative="greater").pvalue)


def _loss_in_proportion(old: int, before: int, new: int, after: int) -> float:
    if old * after <= new * before:
        return 1.0 if old * after < new * before else 0.5
    table = [[old, new], [before - old, after - new]]
    if max(before, after) <= _EXACT_ROWS:
        return float(stats.boschloo_exact(table, alternative="greater").pvalue)
    expected = min(old + new, before + after - old - new) * min(before, after) / (before + after)
    if expected < _EXPECTED:
        return float(stats.fisher_exact(table, alternative="greater").pvalue)
    pooled = (old + new) / (before + after)
    error = math.sqrt(pooled * (1 - pooled) * (1 / before + 1 / after))
    return float(stats.norm.sf((old / before - new / after) / error))


def rise_in_log(
    before: Sequence[float], after: Sequence[float], margin: float = 0.0
) -> tuple[float, Interval, float]:
    """How much positive values, such as latencies, have risen: the relative change of the geometric mean, its
    95% interval, and the one-sided p-value that it is at most `margin`.

    By Welch's t of the logarithms, averaged over blocks of 10 values in the order of their measurement: a
    busy machine slows down neighbours together.
    """
    old, new = (_blocks(np.log(np.maximum(np.asarray(item, dtype=float), 1e-6))) for item in (before, after))
    change = math.expm1(float(new.mean() - old.mean()))
    if old.size < 2 or new.size < 2:
        return change, Interval(-1.0, math.inf), 1.0
    if max(old.std(), new.std()) < _ROUNDING:  # such as a price that is always the same
        return change, Interval(change, change), float(change <= margin)
    found = stats.ttest_ind(new - math.log1p(margin), old, equal_var=False, alternative="greater")
    both = stats.ttest_ind(new, old, equal_var=False).confidence_interval(0.95)
    bounds = Interval(math.expm1(float(both.low)), math.expm1(float(both.high)))
    return change, bounds, float(found.pvalue)


def rise_in_mean(before: Sequence[float], after: Sequence[float]) -> tuple[float, Interval, float]:
    """How much a mean of values from 0 up, such as absolute errors, has risen: the relative change, its 95%
    interval, and the one-sided p-value that it hasn't. By the normal distribution of the logarithms of both
    means (delta method), which have to be above 0."""
    old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    change = math.log(float(new.mean() / old.mean()))
    error = math.sqrt(
        sum(float(item.var(ddof=1)) / item.size / float(item.mean()) ** 2 for item in (old, new))
    )
    if error < _ROUNDING:
        return math.expm1(change), Interval(math.expm1(change), math.expm1(change)), float(change <= 0)
    bounds = Interval(math.expm1(change - _Z * error), math.expm1(change + _Z * error))
    return math.expm1(change), bounds, float(stats.norm.sf(change / error))


def _blocks(values: "np.ndarray") -> "np.ndarray":
    """The mean of each block; the last may be up to twice as long."""
    count = max(1, values.size // _BLOCK)
    return np.asarray([part.mean() for part in np.array_split(values, count)])


def difference_interval(before: float, old: Interval, after: float, new: Interval) -> Interval:
    """95% interval of before − after from the interval of each (Newcombe 1998; MOVER)."""
    difference = before - after
    return Interval(
        difference - math.hypot(before - old.low, new.high - after),
        difference + math.hypot(old.high - before, after - new.low),
    )


def loss_from_intervals(before: float, old: Interval, after: float, new: Interval) -> float:
    """One-sided p-value that a figure has fallen, from the 95% interval of each: the level at which the
    interval of the difference would end at 0."""
    half = math.hypot(before - old.low, new.high - after)
    return float(stats.norm.sf(_Z * (before - after) / half)) if half > 0 else float(before <= after)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): if those below α are rejected, any of the
    rejections is false with probability at most α."""
    order = np.argsort(p_values)
    adjusted, highest = np.ones(len(p_values)), 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = highest
    return [float(value) for value in adjusted]
