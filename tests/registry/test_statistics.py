"""The gate's tests, its price and its power, against known values and simulation."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from agentcore.data import Dataset
from agentcore.registry import GatePolicy
from agentcore.registry._gate import LookPlan, plan_look
from agentcore.registry._price import Expected, _power, examples_for, price
from agentcore.registry._state import RegistryState
from agentcore.registry._tests import (
    betting_p_value,
    gain_interval,
    gain_p_value,
    increase_p_value,
    loss_p_value,
    tango_p_value,
)


def binary(better, worse, same):
    return [1.0] * better + [-1.0] * worse + [0.0] * same


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (47, 29), (3, 3), (1, 9)])
def test_exact(better, worse):
    expected = sum(math.comb(better + worse, n) for n in range(better, better + worse + 1))
    expected /= 2 ** (better + worse)
    assert gain_p_value(binary(better, worse, 10)) == pytest.approx(expected)


@pytest.mark.parametrize(("share", "lost", "won"), [(0.1, 9, 1), (0.2, 4, 1), (0.5, 1, 1)])
def test_clusters_without_a_gain_are_not_promoted(share, lost, won):
    """Ten questions about each document, of which a share loses `lost` and the others win `won`: flipping
    whole clusters promotes the first in 2 % of looks at α = 0.0015, because they are not symmetric."""
    rng, rejected = np.random.default_rng(7), 0
    clusters = [number // 10 for number in range(300)]
    for _ in range(2000):
        broken = rng.random(30) < share
        totals = np.where(broken, -lost, won)
        values = np.concatenate([np.sign(total) * (np.arange(10) < abs(total)) for total in totals])
        rejected += gain_p_value(list(values), clusters) <= 0.01
    assert rejected / 2000 <= 0.01
    gained = [1.0 if number % 10 < 4 else 0.0 for number in range(300)]
    assert gain_p_value(gained, clusters) < 0.001


def test_betting_doesnt_depend_on_the_order_and_is_valid():
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(2000):
        # +.05 in 90 % and −.45 in 10 %: mean 0, which a sign-flip test takes for a gain
        values = np.where(rng.random(200) < 0.9, 0.05, -0.45)
        p = betting_p_value(values)
        assert betting_p_value(rng.permutation(values)) == pytest.approx(p)
        rejected += p <= 0.05
    assert rejected / 2000 <= 0.05
    assert betting_p_value(np.full(100, 0.2)) < 1e-4
    assert betting_p_value(np.full(100, -0.2)) == 1.0


def test_tango():
    # Tango (1998), table 3: 43 pairs, b = 1 and c = 0 discordant; the score test at δ = 0.1
    n, b, c, delta = 43, 1, 0, 0.1
    a2, b2 = 2 * n, -(b + c) - delta * (2 * n - b + c)
    q = (math.sqrt(b2 * b2 - 4 * a2 * c * delta * (1 + delta)) - b2) / (2 * a2)
    z = (b - c + n * delta) / math.sqrt(n * (2 * q - delta * (1 + delta)))
    assert tango_p_value(b, c, n, delta) == pytest.approx(stats.norm.sf(z))
    assert tango_p_value(0, 20, 200, 0.05) > 0.5
    assert tango_p_value(10, 10, 400, 0.1) < 0.001


def test_tango_is_valid_at_the_margin():
    rng, rejected = np.random.default_rng(5), 0
    for _ in range(4000):
        draws = rng.random(200)
        better, worse = int((draws < 0.05).sum()), int(((draws >= 0.05) & (draws < 0.25)).sum())
        rejected += loss_p_value(binary(better, worse, 200 - better - worse), 0.15) <= 0.05
    assert rejected / 4000 < 0.065  # asymptotic
    graded = [0.3, -0.2, 0.1] * 60
    assert loss_p_value(graded, 0.1) < 0.05


def test_increase():
    rng = np.random.default_rng(7)
    old = rng.lognormal(0, 0.2, 200)
    assert increase_p_value(old * 1.05, old, 0.2, logarithms=True) < 0.001
    assert increase_p_value(old * 1.4, old, 0.2, logarithms=False) > 0.99
    assert increase_p_value([1.0, 1.0], [1.0, 1.0], 0.2, logarithms=True) == 0.0
    clusters = [number // 10 for number in range(200)]
    assert increase_p_value(old, old, 0.2, logarithms=False, clusters=clusters) < 0.001
    assert increase_p_value([1.0], [1.0], 0.2, logarithms=True) == 1.0


@pytest.mark.parametrize(
    ("broken", "power"),
    [(0.05, 0.96), (0.1, 0.84), (0.175, 0.64)],  # .25, .35, .5 of the examples differ
)
def test_power_at_a_price(broken, power):
    assert _power(200, broken + 0.15, broken, 0.005) == pytest.approx(power, abs=0.006)


def test_price():
    expected = Expected(0.1)
    cost = price(200, 0.15, 0.8, expected)
    assert round(0.05 / cost) in (14, 15)
    assert int(0.05 / price(300, 0.15, 0.8, expected)) == pytest.approx(255, abs=10)
    assert price(20, 0.15, 0.8, expected) == 1.0 or price(20, 0.15, 0.8, expected) > 0.05
    needed = examples_for(cost, 0.15, 0.8, expected)
    assert needed == pytest.approx(200, abs=4)
    clustered = Expected(0.1, cluster_size=10)
    assert examples_for(cost, 0.15, 0.8, clustered) > 3 * needed


def test_price_of_graded_scores():
    differences = np.random.default_rng(1).normal(0.1, 0.3, 100).clip(-1, 1)
    expected = Expected.of(list(differences))
    assert expected.differences is not None
    assert price(400, 0.15, 0.8, expected) < price(200, 0.15, 0.8, expected) < price(60, 0.15, 0.8, expected)


def test_intervals():
    values = binary(30, 10, 160)
    low, high = gain_interval(values, 0.95)
    assert low < 0.1 < high
    assert (low, high) == pytest.approx((0.0366, 0.1615), abs=0.003)
    graded = [0.2, 0.1, -0.1, 0.3] * 50
    low, high = gain_interval(graded, 0.95)
    assert low < 0.125 < high
    assert high - low < 0.2
    clustered = gain_interval(graded, 0.95, [number // 10 for number in range(200)])
    assert clustered.low <= low
    assert clustered.high >= high


@pytest.mark.parametrize("differences", [[1.0, -1.0] * 30 + [0.0] * 90, [0.1, -0.2] * 40])
def test_a_look_at_clusters_takes_more_examples(differences):
    rows = [{"question": f"q{n}", "answer": "a", "group": f"g{n // 10}"} for n in range(3000)]
    plans = []
    for cluster in (None, "group"):
        data = Dataset.from_rows(rows, input_fields=["question"], cluster=cluster)
        candidate = SimpleNamespace(
            run_id="r", validation_differences=differences, splits=SimpleNamespace(sealed=data)
        )
        plan = plan_look("agent", RegistryState(), candidate, GatePolicy(), None)
        assert isinstance(plan, LookPlan), plan
        assert plan.alpha <= 0.05 / 20 * 1.2
        assert plan.unused == 3000 - len(plan.examples)
        plans.append(plan)
    plain, clustered = plans
    assert len(clustered.examples) > 2 * len(plain.examples)
    groups = [item.cluster for item in clustered.examples]
    assert all(groups.count(group) == 10 for group in set(groups))
