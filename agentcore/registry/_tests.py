"""One-sided tests of the promotion gate. Each gives the p-value of the hypothesis that the challenger is no
better than the reference (or worse by more than a margin); docs/gate.md has their error rates."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from agentcore.evaluation import Interval, bonett_price, cluster_totals, is_binary

_BETS = np.linspace(0.05, 0.95, 19)
"""Shares of the capital to bet."""


def gain_p_value(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """p-value of "the mean difference is at most 0".

    Independent 0/1 scores: exact McNemar, P(Bin(b + c, ½) ≥ b). Otherwise `betting_p_value`: flipping the
    signs of clusters' totals is only exact if gains and losses are distributed alike.

    Args:
        differences: challenger minus reference, between −1 and 1.
        clusters: the cluster of each difference; None for independent examples.
    """
    values = np.asarray(differences, dtype=float)
    if clusters is not None and len(set(clusters)) < values.size:
        totals, sizes = cluster_totals(values, clusters)
        return betting_p_value(totals / sizes.max())
    if is_binary(values):
        better, worse = int((values > 0).sum()), int((values < 0).sum())
        return float(stats.binom.sf(better - 1, better + worse, 0.5)) if better + worse else 1.0
    return betting_p_value(values)


def betting_p_value(values: "np.ndarray | Sequence[float]") -> float:
    """p-value of "the mean is at most 0" for values between −1 and 1, whatever their distribution.

    Someone who bets a share λ of their capital on each value multiplies it by 1 + λ·x, which can't be
    expected to grow if the mean is at most 0; so the capital exceeds 1/p with a probability of at most p
    (Waudby-Smith and Ramdas 2024). The capital is divided evenly over several λ, which makes the result
    independent of the values' order.
    """
    x = np.asarray(values, dtype=float)
    growth = np.log1p(np.outer(_BETS, x)).sum(axis=1)
    top = float(growth.max())
    capital = top + math.log(float(np.exp(growth - top).mean()))
    return min(1.0, math.exp(-capital)) if capital > 0 else 1.0


def loss_p_value(
    differences: Sequence[float], margin: float, clusters: Sequence[Hashable] | None = None
) -> float:
    """p-value of "the challenger loses `margin` or more".

    Independent 0/1 scores: Tango's (1998) score test of non-inferiority. Otherwise betting on the
    differences (or the clusters' mean differences), shifted by the margin.
    """
    values = np.asarray(differences, dtype=float)
    if clusters is not None and len(set(clusters)) < values.size:
        totals, sizes = cluster_totals(values, clusters)
        return betting_p_value((totals + margin * sizes) / (sizes.max() * (1 + margin)))
    if not is_binary(values):
        return betting_p_value((values + margin) / (1 + margin))
    return tango_p_value(int((values > 0).sum()), int((values < 0).sum()), values.size, margin)


def tango_p_value(better: int, worse: int, examples: int, margin: float) -> float:
    """Tango (1998): Z = (b − c + nδ) / √(n(2q − δ(1 + δ))), where q, the chance of a loss at the margin, is
    (√(B² − 4AC) − B) / 2A with A = 2n, B = −(b + c) − δ(2n − b + c), C = cδ(1 + δ)."""
    n = examples
    a, b = 2 * n, -(better + worse) - margin * (2 * n - better + worse)
    c = worse * margin * (1 + margin)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * q - margin * (1 + margin))
    if variance <= 0:
        return 1.0
    return float(stats.norm.sf((better - worse + n * margin) / math.sqrt(variance)))


def increase_p_value(
    challenger: Sequence[float],
    reference: Sequence[float],
    allowed: float,
    *,
    logarithms: bool,
    clusters: Sequence[Hashable] | None = None,
) -> float:
    """p-value of "the figure rises by the share `allowed` or more": Student's t of
    challenger − (1 + allowed)·reference, or, with `logarithms`, of log(challenger / reference) −
    log(1 + allowed). Each cluster counts as one value, its mean."""
    new, old = np.asarray(challenger, dtype=float), np.asarray(reference, dtype=float)
    values = (
        np.log(np.maximum(new, 1e-9) / np.maximum(old, 1e-9)) - math.log1p(allowed)
        if logarithms
        else new - (1 + allowed) * old
    )
    if clusters is not None and len(set(clusters)) < values.size:
        totals, sizes = cluster_totals(values, clusters)
        values = totals / sizes
    if values.size < 2:
        return 1.0
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    if error == 0:
        return 0.0 if float(values.mean()) < 0 else 1.0
    return float(stats.t.cdf(float(values.mean()) / error, values.size - 1))


def gain_interval(
    differences: Sequence[float], confidence: float, clusters: Sequence[Hashable] | None = None
) -> Interval:
    """Two-sided interval of the mean difference: Bonett and Price (2012) for independent 0/1 scores, else
    all means that two tests by betting don't reject."""
    values = np.asarray(differences, dtype=float)
    clustered = clusters is not None and len(set(clusters)) < values.size
    if is_binary(values) and not clustered:
        better, worse = int((values > 0).sum()), int((values < 0).sum())
        return bonett_price(better, worse, values.size, confidence)
    level = (1 - confidence) / 2
    return Interval(-_bound(-values, level, clusters), _bound(values, level, clusters))


def _bound(values: "np.ndarray", level: float, clusters: Sequence[Hashable] | None) -> float:
    """The smallest mean, up to 1, that is rejected as too high."""
    from scipy.optimize import brentq

    def excess(mean: float) -> float:
        # "the mean of m − x is at most 0", for x between −1 and 1
        shifted = mean - values
        if clusters is not None:
            totals, sizes = cluster_totals(shifted, clusters)
            shifted = totals / sizes.max()
        return betting_p_value(shifted / (1 + abs(mean))) - level

    mean = float(values.mean())
    if excess(1.0) > 0:
        return 1.0
    return float(brentq(excess, mean, 1.0, xtol=1e-4)) if excess(mean) > 0 else mean
