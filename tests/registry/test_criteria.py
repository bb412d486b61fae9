"""What the gate concludes from measured examples."""

import math
from dataclasses import replace

import pytest

from agentcore.errors import ConfigurationError
from agentcore.evaluation import EvaluationReport, ExampleRecord
from agentcore.registry import GatePolicy, Look, Side, judge, read_policy, verdict_of


def side(scores, *, cost=0.01, latency=100.0, tokens=10, extra=None):
    def at(values, number):
        return values[number] if isinstance(values, list) else values

    records = tuple(
        ExampleRecord(
            index=number,
            digest=str(number),
            prediction={},
            score=score,
            feedback=None,
            latency_ms=at(latency, number),
            input_tokens=at(tokens, number),
            output_tokens=0,
            cost_usd=at(cost, number),
            lm_calls=1,
            cache_hits=0,
            failed="lm" if score is None else None,
        )
        for number, score in enumerate(scores)
    )
    return Side(EvaluationReport(records, 0.5), extra or {})


def look(challenger, champion, anchor=None, clusters=None, alpha=0.005, **options):
    return Look(challenger, champion, anchor, clusters, alpha, **options)


def outcomes(criteria):
    return {item.name: item.outcome for item in criteria}


def mixed(better, worse, same, base=0.5):
    """Scores of two programs: of the `same` unchanged examples, the share `base` is right."""
    right = round(same * base)
    new = [1.0] * better + [0.0] * worse + [1.0] * right + [0.0] * (same - right)
    old = [0.0] * better + [1.0] * worse + [1.0] * right + [0.0] * (same - right)
    return new, old


def noisy(count, level=100.0):
    return [level * (1 + 0.1 * ((number * 7) % 5 - 2)) for number in range(count)]


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [(60, 10, "promote"), (20, 20, "reject"), (5, 40, "reject"), (34, 14, "inconclusive")],
)
def test_three_verdicts(better, worse, verdict):
    new, old = mixed(better, worse, 200 - better - worse)
    sides = side(new, latency=noisy(200)), side(old, latency=noisy(200))
    found = judge(look(*sides, alpha=0.001), GatePolicy())
    assert verdict_of(found) == verdict
    gain = found[0]
    if verdict == "inconclusive":
        assert gain.more_examples
    if verdict == "promote":
        assert gain.figures["gain_low"] > 0


def test_an_outage_doesnt_help_the_challenger():
    new, old = mixed(60, 10, 130)
    for failing in (range(60), range(70, 130)):
        missing = [None if number in failing else score for number, score in enumerate(old)]
        found = judge(look(side(new), side(missing)), GatePolicy(delta={}))
        gain = found[0].figures["gain"]
        assert gain <= 0.25
    gone = [None if number < 60 else score for number, score in enumerate(new)]
    assert judge(look(side(gone), side(old)), GatePolicy(delta={}))[0].outcome == "failed"


def test_guards():
    new, old = mixed(60, 10, 130)
    base = side(old, latency=noisy(200))
    policy = GatePolicy()
    cost, latency = "avg_cost against the champion", "avg_latency_ms against the champion"
    dear = judge(look(side(new, cost=0.015, latency=noisy(200)), base), policy)
    assert outcomes(dear)[cost] == "failed"
    assert "+50.0%" in dear[1].text
    slow = judge(look(side(new, latency=noisy(200, 150.0)), base), policy)
    assert outcomes(slow)[latency] == "failed"
    wild = [100.0 * (3 if number % 9 == 0 else 1) for number in range(200)]
    unclear = judge(look(side(new, latency=wild), base), policy)
    assert outcomes(unclear)[latency] == "undecided"
    assert verdict_of(unclear) == "inconclusive"
    unpriced = judge(
        look(side(new, cost=None, tokens=30, latency=noisy(200)), side(old, cost=None, latency=noisy(200))),
        policy,
    )
    assert outcomes(unpriced)[cost] == "failed"
    assert "30 tokens" in unpriced[1].text
    first = judge(look(side(new, cost=0.9), base, first=True), policy)
    assert outcomes(first) == {"quality_score": "passed"}
    assert "better than the original program" in first[0].text
    cached = judge(look(side(new, latency=None), side(old, latency=None)), policy)
    assert outcomes(cached)[latency] == "undecided"


def test_many_small_losses_against_the_first_champion():
    """Each successor is better than its champion, and the last is worse than the first."""
    new, old = mixed(60, 10, 130)
    first = [1.0] * 200
    found = judge(look(side(new), side(old), side(first)), GatePolicy(delta={}))
    assert outcomes(found) == {
        "quality_score": "passed",
        "quality_score against the first champion": "failed",
    }
    assert verdict_of(found) == "reject"
    found = judge(look(side(new), side(old), side(old)), GatePolicy(delta={}))
    assert verdict_of(found) == "promote"


def test_further_metrics():
    new, old = mixed(60, 10, 130)
    policy = GatePolicy(delta={"safe": 0.05}, metrics={"safe": "exact_match"})
    fine = {"safe": [1.0] * 200}
    found = judge(look(side(new, extra=fine), side(old, extra=fine)), policy)
    assert outcomes(found)["safe against the champion"] == "passed"
    worse = {"safe": [0.0] * 40 + [1.0] * 160}
    found = judge(look(side(new, extra=worse), side(old, extra=fine)), policy)
    assert outcomes(found)["safe against the champion"] == "failed"


def test_bounds_of_the_figures():
    new, old = mixed(60, 10, 130)
    policy = GatePolicy(delta={}, slo={"quality_score": 0.9, "avg_latency_ms": 120.0, "avg_cost": 0.001})
    found = outcomes(judge(look(side(new), side(old)), policy))
    assert found["slo quality_score"] == "failed"
    assert found["slo avg_latency_ms"] == "passed"
    assert found["slo avg_cost"] == "failed"
    missing = judge(look(side(new, latency=None), side(old)), policy)
    assert outcomes(missing)["slo avg_latency_ms"] == "failed"


def test_clusters_and_graded_scores():
    new, old = mixed(100, 5, 95)
    ten = tuple(number % 20 for number in range(200))
    assert judge(look(side(new), side(old), None, ten), GatePolicy(delta={}))[0].outcome == "passed"
    forty = tuple(number // 40 for number in range(200))
    assert judge(look(side(new), side(old), None, forty), GatePolicy(delta={}))[0].outcome != "passed"
    better, base = [0.6, 0.8] * 100, [0.4, 0.5] * 100
    assert judge(look(side(better), side(base)), GatePolicy(delta={}))[0].outcome == "passed"
    by_success = GatePolicy(delta={}, figure="success_rate")
    assert judge(look(side(better), side(base)), by_success)[0].figures["gain"] == pytest.approx(0.5)


def test_policies(tmp_path, monkeypatch):
    assert read_policy() == GatePolicy()
    (tmp_path / "pyproject.toml").write_text("[tool.agentcore.gate]\nmargin = 0.1\n")
    assert read_policy().margin == 0.1
    (tmp_path / "gate.toml").write_text("margin = 0.2\n[delta]\navg_cost = 0.5\n[slo]\nquality_score = 0.8\n")
    policy = read_policy()
    assert (policy.margin, policy.delta, policy.slo) == (0.2, {"avg_cost": 0.5}, {"quality_score": 0.8})
    (tmp_path / "own.toml").write_text("[metrics]\ntone = 'pkg.metrics:tone'\n[delta]\ntone = 0.05\n")
    assert read_policy("own.toml").metrics == {"tone": "pkg.metrics:tone"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("margn = 0.1", "did you mean margin?"),
        ("margin = 2", "margin"),
        ("[delta]\navg_cost = -1", "use a number above 0"),
        ("[delta]\ntone = 0.1", "delta of tone"),
        ("[metrics]\ntone = 'a:b'", "metrics tone"),
        ("margin = ", "can't be read"),
    ],
)
def test_wrong_policies(tmp_path, text, told):
    (tmp_path / "gate.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=told.replace("?", r"\?")):
        read_policy()
    with pytest.raises(ConfigurationError, match=r"nowhere.toml: No such file"):
        read_policy("nowhere.toml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tool.agentcore.gate]\nslo = {quality_score = 0,9}", "can't be read"),
        ("[tool]\nagentcore = 1", "must be a table"),
        ("[tool.agentcore]\ngate = 1", "must be a table"),
        ("[tool.agentcore.gates]\nmargin = 0.1", "tool.agentcore.gates. is unknown"),
        ("[tool.agentcore.gate]\nmargn = 0.1", "did you mean margin"),
    ],
)
def test_a_wrong_table_is_no_default(tmp_path, text, told):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        read_policy()


def test_a_policy_from_a_dict():
    assert read_policy({"margin": 0.1}).margin == 0.1
    with pytest.raises(ConfigurationError, match="did you mean margin"):
        read_policy({"margn": 0.1})


def test_a_refusal_does_not_tell_the_p_value():
    told = set()
    for better in (19, 20, 21, 22, 23):
        new, old = mixed(better, 8, 113 + 20 - better)
        told.add(judge(look(side(new), side(old)), GatePolicy(delta={}), coarse=True)[0].more_examples)
    quarters = {math.ceil(len(new) * 2.0**power) for power in range(-2, 6)}
    assert told <= {None, *quarters}


def partly(scores, lm_failures, draws):
    """Records of repeated runs, some of which the LM failed."""
    records = [
        replace(record, score=score, draws=draws, lm_failures=lost)
        for record, score, lost in zip(side(scores).report.records, scores, lm_failures, strict=True)
    ]
    return Side(EvaluationReport(tuple(records), 0.5))


def test_an_outage_in_some_of_the_runs_does_not_help():
    # The challenger is right in half of 6 runs, and the LM fails those in which it would be wrong.
    whole, lucky = partly([0.5] * 100, [0] * 100, 6), partly([1.0] * 100, [3] * 100, 6)
    champion = partly([0.7] * 100, [0] * 100, 6)
    expected = judge(look(whole, champion), GatePolicy(delta={}))[0]
    found = judge(look(lucky, champion), GatePolicy(delta={}))[0]
    assert found.figures["gain"] == pytest.approx(expected.figures["gain"]) == pytest.approx(-0.2)
    # The champion's lost runs count as right ones.
    lost = judge(look(whole, partly([0.7] * 100, [3] * 100, 6)), GatePolicy(delta={}))[0]
    assert lost.figures["gain"] == pytest.approx(0.5 - 0.85)
