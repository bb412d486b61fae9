"""Paired comparison of two evaluations: is the optimized program better, and how certain is that?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from agentcore.errors import DataError
from agentcore.evaluation._records import EvaluationReport

RESAMPLES = 9_999
_NOISE = 1e-12
"""Score differences up to this size are treated as rounding error."""
CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
_FLIPS_NEEDED = math.ceil(math.log2(2 / ALPHA))
"""How many examples must change, all of them improving, for a two-sided sign-flip test to reach ALPHA."""


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of per-example scores (0–1), optimized minus baseline."""

    examples: int
    """Number of pairs compared. An example on which the LM failed in either evaluation is left out."""
    difference: float
    p_value: float
    interval: Interval
    """95% BCa bootstrap interval of the mean difference."""
    smallest_detectable_gain: float
    fixed: tuple[int, ...]
    """Indices of examples that failed with the baseline and succeed with the optimized program."""
    broken: tuple[int, ...]


def compare(baseline: EvaluationReport, optimized: EvaluationReport, *, seed: int = 0) -> Comparison:
    """Compare two evaluations over the same examples in the same order.

    The p-value is the share of random baseline/optimized relabellings, made example by example, that give a
    mean difference at least this large in either direction. It is not the probability that the gain is
    real, and it does not mean that the gain is large enough to matter. It is valid for a single look at the
    test split: the more candidates are compared on the same examples, the less a small value means.

    Raises:
        DataError: the evaluations are over different examples, or no pair has both scores.
    """
    if [record.digest for record in baseline.records] != [record.digest for record in optimized.records]:
        raise DataError("the two evaluations are over different examples and can't be paired")
    pairs = [
        (index, before, after)
        for index, (before, after) in enumerate(zip(baseline.scores, optimized.scores, strict=True))
        if before is not None and after is not None
    ]
    if not pairs:
        raise DataError("no example was scored in both evaluations")
    differences = [after - before for _, before, after in pairs]
    threshold = baseline.success_threshold
    return Comparison(
        examples=len(pairs),
        difference=float(np.mean(differences)),
        p_value=sign_flip_p_value(differences, seed=seed),
        interval=bca_interval(differences, seed=seed),
        smallest_detectable_gain=smallest_detectable_gain(differences),
        fixed=tuple(index for index, before, after in pairs if before < threshold <= after),
        broken=tuple(index for index, before, after in pairs if after < threshold <= before),
    )


def sign_flip_p_value(differences: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided paired permutation test of a mean difference of 0 (Fisher 1935; scipy's `permutation_test`).

    Exact if the non-zero differences have at most 9,999 sign patterns. Otherwise 9,999 random patterns are
    drawn, and 1 is added to numerator and denominator (Phipson & Smyth 2010), so the value is never 0.
    """
    changed = np.asarray([value for value in differences if abs(value) > _NOISE])
    if changed.size < 2:  # flipping the sign of a single difference doesn't change its size
        return 1.0
    result = stats.permutation_test(
        (changed,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(min(1.0, result.pvalue))


def bca_interval(differences: Sequence[float], *, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987; scipy's `bootstrap`).

    If all differences are equal, the interval is that single value: the bootstrap sees no variation. With
    few examples this understates the uncertainty.
    """
    values = np.asarray(differences, dtype=float)
    if values.size < 2 or np.ptp(values) <= _NOISE:
        return Interval(float(np.mean(values)), float(np.mean(values)))
    interval = stats.bootstrap(
        (values,),
        _mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


def smallest_detectable_gain(differences: Sequence[float]) -> float:
    """The smallest true mean gain that a test at the 5% level detects with 80% power on this many examples.

    (z₁₋α⸝₂ + z₁₋β) · s / √n, with s the standard deviation of these differences (Cohen 1988, paired means);
    never below 6 / n, since fewer than 6 changed examples can't reach 5% in a sign-flip test of 0/1 scores.
    """
    count = len(differences)
    deviation = float(np.std(differences, ddof=1)) if count > 1 else 0.0
    normal = (stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER)) * deviation / math.sqrt(count)
    return float(min(1.0, max(normal, _FLIPS_NEEDED / count)))


def gain_that_can_show(examples: int, changed: float = 0.25) -> float:
    """`smallest_detectable_gain` estimated before anything has been measured.

    Assumes 0/1 scores, of which the share `changed` differs between baseline and winner, apart from the gain
    equally often in either direction. The standard deviation of a difference is then at most √changed; the
    rest is as in `smallest_detectable_gain`.
    """
    normal = (stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER)) * math.sqrt(changed / examples)
    return float(min(1.0, max(normal, _FLIPS_NEEDED / examples)))


def _mean(values: "np.ndarray", axis: int = -1) -> "np.ndarray":
    return np.asarray(np.mean(values, axis=axis))
