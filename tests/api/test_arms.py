"""Two versions: shares, stickiness, and what a comparison proves."""

import math
import random

import numpy as np
import pytest

from agentcore.api._arms import (
    ALPHA,
    BUCKETS,
    ArmCounter,
    ArmTotals,
    Tally,
    always_valid,
    arm_of,
    bucket_of,
    claims_of,
    compared,
    pair_stream,
)
from agentcore.api._events import FeedbackGiven


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_shares_and_stickiness(share):
    keys = [f"customer-{number}" for number in range(10_000)]
    arms = {key: arm_of("loan", "7", key, share) for key in keys}
    found = sum(arm == "challenger" for arm in arms.values()) / len(keys)
    assert abs(found - share) < 0.01
    assert all(arm_of("loan", "7", key, share) == arm for key, arm in arms.items())


def test_a_growing_share_moves_no_key_back():
    keys = [f"k{number}" for number in range(2_000)]
    before = {key for key in keys if arm_of("loan", "7", key, 0.1) == "challenger"}
    after = {key for key in keys if arm_of("loan", "7", key, 0.3) == "challenger"}
    assert before < after
    # Another challenger, and another agent, try other keys.
    other = {key for key in keys if arm_of("loan", "8", key, 0.1) == "challenger"}
    assert len(before & other) < 0.3 * len(before)


def test_buckets_are_independent_of_arms():
    keys = [f"k{number}" for number in range(20_000)]
    challenger = [bucket_of(key) for key in keys if arm_of("loan", "7", key, 0.1) == "challenger"]
    counts = np.bincount(challenger, minlength=BUCKETS)
    assert counts.min() > 5
    assert counts.max() < 45


def tallied(*events):
    tally = Tally()
    for event in events:
        tally.add(event)
    return tally


def totals(rng, requests, rate, milliseconds=100.0, keys=None, spread=0.0):
    """A version's totals. With `keys`, each of them has its own rate."""
    counter = ArmCounter()
    names = [f"k{rng.randrange(keys)}" if keys else str(rng.random()) for _ in range(requests)]
    own = {name: min(1.0, max(0.0, rng.gauss(rate, spread))) for name in names}
    for name in names:
        failed = rng.random() < own[name]
        counter.add("1", name, None if failed else milliseconds * math.exp(rng.gauss(0, 0.5)))
    return tallied(counter.event()).totals("1")


def test_a_real_difference_is_proven_and_none_is_not():
    rng = random.Random(1)
    same = claims_of(totals(rng, 9_000, 0.05), totals(rng, 1_000, 0.05))
    assert [item.verdict for item in same] == ["not proven"] * 3
    worse = claims_of(totals(rng, 9_000, 0.05), totals(rng, 1_000, 0.15, milliseconds=150))
    error, latency, score = worse
    assert (error.verdict, latency.verdict) == ("worse", "worse")
    assert error.low < 0.10 < error.high
    assert latency.low < 0.5 < latency.high
    assert (score.verdict, score.note) == (
        "not proven",
        "needs 100 ratings of each version, spread over at least 20 buckets of keys",
    )
    better = claims_of(totals(rng, 9_000, 0.15), totals(rng, 1_000, 0.05))[0]
    assert better.verdict == "better"


def test_a_claim_and_its_interval_never_contradict_each_other():
    rng = random.Random(2)
    for _ in range(300):
        difference, variance = rng.gauss(0, 0.02), 10 ** rng.uniform(-6, -3)
        p_value, half = always_valid(difference, variance, 0.05, ALPHA)
        assert (p_value < ALPHA) == (abs(difference) > half)


def test_looking_again_and_again_finds_nothing_where_nothing_is():
    """A look after every 200 requests: a test for one look would cry wolf in about a quarter of these."""
    rng, alarms, naive = random.Random(3), 0, 0
    for _ in range(60):
        sums = [np.zeros((3, BUCKETS)) for _ in range(2)]
        alarm = fooled = False
        for look in range(25):
            for requests, arm in ((180, sums[0]), (20, sums[1])):
                for _ in range(requests):
                    bucket = rng.randrange(BUCKETS)
                    arm[0][bucket] += 1
                    arm[1][bucket] += rng.random() < 0.1
            zero = np.zeros(BUCKETS)
            old, new = (ArmTotals(arm[0], arm[1], zero, zero, zero) for arm in sums)
            alarm |= claims_of(old, new)[0].verdict != "not proven"
            rates = [arm[1].sum() / arm[0].sum() for arm in sums]
            error = math.sqrt(
                sum(rate * (1 - rate) / arm[0].sum() for rate, arm in zip(rates, sums, strict=True))
            )
            fooled |= look >= 5 and error > 0 and abs(rates[0] - rates[1]) / error > 1.96
        alarms, naive = alarms + alarm, naive + fooled
    assert alarms <= 3
    assert naive >= 8


def test_requests_of_one_key_are_no_independent_evidence():
    """30 customers, each with a rate of its own: what looks proven by requests is a matter of who came."""
    rng, alarms = random.Random(4), 0
    for _ in range(40):
        old, new = (totals(rng, n, 0.3, keys=k, spread=0.25) for n, k in ((3_000, 60), (1_500, 30)))
        alarms += claims_of(old, new)[0].verdict != "not proven"
    assert alarms <= 3


def test_a_small_arm_without_the_bad_keys_proves_nothing():
    """One key in twenty always fails. A challenger with 1% of the keys may by chance have none of them."""
    rng, alarms = np.random.default_rng(5), 0
    for _ in range(300):
        bad = rng.random(5_000) < 0.05
        challenger = rng.random(5_000) < 0.01
        buckets = rng.integers(BUCKETS, size=5_000)
        zero = np.zeros(BUCKETS)
        arms = []
        for mine in (~challenger, challenger):
            requests = 12.0 * np.bincount(buckets[mine], minlength=BUCKETS)
            errors = 12.0 * np.bincount(buckets[mine & bad], minlength=BUCKETS)
            arms.append(ArmTotals(requests, errors, zero, zero, zero))
        alarms += claims_of(*arms)[0].verdict != "not proven"
    assert alarms <= 9  # 3%; with the challenger's own variance alone, 8%


def test_no_error_in_a_small_arm_proves_nothing_soon():
    zero, even = np.zeros(BUCKETS), np.ones(BUCKETS)
    old = ArmTotals(99 * even, 5 * even, zero, zero, zero)
    new = ArmTotals(even, zero, zero, zero, zero)
    assert claims_of(old, new)[0].verdict == "not proven"


def test_another_share_begins_anew():
    """Rates that change over time would look like a difference if totals of two shares were added up."""
    before, after = (pair_stream("http://m", "loan", "1", "2", share) for share in (0.01, 0.5))
    assert before != after


def test_totals_over_processes_and_ratings():
    one, two = ArmCounter(), ArmCounter()
    one.add("1", "a", 10.0)
    early = one.event()
    one.add("1", "b", None)
    two.add("1", "c", 1000.0)
    two.add("2", "d", 1.0)
    assert one.event() is not None
    assert one.event() is None  # nothing is new
    one.keep()
    rated = [
        FeedbackGiven(request_id="r", version="1", bucket=3, score=0.0),
        FeedbackGiven(request_id="r", version="1", bucket=3, score=1.0),
        FeedbackGiven(request_id="s", version="2", bucket=4, score=0.5),
    ]
    found = compared(
        "loan", 0.1, {"champion": "1", "challenger": "2"}, tallied(early, one.event(), two.event(), *rated)
    )
    assert (found.champion.requests, found.champion.errors) == (3, 1)
    assert found.champion.latency_ms == pytest.approx(100.0, rel=1e-3)
    assert (found.champion.ratings, found.champion.score) == (1, 1.0)
    assert (found.challenger.requests, found.challenger.score) == (1, 0.5)
    assert found.summary == "version 2 against version 1: no difference is proven"


def test_without_a_challenger():
    found = compared("loan", 0.1, {"champion": "1"}, Tally())
    assert (found.champion, found.summary) == (None, "there is no challenger")
