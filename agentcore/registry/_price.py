"""What a look at a sealed test set costs: the significance level at which it has the planned power."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from agentcore.evaluation import is_binary
from agentcore.registry._tests import betting_p_value

SHARE_BROKEN = 0.1
"""Share of examples assumed to get worse with a better program, if there are no validation examples."""
_MOST_EXAMPLES = 100_000
_EXACT_UP_TO = 5_000
"""Above this many examples, the normal approximation of the binomial power is used."""
_SIMULATIONS = 400
_WITHIN = 0.3
"""Assumed intra-cluster correlation."""


@dataclass(frozen=True)
class Expected:
    """How two programs are expected to differ, from the validation examples.

    Attributes:
        broken: share of examples that get worse; the share that gets better is this plus the margin.
        differences: of graded scores; None for 0/1 scores.
        cluster_size: mean number of examples per cluster; 1 for independent ones.
    """

    broken: float = SHARE_BROKEN
    differences: tuple[float, ...] | None = None
    cluster_size: float = 1.0

    @classmethod
    def of(cls, differences: Sequence[float], cluster_size: float = 1.0) -> "Expected":
        """From the validation scores' differences; without any, the default assumption."""
        if len(differences) == 0:
            return cls(cluster_size=cluster_size)
        if not is_binary(differences):
            return cls(differences=tuple(differences), cluster_size=cluster_size)
        broken = sum(value < 0 for value in differences)
        return cls((broken + 1) / (len(differences) + 2), cluster_size=cluster_size)


def price(examples: int, margin: float, power: float, expected: Expected) -> float:
    """The smallest significance level at which a look at this many examples detects a true gain of
    `margin` with the planned power; 1 if there is none below ½.

    0/1 scores: the exact power of `gain_p_value`. Graded scores and clusters: that of the betting test, on
    resampled validation differences shifted to the margin; of a cluster's examples, a share of `_WITHIN`
    differs as one.
    """
    broken = min(expected.broken, (1 - margin) / 2)
    if expected.differences is None and expected.cluster_size <= 1:
        return _exact(examples, broken + margin, broken, power)
    values = expected.differences
    if values is None:
        counts = (round(1000 * (broken + margin)), round(1000 * broken))
        values = (1.0,) * counts[0] + (-1.0,) * counts[1] + (0.0,) * max(0, 1000 - sum(counts))
    size = max(1, round(expected.cluster_size))
    return _betting(max(1, examples // size), size, margin, power, values)


def examples_for(level: float, margin: float, power: float, expected: Expected) -> int:
    """About how many examples a look at this significance level needs."""
    low, high = 1, 64
    while price(high, margin, power, expected) > level:
        low, high = high, 2 * high
        if high > _MOST_EXAMPLES:
            return _MOST_EXAMPLES
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if price(middle, margin, power, expected) <= level else (middle, high)
    return high


@lru_cache(maxsize=1024)
def _exact(examples: int, up: float, down: float, power: float) -> float:
    def enough(level: float) -> bool:
        return _power(examples, up, down, level) >= power

    return _smallest(enough)


def _power(examples: int, up: float, down: float, level: float) -> float:
    """Probability that P(Bin(b + c, ½) ≥ b) ≤ level."""
    changed = up + down
    if examples > _EXACT_UP_TO:
        error = math.sqrt(max(changed - (up - down) ** 2, 1e-12) / examples)
        null = math.sqrt(changed / examples)
        return float(stats.norm.cdf((up - down - stats.norm.isf(level) * null) / error))
    middle, spread = examples * changed, 8 * math.sqrt(examples * changed * (1 - changed) + 1)
    counts = np.arange(max(0, int(middle - spread)), min(examples, int(middle + spread)) + 1)
    chances = stats.binom.pmf(counts, examples, min(1.0, changed))
    wins = stats.binom.isf(level, counts, 0.5)  # the smallest b with P(X > b) ≤ level
    wins = np.where(stats.binom.sf(wins - 1, counts, 0.5) <= level, wins, wins + 1)
    return float((chances * stats.binom.sf(wins - 1, counts, up / changed)).sum())


@lru_cache(maxsize=1024)
def _betting(clusters: int, size: int, margin: float, power: float, differences: tuple[float, ...]) -> float:
    values = np.asarray(differences)
    shifted = np.clip(values - values.mean() + margin, -1.0, 1.0)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_SIMULATIONS):
        means = rng.choice(shifted, clusters)
        if size > 1:
            own = rng.choice(shifted, (clusters, size)).mean(axis=1)
            means = np.where(rng.random(clusters) < _WITHIN, means, own)
        found.append(betting_p_value(means))
    level = float(np.quantile(found, power, method="higher"))
    return level if level < 0.5 else 1.0


def _smallest(enough: Callable[[float], bool]) -> float:
    """The smallest level below ½ that is enough, to within 1 %; 1 if none is."""
    if not enough(0.5):
        return 1.0
    low, high = -60.0, math.log(0.5)
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(math.exp(middle)) else (middle, high)
    return math.exp(high)
