"""What a look costs, on which examples, and what retires them."""

import dspy
import pytest

from agentcore.errors import ConfigurationError, DataError
from agentcore.registry import Registry
from tests.registry.conftest import AGENT, QUALITY, optimized
from tests.registry.test_crash import Died, Writes
from tests.support import colours


def rows(count, **more):
    words = (("moss", "green"), ("brick", "red"), ("butter", "yellow"))
    return [
        {"thing": f"{word} case {number}", "colour": colour, **more}
        for number in range(count // 3)
        for word, colour in words
    ]


async def test_twins_count_once(agent):
    registry = agent.registry()
    fifteen = rows(15)
    twins = [
        {**row, "thing": "".join(c.upper() if k >> i & 1 else c for i, c in enumerate(row["thing"]))}
        for row in fifteen
        for k in range(12)
    ]
    found = await registry.promote(agent.weak, data=twins)
    assert not found.promoted
    assert found.criteria[-1].figures["usable"] == 15
    sixty = rows(60)
    for data in (sixty, sixty + sixty, sixty + [{**row, "colour": "red"} for row in sixty]):
        planned = await registry.promote(agent.weak, data=data, policy=QUALITY, dry_run=True)
        assert planned.examples <= 60


async def test_the_programs_own_demonstrations_are_no_test(agent):
    registry = agent.registry()
    version = await registry.promote(agent.strong, policy=QUALITY)
    assert version.promoted
    from agentcore.dspy_optimization import MLflowTracker, candidate_of

    tracker = MLflowTracker(registry.experiments.stage_config("development"))
    candidate = await candidate_of(tracker, await tracker.find_run(agent.weak))
    demos = [dict(demo) for item in candidate.program.predictors() for demo in item.demos]
    shown = [{"thing": f"  {demo['thing'].upper()}.", "colour": demo["colour"]} for demo in demos]
    with pytest.raises(DataError, match="or its demonstrations"):
        await registry.promote(agent.weak, data=[*rows(60), *shown])


async def test_seen_examples_of_an_interrupted_look_are_retired(agent, monkeypatch):
    registry = agent.registry()
    with monkeypatch.context() as patch:
        Writes(patch, 2, after=False)
        with pytest.raises(Died):
            await registry.promote(agent.weak, policy=QUALITY)
    (look,) = (await registry._store.state()).looks
    shown = await registry.reveal(look[:8])
    assert {row["example"]["colour"] for row in shown} == {"green", "red", "yellow"}
    first = (await registry._store.state()).looks[look].debited
    found = await registry.promote(agent.weak, policy=QUALITY)
    assert found.promoted
    state = await registry._store.state()
    assert len(state.looks) == 2
    second = state.looks[found.look].debited
    assert not set(first.members) & set(second.members)
    assert state.spent == pytest.approx(first.alpha + second.alpha)


async def test_an_interrupted_look_goes_on_with_the_same_metric_only(agent, monkeypatch):
    registry = agent.registry()

    def half(example, prediction):
        return 0.5

    with monkeypatch.context() as patch:
        Writes(patch, 2, after=False)
        with pytest.raises(Died):
            await registry.promote(agent.weak, policy=QUALITY, metric=half)
    planned = await registry.promote(agent.weak, policy=QUALITY, metric=half, dry_run=True)
    assert "already paid for" in str(planned)
    found = await registry.promote(agent.weak, policy=QUALITY)
    assert found.promoted
    history = await registry.history()
    assert [item.what for item in history] == ["look", "promote"]


async def test_one_ledger_from_the_first_look_on(agent, monkeypatch, tmp_path):
    refused = await agent.registry().promote(
        agent.weak, policy={"margin": 1.0, "slo": {"quality_score": 1.0}}
    )
    assert not refused.promoted
    assert refused.alpha > 0
    monkeypatch.setenv("AGENTCORE_STATE_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigurationError, match="registered from another journal"):
        await Registry(AGENT, agent.config).promote(agent.weak)


@pytest.mark.parametrize("reason", ["", "  "])
async def test_force_needs_a_reason(agent, reason):
    with pytest.raises(ConfigurationError, match="needs a reason"):
        await agent.registry().promote(agent.weak, force=reason)


async def test_a_metric_of_the_policy_that_is_not_there(agent):
    policy = {"metrics": {"tone": "nowhere.metrics:tone"}, "delta": {"tone": 0.1}}
    registry = agent.registry()
    with pytest.raises(ConfigurationError, match=r"nowhere.metrics"):
        await registry.promote(agent.weak, policy=policy, dry_run=True)
    assert (await registry._store.state()).spent == 0


async def test_what_is_left(agent):
    registry = agent.registry()
    planned = await registry.promote(agent.weak, policy=QUALITY, dry_run=True)
    found = await registry.promote(agent.weak, policy=QUALITY)
    for item in (planned, found):
        assert item.sealed_left == 480 - item.examples
        assert item.budget_left == pytest.approx(0.05 - item.alpha)
        assert item.looks_left == min(int(item.budget_left / item.alpha), item.sealed_left // item.examples)
    few = await registry.promote(agent.strong, data=rows(60), policy={"min_examples": 20, "margin": 0.03})
    text = next(item.text for item in few.criteria if item.name == "error budget")
    assert "--data" in text
    assert int(few.criteria[-1].more_examples) > 30


class Args(dspy.Module):
    """Can't be created without arguments."""

    def __init__(self, signature):
        super().__init__()
        self.steps = {"first one": dspy.Predict(signature)}

    def forward(self, thing):
        return self.steps["first one"](thing=thing)


async def test_a_program_that_needs_arguments(config):
    program = Args("thing -> colour")
    runs = [await optimized(config, k, program=program) for k in (4, 16)]
    registry = Registry(AGENT, config, program=Args("thing -> colour"))
    for run in runs:
        assert (await registry.promote(run, policy=QUALITY)).promoted
    assert (await registry.verify()).sound
    await registry.rollback()
    assert (await registry.verify()).sound
    change = await registry.compare(Args("thing -> colour"), colours(60), policy=QUALITY, lm="offline/knn")
    assert change.examples == 60
    names = [prompt.name for prompt in await registry.gateway.call(lambda client: client.search_prompts())]
    assert len(names) == 1
    assert names[0].startswith("colour.steps_first_one")
