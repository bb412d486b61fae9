"""Nothing that somebody does in MLflow blocks an agent for good, or is followed unnoticed."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

import agentcore
from agentcore.errors import ArtifactError, ConfigurationError, TrackingError
from agentcore.registry import Registry, _models, _steps
from agentcore.registry._store import canonical_uri
from tests.registry.conftest import AGENT, QUALITY, found_aliases, optimized


@pytest.fixture
async def champion(agent):
    registry = agent.registry()
    await registry.promote(agent.weak, policy=QUALITY)
    return registry


def refused(*_args, **_options):
    raise MlflowException("the run must be in the 'active' state", error_code=1000)


async def test_a_refused_step_gives_the_decision_up(agent, champion, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_steps, "ensure_version", refused)
        with pytest.raises(TrackingError, match="active"):
            await champion.promote(agent.strong, policy=QUALITY)
    state = await champion._store.state()
    assert state.open_decision is None
    assert state.alias("champion") == "1" == found_aliases(agent)["champion"]
    assert "given up" in (await champion.history())[-1].text
    assert (await champion.promote(agent.strong, policy=QUALITY, force="urgent")).promoted
    await champion.rollback()


async def test_a_refused_prompt_does_not_matter(agent, champion, monkeypatch, caplog):
    monkeypatch.setattr(_steps, "ensure_prompts", refused)
    with caplog.at_level(logging.WARNING, "agentcore"):
        assert (await champion.promote(agent.strong, policy=QUALITY)).promoted
    assert "prompt registry" in caplog.text


async def test_odd_names_of_predictors(agent):
    client = agent.client()
    names = {"steps['a']": "first", "a/b": "second", "a.b": "third", "steps[0]": "fourth"}
    model_id = client.get_run(agent.weak).data.tags["agentcore.model.optimized_model"]
    found = [_models.ensure_prompts(client, AGENT, names, "d1", agent.weak, model_id) for _ in range(2)]
    assert found[0] == found[1]
    assert len(found[0]) == 4
    texts = {client.get_prompt_version(name, version).template for name, version in found[0].items()}
    assert texts == set(names.values())


async def test_a_changed_owner_does_not_block_the_way_back(agent, champion):
    await champion.promote(agent.strong, policy=QUALITY)
    agent.client().set_registered_model_tag(AGENT, "agentcore.registry", "x")
    with pytest.raises(ConfigurationError, match="another journal"):
        await champion.promote(agent.weak, policy=QUALITY)
    assert (await champion.rollback()).version == "1"


async def test_a_forged_version_is_not_loaded(agent, champion):
    client = agent.client()
    tags = dict(client.get_model_version(AGENT, "1").tags)
    release = json.loads(tags["agentcore.release"])
    experiment = client.get_logged_model(release["model_id"]).experiment_id
    forged = client.create_logged_model(experiment, name="forged")
    folder = Path(forged.artifact_location)
    shutil.copytree(
        client.get_logged_model(release["model_id"]).artifact_location, folder, dirs_exist_ok=True
    )
    state = folder / "artifacts/program/optimized_model.json"
    state.write_text(state.read_text().replace("produce the fields", "leak the data and produce"))
    manifest = state.with_name("optimized_model_metadata.json")
    content = json.loads(manifest.read_text())
    content["files"]["optimized_model.json"] = hashlib.sha256(state.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(content))
    release["files"] = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
    release |= {"model_id": forged.model_id, "source": str(folder)}
    tags["agentcore.release"] = json.dumps(release)
    version = client.create_model_version(AGENT, str(folder), release["run_id"], tags=tags)
    client.set_registered_model_alias(AGENT, "champion", str(version.version))
    with pytest.raises(ArtifactError, match="was not promoted by AgentCore"):
        await agentcore.load(AGENT, config=agent.config)


async def test_a_moved_alias_is_told_wherever_it_is_used(agent, champion, caplog):
    await champion.promote(agent.strong, policy=QUALITY)
    agent.client().set_registered_model_alias(AGENT, "champion", "1")
    with caplog.at_level(logging.WARNING, "agentcore"):
        await agentcore.load(AGENT, config=agent.config)
    assert "colour@champion points to version 1, but AgentCore set it to version 2" in caplog.text
    checked = await champion.verify()
    assert "somebody moved it" in str(checked)
    await champion.adopt()
    assert not (await champion.verify()).notes
    # The champion before the one that was accepted is the one that was promoted last.
    assert (await champion.rollback()).version == "2"


async def test_an_accepted_version_that_agentcore_did_not_promote(agent):
    registry, client = agent.registry(), agent.client()
    client.create_registered_model(AGENT)
    client.create_model_version(AGENT, "file:///somewhere", None)
    client.set_registered_model_alias(AGENT, "champion", "1")
    await registry.adopt()
    with pytest.raises(ConfigurationError, match=r"nothing to compare with.*--force"):
        await registry.promote(agent.weak, policy=QUALITY)
    with pytest.raises(ConfigurationError, match="use champion, staging or previous"):
        await registry.adopt("other")
    assert (await registry.promote(agent.weak, force="the first by AgentCore")).promoted


async def test_digests_changed_in_mlflow_are_compared_with_the_journal(agent):
    run = await optimized(agent.config, 4, seed=3)
    with pytest.raises(ConfigurationError, match=r"is of the agent 'colour', not of 'color'.*--agent colour"):
        await Registry("color", agent.config).promote(run, dry_run=True)
    registry, client = agent.registry(), agent.client()
    assert (await registry.promote(run, to="staging")).promoted
    (state,) = agent.directory.glob(f"artifacts/{run}/artifacts/models/optimized_model.json")
    tags = client.get_run(run).data.tags
    model = agent.directory / "artifacts/models" / tags["agentcore.model.optimized_model"]
    content = state.read_text().replace("produce the fields", "leak the data and produce")
    manifest = json.loads(state.with_name("optimized_model_metadata.json").read_text())
    manifest["files"]["optimized_model.json"] = hashlib.sha256(content.encode()).hexdigest()
    for folder in (state.parent, model / "artifacts/artifacts/program"):
        (folder / "optimized_model.json").write_text(content)
        (folder / "optimized_model_metadata.json").write_text(json.dumps(manifest))
    recorded = json.loads(tags["agentcore.program.optimized_model"])
    text = json.dumps(recorded)
    for name in ("optimized_model.json", "optimized_model_metadata.json"):
        found = hashlib.sha256((state.parent / name).read_bytes()).hexdigest()
        text = text.replace(recorded[name], found)
    client.set_tag(run, "agentcore.program.optimized_model", text)
    refusal = await registry.promote(run, policy=QUALITY)
    assert not refusal.promoted
    assert "not those that the journal recorded" in str(refusal)


async def test_changed_validation_examples(agent):
    (file,) = agent.directory.glob(f"artifacts/{agent.weak}/artifacts/validation_examples.json")
    file.write_text(file.read_text().replace("1.0", "0.0", 1))
    found = await agent.registry().promote(agent.weak, policy=QUALITY)
    assert not found.promoted
    assert "validation_examples.json was changed" in str(found)


async def test_half_a_reported_baseline(agent):
    agent.client().log_metric(agent.weak, "measured_baseline_quality_score", 0.5)
    found = await agent.registry().promote(agent.weak, policy=QUALITY)
    assert "no metric measured_baseline_success_rate" in str(found)


async def test_absurd_tags(agent, champion):
    client = agent.client()
    client.set_model_version_tag(AGENT, "1", "agentcore.release", "[" * 4000)
    assert not (await champion.verify()).sound
    with pytest.raises(ArtifactError):
        await agentcore.load(AGENT, config=agent.config)


@pytest.mark.parametrize("text", ["1e300", "99999999999999999999", "-5"])
async def test_absurd_bounds(agent, text):
    registry, client = agent.registry(), agent.client()
    assert (await registry.promote(dry_run=True, policy=QUALITY)).run_id == agent.strong
    experiment = client.get_experiment_by_name(registry.experiments.development)
    tags = [name for name in experiment.tags if name.startswith("agentcore.best.")]
    assert tags
    for tag in tags:
        client.set_experiment_tag(experiment.experiment_id, tag, text)
    assert (await agent.registry().promote(dry_run=True, policy=QUALITY)).run_id == agent.strong


def test_history_prints_whatever_people_wrote(agent, command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", agent.config.tracking_uri)
    agent.registry().sync.promote(agent.weak, force="see [/ticket] 12 [red]")
    code, told = command("history", AGENT)
    assert code == 0
    assert "see [/ticket] 12 [red]" in told.out


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://localhost:5000", "http://127.0.0.1:5000/"),
        ("https://mlflow.example.com", "https://mlflow.example.com:443"),
        ("sqlite:////data/./mlflow.db", "sqlite:////data/x/../mlflow.db"),
    ],
)
def test_one_history_however_the_server_is_written(one, other):
    assert canonical_uri(one) == canonical_uri(other)
    assert canonical_uri(one) != canonical_uri("http://localhost:5001")


@pytest.mark.parametrize("refresh", [0, -1, float("nan"), float("inf")])
async def test_wrong_refresh(agent, champion, refresh):
    with pytest.raises(ConfigurationError, match="above 0"):
        await agentcore.load(AGENT, config=agent.config, refresh=refresh)


async def test_a_live_program_can_be_copied_and_awaited(agent, champion):
    live = await agentcore.load(AGENT, config=agent.config, refresh=60)
    import copy

    import dspy

    with dspy.context(lm=agentcore.offline_lm()):
        for program in (live, copy.deepcopy(live)):
            assert (await program.acall(thing="moss piece 1")).colour == "green"
    live.close()


def test_the_registry_is_not_said_to_wait(agent, command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", agent.config.tracking_uri)
    agent.registry().sync.promote(agent.weak, force="a test")
    for arguments in (["sync"], ["sync"], ["journal", "ls"]):
        code, told = command(*arguments)
        assert code == 0
        assert "set MLFLOW_TRACKING_URI" not in told.out + told.err
        assert "resumable" not in told.out
