"""The tests behind a verdict, against figures computed otherwise. benchmarks/proof has the simulations."""

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats

from agentcore.evaluation import (
    exact_power,
    exact_test,
    examples_needed,
    mean_interval,
    paired_test,
    smallest_detectable_gain,
)
from agentcore.evaluation._statistics import bonett_price, flip_p_value


def brute_force(totals):
    """Every assignment of signs, counted in the observed direction and doubled."""
    observed = sum(totals)
    sums = [
        sum(sign * value for sign, value in zip(signs, totals, strict=True))
        for signs in itertools.product((1, -1), repeat=len(totals))
    ]
    above = sum(value >= observed - 1e-9 for value in sums) / len(sums)
    below = sum(value <= observed + 1e-9 for value in sums) / len(sums)
    return min(1.0, 2 * min(above, below))


@pytest.mark.parametrize(("fixed", "broken"), [(47, 29), (6, 0), (5, 1), (0, 0), (12, 12), (3, 40)])
def test_0_1_scores_are_tested_by_the_binomial(fixed, broken):
    changed = fixed + broken
    larger = max(fixed, broken)
    tail = sum(math.comb(changed, count) for count in range(larger, changed + 1)) / 2**changed
    found = paired_test([1.0] * fixed + [-1.0] * broken + [0.0] * 40)
    assert found.method == "exact"
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    if (fixed, broken) == (47, 29):  # .0505: by resampling, 41 of 100 seeds say less than .05
        assert found.p_value == pytest.approx(0.0505, abs=0.0001)


def test_bonett_and_price_give_their_interval():
    """(b + 1)/(n + 2) = 7/62 and 3/62: 4/62 ± 1.96·√((10/62 − (4/62)²)/62)."""
    low, high = bonett_price(6, 2, 60)
    half = 1.959964 * math.sqrt((10 / 62 - (4 / 62) ** 2) / 62)
    assert (low, high) == (pytest.approx(4 / 62 - half), pytest.approx(4 / 62 + half))


def test_p_value_and_interval_never_contradict_each_other_for_0_1_scores():
    for examples in (6, 13, 40, 200, 1000):
        for fixed in range(0, min(examples, 60)):
            for broken in range(0, min(examples - fixed, 60)):
                found = exact_test(fixed, broken, examples)
                excludes = found.interval.low > 0 or found.interval.high < 0
                assert (found.p_value < 0.05) == excludes, (fixed, broken, examples)
                assert found.interval.low <= found.difference <= found.interval.high


@pytest.mark.parametrize("clustered", [False, True])
def test_nor_for_graded_and_clustered_ones(clustered):
    rng = np.random.default_rng(5)
    verdicts = set()
    for _ in range(400):
        count = int(rng.integers(6, 80))
        values = rng.choice([-1, -0.5, 0, 0.25, 0.7, 1], count, p=rng.dirichlet(np.ones(6)))
        clusters = list(rng.integers(0, rng.integers(6, 30), count)) if clustered else None
        found = paired_test(values, clusters)
        excludes = found.interval.low > 1e-12 or found.interval.high < -1e-12
        assert (found.p_value < 0.05) == excludes
        assert found.interval.low <= found.difference <= found.interval.high
        verdicts.add(found.verdict)
    assert verdicts == {"better", "worse", "not proven"}


@pytest.mark.parametrize("seed", range(6))
def test_flipping_whole_clusters_is_exact(seed):
    rng = random.Random(seed)
    totals = [rng.choice([-3, -1, 0, 2, 4, 5]) for _ in range(10)]
    assert flip_p_value(np.array(totals, dtype=float)) == pytest.approx(brute_force(totals))
    graded = [rng.uniform(-2, 3) for _ in range(10)]
    assert flip_p_value(np.array(graded)) == pytest.approx(brute_force(graded), abs=0.01)
    assert flip_p_value(np.array(graded)) >= brute_force(graded) - 1e-9


def test_rounding_errors_are_no_differences():
    assert paired_test([0.1 + 0.2 - 0.3] * 10).p_value == 1.0
    assert paired_test([0.1 + 0.2 - 0.3] * 10 + [1.0] * 6).method == "exact"


@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.45), (0.11, 0.99), (0.2, 0.8)])
def test_a_skewed_mean_of_0_is_rarely_called_better(gain, loss):
    """Rare large losses pay for frequent small gains: at most 2.5% may be called better."""
    rng = np.random.default_rng(11)
    share = gain / (gain + loss)
    called = sum(
        paired_test(np.where(rng.random(60) < share, -loss, gain)).verdict == "better" for _ in range(600)
    )
    assert called <= 24  # 15 are expected at 2.5%; 24 is beyond the 99th percentile


def test_losses_too_rare_to_have_been_seen_are_allowed_for():
    """60 gains of 0.05 may hide a loss of 0.95 in one of twenty: no gain is proven by them."""
    assert paired_test([0.05] * 60).verdict == "not proven"
    assert paired_test([0.2] * 60).verdict == "better"


def test_exact_power_adds_up_what_the_test_does():
    """Against all outcomes of 30 examples, one by one."""
    up, down = 0.3, 0.1
    expected = 0.0
    for fixed in range(31):
        for broken in range(31 - fixed):
            if exact_test(fixed, broken, 30).verdict == "better":
                expected += stats.multinomial.pmf([fixed, broken, 30 - fixed - broken], 30, [up, down, 0.6])
    assert exact_power(30, up, down) == pytest.approx(expected)


def test_the_smallest_detectable_gain_has_80_percent_power():
    """200 examples, 3 broken: 0.061, where the normal approximation says 0.034, whose power is 0.39."""
    gain = smallest_detectable_gain([-1.0] * 3 + [1.0] * 3 + [0.0] * 194)
    assert gain == pytest.approx(0.061, abs=0.001)
    assert exact_power(200, 0.034 + 0.015, 0.015) == pytest.approx(0.38, abs=0.02)
    assert smallest_detectable_gain([0.0] * 60) == pytest.approx(8 / 60, abs=0.01)
    assert smallest_detectable_gain([0.0] * 5) is None


def test_the_smallest_detectable_gain_of_graded_scores_is_found_that_often():
    rng = np.random.default_rng(3)
    gain = smallest_detectable_gain(rng.normal(0, 0.3, 100))
    found = sum(
        paired_test(np.clip(rng.normal(gain, 0.3, 100), -1, 1)).verdict == "better" for _ in range(300)
    )
    assert 0.73 < found / 300 < 0.87


def test_no_gain_needs_no_examples():
    assert examples_needed([0.0, -1.0, 1.0]) is None
    assert examples_needed([0.1, -0.2, 0.3] * 10) > 30


def test_the_interval_of_a_mean_covers_it():
    rng = np.random.default_rng(2)
    for chance in (0.1, 0.5, 0.95):
        inside = 0
        for _ in range(200):
            low, high = mean_interval(list((rng.random(40) < chance).astype(float)))
            inside += low <= chance <= high
        assert inside >= 183  # 95% of 200 is 190; 183 is below the first percentile
