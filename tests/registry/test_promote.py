"""Promotion, rollback, history and verification on a real MLflow store."""

import json
import math
from types import MappingProxyType

import dspy
import pytest

import agentcore
from agentcore.errors import AliasMovedError, ArtifactError, ConfigurationError, DataError
from agentcore.lm import offline_lm
from agentcore.registry import Criterion, GatePolicy, at_least, gate_check
from agentcore.tracking import RunTracker
from tests.registry.conftest import AGENT, QUALITY, found_aliases
from tests.support import colours


def named(promotion):
    return {item.name: item for item in promotion.criteria}


async def test_the_first_champion(agent):
    registry = agent.registry()
    found = await registry.promote(agent.weak)

    assert found.promoted
    assert found.verdict == "promote"
    assert (found.version, found.semantic_version, found.previous) == ("1", "1.0.0", None)
    gain = named(found)["quality_score"]
    assert gain.outcome == "passed"
    assert 0 < gain.figures["gain_low"] < gain.figures["gain"]
    assert gain.figures["p_value"] <= found.alpha
    client = agent.client()
    assert found_aliases(agent) == {"champion": "1"}
    version = client.get_model_version(AGENT, "1")
    assert version.tags["semantic_version"] == "1.0.0"
    assert version.tags["verdict"] == "promote"
    assert len(version.tags["evidence_sha256"]) == 64
    release = json.loads(version.tags["agentcore.release"])
    assert release["run_id"] == agent.weak
    model_id = release["model_id"]

    tracker = RunTracker(agent.config)
    evaluation = await tracker.get_run(found.evaluation_run)
    assert evaluation.info.run_name.startswith("eval_pre_deploy_")
    assert evaluation.data.tags["deployment_candidate"] == "true"
    assert evaluation.data.metrics["gate/quality_score/gain"] == pytest.approx(gain.figures["gain"])
    (used,) = evaluation.inputs.dataset_inputs
    assert used.dataset.name == "colour-gate"
    deployment = await tracker.get_run(found.deployment_run)
    assert deployment.data.tags["model_version"] == "1"
    assert deployment.data.tags["deployment_status"] == "success"
    assert deployment.data.tags["promotion_target"] == "production"
    assert deployment.data.params["evaluation_passed"] == "True"
    assert await registry.experiments.check() == []
    assert await registry.experiments.latest_evaluation_run() is not None
    assert [run.info.run_id for run in await registry.experiments.deployment_runs(1)] == [
        deployment.info.run_id
    ]
    prompt = client.get_prompt_version(f"{AGENT}.self", 1)
    assert prompt.template == "Given the fields `thing`, produce the fields `colour`."
    link = json.dumps([{"name": f"{AGENT}.self", "version": "1"}])
    run = client.get_run(agent.weak)
    assert run.data.tags["mlflow.linkedPrompts"] == link
    assert client.get_logged_model(model_id).tags["mlflow.linkedPrompts"] == link
    found = client.get_prompt(f"{AGENT}.self")
    assert found.tags["_mlflow_experiment_ids"] == f",{run.info.experiment_id},"

    (entry,) = await registry.history()
    assert (entry.what, entry.version, entry.evidence) == ("promote", "1", version.tags["evidence_sha256"])
    verified = await registry.verify()
    assert verified.sound
    assert not verified.notes


async def test_the_servers_of_the_process_are_left_alone(agent, tmp_path, monkeypatch):
    """Parts of MLflow's client ask the server that is set for the whole process."""
    import mlflow

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere / 'canary.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "canary")
    before = mlflow.get_tracking_uri()
    registry = agent.registry()
    await registry.promote(agent.weak)
    await registry.promote(agent.strong, policy=QUALITY)
    await registry.rollback()
    assert (await registry.verify()).sound
    await agentcore.load(AGENT, config=agent.config)
    await registry.history()
    assert await registry.experiments.check() == []
    assert list(elsewhere.iterdir()) == []
    assert mlflow.get_tracking_uri() == before


async def test_the_evidence_for_mlflow(agent):
    from mlflow import validate_evaluation_results
    from mlflow.models import MetricThreshold
    from mlflow.models.evaluation.validation import ModelValidationFailedException

    registry = agent.registry()
    await registry.promote(agent.weak)
    found = await registry.promote(agent.strong, policy=GatePolicy(delta={"avg_cost": 9.0}))
    assert found.promoted
    challenger, champion = found.evaluation_results()
    assert challenger.metrics.keys() == champion.metrics.keys() == {"quality_score", "avg_cost"}
    gain = named(found)["quality_score"].figures["gain"]
    difference = challenger.metrics["quality_score"] - champion.metrics["quality_score"]
    assert difference == pytest.approx(gain)
    wanted = MetricThreshold(min_absolute_change=gain / 2, greater_is_better=True)
    validate_evaluation_results({"quality_score": wanted}, challenger, champion)
    with pytest.raises(ModelValidationFailedException):
        validate_evaluation_results({"quality_score": wanted}, champion, challenger)


async def test_guards_refuse_a_costlier_program(agent):
    registry = agent.registry()
    await registry.promote(agent.weak)
    found = await registry.promote(agent.strong, policy=GatePolicy(delta={"avg_cost": 0.2}))

    assert not found.promoted
    assert found.verdict == "reject"
    cost = named(found)["avg_cost against the champion"]
    assert cost.outcome == "failed"
    assert "tokens" in cost.text
    assert named(found)["quality_score"].outcome == "passed"
    assert found_aliases(agent) == {"champion": "1"}
    entry = (await registry.history())[-1]
    assert (entry.what, entry.run_id) == ("refused", agent.strong)


async def test_a_refusal_tells_little_of_the_sealed_examples(agent):
    registry = agent.registry()
    await registry.promote(agent.weak)
    found = await registry.promote(agent.strong, policy=GatePolicy(delta={"avg_cost": 0.2}))

    gain = named(found)["quality_score"]
    grid = 1 / math.sqrt(found.examples)
    for value in gain.figures.values():
        assert value / grid == pytest.approx(round(value / grid), abs=1e-3)
    assert "p_value" not in gain.figures
    logged = (await RunTracker(agent.config).get_run(found.evaluation_run)).data.metrics
    assert logged["gate/quality_score/gain"] == pytest.approx(gain.figures["gain"])
    assert "gate/quality_score/p_value" not in logged


async def test_promotion_then_rollback(agent):
    registry = agent.registry()
    await registry.promote(agent.weak)
    second = await registry.promote(agent.strong, policy=QUALITY)
    assert second.promoted
    assert (second.version, second.semantic_version, second.previous) == ("2", "1.1.0", "1")
    assert found_aliases(agent) == {"champion": "2", "previous": "1"}

    back = await registry.rollback()
    assert (back.version, back.previous, back.semantic_version) == ("1", "2", "1.0.0")
    assert found_aliases(agent) == {"champion": "1", "previous": "2"}
    run = await RunTracker(agent.config).get_run(back.deployment_run)
    assert run.data.tags["deployment_status"] == "success"
    assert (run.data.params["action"], run.data.params["evaluation_passed"]) == ("rollback", "True")
    assert run.data.tags["model_version"] == "1"
    again = await registry.rollback(to=2)
    assert again.version == "2"
    with pytest.raises(ConfigurationError, match="already"):
        await registry.rollback(to=2)
    with pytest.raises(ConfigurationError, match="never been champion"):
        await registry.rollback(to=7)
    assert [item.what for item in await registry.history()] == ["promote", "promote", "rollback", "rollback"]
    assert await registry.experiments.check() == []


async def test_what_was_looked_at_is_not_used_again(agent):
    """After a promotion the examples are retired; a refused look's are used again."""
    registry = agent.registry()
    first = await registry.promote(agent.weak)
    state = await registry._store.state()
    used = set(state.looks[first.look].debited.members)
    refused = await registry.promote(agent.strong, policy=GatePolicy(delta={"avg_cost": 0.2}))
    promoted = await registry.promote(agent.strong, policy=QUALITY)
    looks = (await registry._store.state()).looks
    second, third = (set(looks[item.look].debited.members) for item in (refused, promoted))
    assert not used & second
    assert second & third == min(second, third, key=len)
    assert (await registry._store.state()).spent == pytest.approx(
        first.alpha + refused.alpha + promoted.alpha
    )


async def test_a_dry_run_spends_and_measures_nothing(agent):
    registry = agent.registry()
    found = await registry.promote(agent.weak, dry_run=True)
    assert found.planned
    assert found.examples > 50
    assert 0 < found.alpha < 0.01
    state = await registry._store.state()
    assert state.spent == 0
    assert not state.looks
    assert agent.client().search_registered_models() == []


async def test_staging_needs_no_look(agent):
    registry = agent.registry()
    found = await registry.promote(agent.weak, to="Staging")
    assert (found.verdict, found.alias, found.alpha) == ("staged", "staging", 0.0)
    assert found_aliases(agent) == {"staging": "1"}
    run = await RunTracker(agent.config).get_run(found.deployment_run)
    assert run.data.tags["promotion_target"] == "staging"
    with pytest.raises(ConfigurationError, match="already"):
        await registry.promote(agent.weak, to="staging")
    with pytest.raises(ConfigurationError, match="Archived versions keep no alias"):
        await registry.promote(agent.weak, to="Archived")


async def test_force_is_written_down(agent):
    registry = agent.registry()
    found = await registry.promote(agent.weak, force="the old one insults customers")
    assert found.verdict == "forced"
    assert agent.client().get_model_version(AGENT, "1").tags["verdict"] == "forced"
    (entry,) = await registry.history()
    assert "the old one insults customers" in entry.text
    run = await RunTracker(agent.config).get_run(found.deployment_run)
    assert run.data.params["forced"] == "the old one insults customers"
    assert run.data.params["evaluation_passed"] == "False"


async def test_who_looks_at_single_examples_retires_them(agent):
    registry = agent.registry()
    await registry.promote(agent.weak)
    refused = await registry.promote(agent.strong, policy=GatePolicy(delta={"avg_cost": 0.2}))
    rows = await registry.reveal(refused.look[:8])
    assert len(rows) == 2 * refused.examples
    assert {row["side"] for row in rows} == {"challenger", "champion"}
    entry = (await registry.history())[-1]
    assert entry.what == "exposed"

    second = await registry.promote(agent.strong, policy=GatePolicy(delta={}, min_examples=300))
    assert not second.promoted
    assert second.verdict == "inconclusive"
    told = named(second)["sealed examples"]
    assert "has seen them (agentcore gate show)" in told.text
    assert told.more_examples
    assert second.alpha == 0


async def test_examples_from_elsewhere(agent):
    registry = agent.registry()
    with pytest.raises(DataError, match="were used by run"):
        await registry.promote(agent.weak, data=colours(600))
    others = [
        {"thing": f"{word} case {number}", "colour": colour}
        for number in range(60)
        for word, colour in (("moss", "green"), ("brick", "red"), ("butter", "yellow"))
    ]
    found = await registry.promote(agent.weak, data=others)
    assert found.promoted


async def test_too_few_sealed_examples(agent):
    found = await agent.registry().promote(agent.weak, data=colours(800).rows()[600:640])
    assert found.verdict == "inconclusive"
    assert "40 examples are left" in named(found)["sealed examples"].text


async def test_the_error_level_of_a_life_is_used_up(agent):
    registry = agent.registry()
    policy = GatePolicy(delta={"avg_cost": 0.2}, lifetime_alpha=0.0024, planned_looks=1)
    await registry.promote(agent.weak, force="to have a champion")
    first = await registry.promote(agent.strong, policy=policy)
    assert first.verdict == "reject"
    policy = policy.model_copy(update={"lifetime_alpha": first.alpha})
    second = await registry.promote(agent.strong, policy=policy)
    assert second.verdict == "inconclusive"
    assert "used up its error budget" in named(second)["error budget"].text


async def test_own_checks(agent):
    class Result:
        metrics = MappingProxyType({"safety/mean": 0.9})

    registry = agent.registry()
    low = await registry.promote(agent.weak, checks=[at_least(Result, {"safety/mean": 0.95})])
    assert low.verdict == "reject"
    assert "safety/mean is 0.9, must be at least 0.95" in named(low)["mlflow.genai"].text
    seen = []

    def check(context):
        seen.append(context.look.examples)
        return Criterion("length", "passed", "length: fine")

    found = await registry.promote(
        agent.weak, checks=[gate_check("length", check), at_least(Result, {"safety/mean": 0.8})]
    )
    assert found.promoted
    assert seen == [found.examples]
    with pytest.raises(ConfigurationError, match="raised ZeroDivisionError"):
        await registry.promote(agent.strong, policy=QUALITY, checks=[gate_check("odd", lambda _: 1 / 0)])


async def test_a_required_metric_and_another_model(agent):
    registry = agent.registry()
    found = await registry.promote(agent.weak, policy=GatePolicy(required_metrics=["toxicity"]))
    assert found.verdict == "reject"
    assert "no metric toxicity" in named(found)["integrity"].text
    model = offline_lm()
    model.model = "openai/other"
    found = await registry.promote(agent.weak, lm=model)
    assert "measured with the model 'offline/knn'" in named(found)["integrity"].text
    assert found.alpha == 0


async def test_best_is_of_the_agents_experiment(agent):
    found = await agent.registry().promote("best")
    assert found.run_id == agent.strong


async def test_an_alias_moved_by_hand_is_noticed(agent):
    registry = agent.registry()
    await registry.promote(agent.weak)
    await registry.promote(agent.strong, policy=QUALITY)
    agent.client().set_registered_model_alias(AGENT, "champion", "1")
    last = (await registry.history())[-1]
    assert (last.what, last.version) == ("moved by hand", "1")
    for call in (registry.rollback(), registry.promote(agent.strong, policy=QUALITY)):
        with pytest.raises(AliasMovedError, match="without AgentCore"):
            await call
    adopted = await registry.adopt()
    assert adopted.what == "adopted"
    assert [item.what for item in await registry.history()][-1] == "adopted"
    back = await registry.rollback(to=2)
    assert back.version == "2"


async def test_a_second_journal_is_noticed(agent, tmp_path, monkeypatch):
    await agent.registry().promote(agent.weak, to="staging")
    from agentcore.journal import close_journals
    from agentcore.tracking import stop_deliveries

    stop_deliveries()
    close_journals()
    monkeypatch.setenv("AGENTCORE_STATE_DIR", str(tmp_path / "other"))
    with pytest.raises((ConfigurationError, AliasMovedError)):
        await agent.registry().promote(agent.strong, to="staging")


async def test_the_program_answers_as_the_optimized_one(agent):
    import agentcore

    registry = agent.registry()
    await registry.promote(agent.strong)
    program = await agentcore.load(f"{AGENT}@champion", config=agent.config)
    original = await RunTracker(agent.config).load_model_artifact(agent.strong)
    with dspy.context(lm=offline_lm()):
        for row in colours(20).rows():
            assert program(thing=row["thing"]).colour == original(thing=row["thing"]).colour


async def test_no_such_run(agent):
    with pytest.raises(ConfigurationError, match="no run"):
        await agent.registry().promote("0123456789abcdef")
    with pytest.raises(ConfigurationError, match="no alias 'champion'"):
        await agent.registry().verify()
    with pytest.raises(ConfigurationError, match="no earlier champion"):
        await agent.registry().rollback()


def test_the_blocking_version(agent):
    found = agent.registry().sync.promote(agent.weak, to="staging")
    assert found.promoted
    assert "promoted: colour@staging is version 1 (1.0.0)" in str(found)


async def test_a_run_without_a_program(agent):
    tracker = RunTracker(agent.config)
    run = await tracker.start_run()
    await tracker.end_run()
    with pytest.raises(ArtifactError, match="no optimized program"):
        await agent.registry().promote(run)
