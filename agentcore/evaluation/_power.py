"""What a number of test examples can show: the power of the paired tests."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from agentcore.evaluation._statistics import ALPHA, APPENDED, CONFIDENCE, is_binary

POWER = 0.8
"""The probability with which a detectable gain is shown."""
SHARE_CHANGED = 0.25
"""Share of examples that differ between baseline and winner, assumed before anything is measured."""
_WITHIN_CLUSTERS = 0.3
"""Intra-cluster correlation, assumed before anything is measured."""
_MOST = 1_000_000
_EXACT_UP_TO = 2_000
"""Above this many examples, the binomial power equals its normal approximation to within a point."""
_Z = float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER))


def smallest_detectable_gain(differences: Sequence[float], effective: float | None = None) -> float | None:
    """The smallest true mean gain that these examples show as `better` with 80% power.

    0/1 scores: the exact power of the exact test, for the observed share of broken examples. Graded scores:
    the power of `mean_test`, for the observed standard deviation.

    Args:
        effective: how many independent examples these clustered ones are worth.

    Returns:
        None if no gain is that likely to be shown.
    """
    values = np.asarray(differences, dtype=float)
    count = round(values.size if effective is None else effective)
    if is_binary(values):
        return _exact_gain(count, float((values < 0).mean()))
    return _mean_gain(count, float(values.std(ddof=1)) if values.size > 1 else 0.0)


def gain_that_can_show(
    examples: int, changed: float = SHARE_CHANGED, *, repeats: int = 1, clusters: int | None = None
) -> float | None:
    """The gain that a test split shows with 80% power, before anything has been measured.

    Args:
        changed: share of the 0/1 scores that differ between baseline and winner, in either direction.
        repeats: half of the differences are assumed to be noise, which averaging repeats divides by it.
        clusters: number of clusters; the correlation within one is assumed to be 0.3.

    Returns:
        None if the power is below 80% even when all changed examples improve.
    """
    if clusters is not None:
        examples = round(effective_examples(examples, clusters))
    share = changed * (0.5 + 0.5 / repeats)

    def power(gain: float) -> float:
        return exact_power(examples, (share + gain) / 2, (share - gain) / 2)

    return _root(power, share)


def examples_needed(differences: Sequence[float], effective: float | None = None) -> int | None:
    """About how many examples would show the observed gain with 80% power; None if there is no gain.

    ((z₁₋α⸝₂ + z₁₋β) · s / d̄)² with the standard deviation s and the mean d̄ of the differences, at least the
    number at which the exact test can have that power.

    Args:
        effective: see `smallest_detectable_gain`.
    """
    values = np.asarray(differences, dtype=float)
    gain = float(values.mean())
    if gain <= 0:
        return None
    needed = (_Z * float(values.std()) / gain) ** 2
    inflation = 1.0 if effective is None else values.size / effective
    if is_binary(values):
        needed = max(needed, 8 / gain)
        up, down = float((values > 0).mean()), float((values < 0).mean())
        while needed < _EXACT_UP_TO and exact_power(round(needed), up, down) < POWER:
            needed *= 1.02
    return min(_MOST, math.ceil(inflation * needed))


def effective_examples(examples: int, clusters: int, within: float = _WITHIN_CLUSTERS) -> float:
    """n / (1 + (m − 1)·ρ) for clusters of mean size m and correlation ρ (Kish 1965)."""
    return examples / (1 + max(0.0, examples / clusters - 1) * within)


def observed_effective(differences: Sequence[float], clusters: Sequence[object]) -> float:
    """The number of independent examples whose mean would vary as much as that of these clusters."""
    values = np.asarray(differences, dtype=float)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(clusters))}
    index = np.asarray([numbers[key] for key in clusters])
    rest = np.bincount(index, weights=values - values.mean())
    groups, spread = rest.size, float(((values - values.mean()) ** 2).sum())
    if groups < 2 or not spread:
        return float(groups)
    ratio = float((rest**2).sum()) * groups / (groups - 1) / spread
    return min(float(values.size), values.size / max(ratio, 1e-9))


@lru_cache(maxsize=4096)
def exact_power(examples: int, up: float, down: float) -> float:
    """Probability that `exact_test` says `better`, if an example is fixed with probability `up` and broken
    with `down`: Σ over the number of changed examples of its chance times that of enough fixed ones."""
    changed = up + down
    if changed <= 0:
        return 0.0
    if examples > _EXACT_UP_TO:
        error = math.sqrt(max(changed - (up - down) ** 2, 1e-12) / examples)
        return float(stats.norm.cdf((up - down) / error - stats.norm.ppf(1 - ALPHA / 2)))
    counts = np.arange(examples + 1)
    chances = stats.binom.pmf(counts, examples, min(1.0, changed))
    enough = stats.binom.isf(ALPHA / 2, counts, 0.5) + 1  # P(X ≥ enough) ≤ α/2
    enough = np.where(stats.binom.sf(enough - 1, counts, 0.5) * 2 < ALPHA, enough, enough + 1)
    return float((chances * stats.binom.sf(enough - 1, counts, up / changed)).sum())


def _exact_gain(examples: int, down: float) -> float | None:
    return _root(lambda gain: exact_power(examples, min(1.0, down + gain), down), 1.0 - 2 * down)


def _mean_gain(examples: int, deviation: float) -> float | None:
    """The gain that `mean_test` just shows in differences with this standard deviation and no skewness, plus
    z₁₋β standard errors."""
    size = examples + APPENDED
    limit = float(stats.t.ppf(0.5 + CONFIDENCE / 2, size - 1))

    def excess(gain: float) -> float:
        mean = gain * examples / size
        squares = (examples - 1) * deviation**2 + examples * gain**2 + APPENDED - size * mean**2
        return mean / math.sqrt(squares / (size - 1) / size) - limit

    if excess(1.0) < 0:
        return None
    shown = float(optimize.brentq(excess, 0.0, 1.0, xtol=1e-5))
    gain = shown + float(stats.norm.ppf(POWER)) * deviation / math.sqrt(examples)
    return gain if gain <= 1 else None


def _root(power: Callable[[float], float], most: float) -> float | None:
    """The smallest gain up to `most` with power `POWER`."""
    if most <= 0 or power(most) < POWER:
        return None
    return float(optimize.brentq(lambda gain: power(gain) - POWER, 0.0, most, xtol=1e-4))
