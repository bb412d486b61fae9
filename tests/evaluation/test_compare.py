import itertools
import math
import random

import numpy as np
import pytest

from agentcore.errors import DataError
from agentcore.evaluation import (
    EvaluationReport,
    ExampleRecord,
    bca_interval,
    compare,
    sign_flip_p_value,
    smallest_detectable_gain,
)


def report(scores, threshold=0.5):
    records = tuple(
        ExampleRecord(index, f"digest {index}", {}, score, None, 1.0, 1, 1, 0.0, 1, 0)
        for index, score in enumerate(scores)
    )
    return EvaluationReport(records, threshold)


def brute_force(differences):
    """Every assignment of signs, counted."""
    observed = abs(sum(differences)) - 1e-9
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    return sum(
        abs(sum(sign * value for sign, value in zip(pattern, differences, strict=True))) >= observed
        for pattern in patterns
    ) / len(patterns)


@pytest.mark.parametrize("seed", range(8))
def test_the_p_value_is_exact_for_few_examples(seed):
    rng = random.Random(seed)
    differences = [rng.choice([-1, 0, 0.5, 1, 1]) for _ in range(10)]
    assert sign_flip_p_value(differences) == pytest.approx(brute_force(differences))


def test_the_p_value_of_many_examples_matches_the_binomial():
    """40 wins and 20 losses of size 1: the sign-flip test is then the binomial sign test."""
    expected = 2 * sum(math.comb(60, wins) for wins in range(40, 61)) / 2**60
    assert sign_flip_p_value([1.0] * 40 + [-1.0] * 20, seed=1) == pytest.approx(expected, rel=0.25)


def test_the_p_value_holds_its_level_under_no_difference():
    rng = np.random.default_rng(0)
    small = sum(
        sign_flip_p_value(rng.choice([-1.0, 0.0, 1.0], 30), seed=trial) < 0.05 for trial in range(200)
    )
    assert small <= 20  # 5% of 200 is 10; 20 is beyond the 99.8th percentile


def test_no_difference_and_one_difference():
    assert sign_flip_p_value([0.0] * 20) == 1.0
    assert sign_flip_p_value([1.0] + [0.0] * 20) == 1.0
    assert sign_flip_p_value([1.0] * 6) == pytest.approx(2 / 64)
    assert sign_flip_p_value([1.0] * 60) > 0


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(7)
    inside = 0
    for trial in range(150):
        low, high = bca_interval(rng.choice([-1.0, 0.0, 1.0], 60, p=[0.1, 0.5, 0.4]), seed=trial)
        inside += low <= 0.3 <= high
    assert 133 <= inside <= 149  # 95% of 150 is 142.5


def test_the_interval_without_variation_is_the_value():
    assert bca_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert bca_interval([0.0]) == (0.0, 0.0)


def test_the_smallest_detectable_gain_is_found_that_often():
    """Simulated at just that gain, the test must find it in about 80% of repetitions."""
    rng = np.random.default_rng(3)
    pilot = rng.choice([-1.0, 0.0, 1.0], 100, p=[0.1, 0.6, 0.3])
    gain = smallest_detectable_gain(pilot)
    spread = float(np.std(pilot, ddof=1))
    found = sum(sign_flip_p_value(rng.normal(gain, spread, 100), seed=trial) < 0.05 for trial in range(150))
    assert 0.7 < found / 150 < 0.9


def test_the_smallest_detectable_gain_is_at_least_six_flips():
    assert smallest_detectable_gain([0.0] * 60) == pytest.approx(0.1)
    assert smallest_detectable_gain([0.0] * 3) == 1.0


def test_a_comparison_pairs_and_names_what_flipped():
    before = [0.0, 0.0, 1.0, 1.0, None, 0.0, 1.0, 0.0]
    after = [1.0, 1.0, 0.0, 1.0, 1.0, None, 1.0, 0.4]
    found = compare(report(before), report(after))
    assert found.examples == 6
    assert found.difference == pytest.approx((1 + 1 - 1 + 0 + 0 + 0.4) / 6)
    assert found.fixed == (0, 1)
    assert found.broken == (2,)
    assert found.interval.low <= found.difference <= found.interval.high
    assert compare(report(before), report(after)) == found


def test_nothing_to_pair():
    with pytest.raises(DataError, match="different examples"):
        compare(report([1.0]), report([1.0, 0.0]))
    with pytest.raises(DataError, match="no example was scored in both"):
        compare(report([None, 1.0]), report([1.0, None]))


def test_rounding_is_no_difference():
    assert sign_flip_p_value([0.1 + 0.2 - 0.3] * 10) == 1.0
    low, high = bca_interval([0.9 - 0.8] * 15 + [0.1] * 15)
    assert low == high == pytest.approx(0.1)
