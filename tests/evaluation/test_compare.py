"""Paired comparisons: what is claimed about a gain, and in one word."""

import math
import random

import pytest

from agentcore.errors import DataError
from agentcore.evaluation import (
    EvaluationReport,
    ExampleRecord,
    claims,
    compare,
    paired,
    score_interval,
    verdict_of,
)


def record(index, score, *, latency=1.0, cost=0.0, cache_hits=0, draws=1):
    return ExampleRecord(
        index, f"digest {index}", {}, score, None, latency, 1, 1, cost, 1, cache_hits, draws=draws
    )


def report(scores, threshold=0.5, **values):
    records = tuple(record(index, score, **values) for index, score in enumerate(scores))
    return EvaluationReport(records, threshold)


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


def test_an_lm_that_fails_on_wrong_examples_improves_nothing():
    """Ten examples without an answer of the winner are in neither program's figures."""
    before = [1.0] * 40 + [0.0] * 20
    after = [1.0] * 40 + [0.0] * 10 + [None] * 10
    baseline, optimized, _ = paired(report(before), report(after))
    assert baseline.metrics.quality_score == optimized.metrics.quality_score == 0.8


@pytest.mark.parametrize(
    ("fixed", "broken", "verdict"),
    [(6, 0, "better"), (5, 0, "not proven"), (0, 6, "worse"), (20, 19, "not proven")],
)
def test_the_verdict_is_one_word(fixed, broken, verdict):
    rest = 60 - fixed - broken
    found = compare(
        report([0.0] * fixed + [1.0] * broken + [1.0] * rest),
        report([1.0] * fixed + [0.0] * broken + [1.0] * rest),
    )
    assert found.verdict == verdict
    assert found.method == "exact"


def test_what_is_not_proven_says_how_many_examples_would_show_it():
    found = compare(report([0.0] * 60), report([1.0] * 5 + [0.0] * 55))
    # 80% power for 5 of 60 fixed and none broken: P(Bin(96, 1/12) ≥ 6) is about 0.8.
    assert found.examples_needed == pytest.approx(96, abs=3)
    assert compare(report([1.0] * 60), report([0.0] * 3 + [1.0] * 57)).examples_needed is None
    assert compare(report([0.0] * 60), report([1.0] * 60)).examples_needed is None


def test_graded_scores_are_tested_by_their_mean():
    """+0.05 in 54 of 60 examples and −0.45 in the others is no gain; a sign-flip test would see one."""
    before = [0.5] * 60
    found = compare(report(before), report([0.55] * 54 + [0.05] * 6))
    assert found.method == "mean"
    assert found.difference == pytest.approx(0.0)
    assert found.verdict == "not proven"
    assert compare(report(before), report([0.7] * 50 + [0.6] * 10)).verdict == "better"


def test_clusters_are_the_units():
    """Twelve of 120 examples fixed, all of them in one cluster of twelve: one conversation is no proof."""
    before, after = [0.0] * 120, [1.0] * 12 + [0.0] * 108
    assert compare(report(before), report(after)).verdict == "better"
    clusters = [index // 12 for index in range(120)]
    found = compare(report(before), report(after), clusters=clusters)
    assert (found.method, found.verdict, found.clusters) == ("clusters", "not proven", 10)
    spread = [1.0 if index % 10 == 0 else 0.0 for index in range(120)]
    assert compare(report(before), report(spread), clusters=clusters).verdict == "better"
    # A cluster of one example each is no clustering.
    assert compare(report(before), report(after), clusters=range(120)).method == "exact"


def test_fewer_than_six_clusters_prove_nothing():
    found = compare(report([0.0] * 100), report([1.0] * 100), clusters=[index // 20 for index in range(100)])
    assert (found.p_value, found.interval, found.verdict) == (1.0, (-1.0, 1.0), "not proven")


def test_every_figure_has_its_own_p_value():
    """Cost halved while quality falls from 0.8 to 0.6: each says so, and the whole is worse."""
    before = report([1.0] * 80 + [0.0] * 20, cost=0.002)
    after = report([1.0] * 60 + [0.0] * 40, cost=0.001)
    quality, cost = claims(before, after, ["avg_cost"])
    assert (quality.figure, quality.verdict) == ("quality_score", "worse")
    assert (cost.figure, cost.verdict) == ("avg_cost", "better")
    assert cost.gain == pytest.approx(0.001)
    assert quality.p_value != cost.p_value
    assert verdict_of([quality, cost], ["avg_cost"]) == "worse"


def test_cheaper_is_better_only_if_quality_is_kept():
    same = [float(index % 2) for index in range(100)]
    cheaper = claims(report(same, cost=0.002), report(same, cost=0.001), ["avg_cost"])
    assert verdict_of(cheaper, ["avg_cost"]) == "better"
    # 20 examples can't rule out that quality fell by 0.05.
    few = claims(report(same[:20], cost=0.002), report(same[:20], cost=0.001), ["avg_cost"])
    assert verdict_of(few, ["avg_cost"]) == "not proven"
    both = claims(report(same, cost=0.002), report(same, cost=0.001), ["quality_score", "avg_cost"])
    assert verdict_of(both, ["quality_score", "avg_cost"]) == "not proven"


def test_latency_is_compared_as_a_ratio_of_pairs_that_asked_the_model():
    rng = random.Random(0)
    slow, fast = [], []
    for index in range(60):
        base = math.exp(rng.gauss(6, 1))  # examples differ far more than the programs
        hit = index % 10 == 0
        slow.append(record(index, 1.0, latency=base * rng.uniform(0.95, 1.05)))
        fast.append(record(index, 1.0, latency=base * rng.uniform(0.76, 0.84), cache_hits=int(hit)))
    _, latency = claims(
        EvaluationReport(tuple(slow), 0.5), EvaluationReport(tuple(fast), 0.5), ["avg_latency_ms"]
    )
    assert latency.examples == 54
    assert latency.gain == pytest.approx(0.2, abs=0.02)
    assert latency.interval.low < latency.gain < latency.interval.high
    assert latency.verdict == "better"


def test_the_cost_of_repeated_examples_is_per_run():
    assert report([1.0] * 6, cost=0.003, draws=3).metrics.avg_cost == pytest.approx(0.001)


def test_the_interval_of_a_score_holds_its_mean():
    low, high = score_interval(report([1.0] * 9 + [0.0]))
    assert 0.4 < low < 0.9 < high <= 1.0
    assert score_interval(report([1.0] * 40 + [None])).high == 1.0
    assert score_interval(report([0.0] * 40)).low == 0.0
    few, many = score_interval(report([1.0, 0.0] * 10)), score_interval(report([1.0, 0.0] * 200))
    assert many.low > few.low
