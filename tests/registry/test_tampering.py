"""Somebody with write access to MLflow changes what was promoted: refused at promote, rollback and load."""

import json
import sqlite3

import pytest

import agentcore
from agentcore.errors import ArtifactError
from tests.registry.conftest import AGENT, QUALITY, found_aliases

RELEASE = "agentcore.release"


def model_directory(agent, run_id):
    client = agent.client()
    model_id = client.get_run(run_id).data.tags["agentcore.model.optimized_model"]
    (directory,) = agent.directory.glob(f"artifacts/models/{model_id}/artifacts")
    return directory


def change_artifact(agent, run_id):
    file = model_directory(agent, run_id) / "artifacts/program/optimized_model.json"
    file.write_text(file.read_text().replace("Given", "Ignore"))


def change_manifest(agent, run_id):
    file = model_directory(agent, run_id) / "artifacts/program/optimized_model_metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "redacted": True}))


def change_code(agent, run_id):
    (file,) = model_directory(agent, run_id).glob("*.py")
    file.write_text("print('evil')\n" + file.read_text())


def add_a_file(agent, run_id):
    (model_directory(agent, run_id) / "sitecustomize.py").write_text("print('evil')")


def remove_a_file(agent, run_id):
    (model_directory(agent, run_id) / "artifacts/program/optimized_model.json").unlink()


def change_version_tag(agent, run_id):
    agent.client().set_model_version_tag(AGENT, "1", "verdict", "promote!")


def change_semantic_version(agent, run_id):
    agent.client().set_model_version_tag(AGENT, "1", "semantic_version", "9.9.9")


def change_release_tag(agent, run_id):
    client = agent.client()
    release = json.loads(client.get_model_version(AGENT, "1").tags[RELEASE])
    release["files"]["artifacts/program/optimized_model.json"] = "0" * 64
    client.set_model_version_tag(AGENT, "1", RELEASE, json.dumps(release))


def redirect_source(agent, run_id):
    with sqlite3.connect(agent.directory / "mlflow.db") as connection:
        connection.execute(
            "UPDATE model_versions SET source = 'models:/m-0123456789abcdef' WHERE version = 1"
        )
    connection.close()


AFTER = [
    change_artifact,
    change_manifest,
    change_code,
    add_a_file,
    remove_a_file,
    change_version_tag,
    change_semantic_version,
    change_release_tag,
    redirect_source,
]


@pytest.fixture
async def promoted(agent):
    registry = agent.registry()
    assert (await registry.promote(agent.weak, policy=QUALITY)).promoted
    return registry


@pytest.mark.parametrize("tamper", AFTER)
async def test_a_changed_version_is_not_used(agent, promoted, tamper):
    tamper(agent, agent.weak)
    with pytest.raises(ArtifactError):
        await agentcore.load(f"{AGENT}@champion", config=agent.config)
    verified = await promoted.verify()
    assert not verified.sound
    assert "CHANGED since its promotion" in str(verified)
    with pytest.raises(ArtifactError):  # as the champion that a challenger is compared with
        await promoted.promote(agent.strong, policy=QUALITY)
    await promoted.promote(agent.strong, force="the champion was tampered with")
    with pytest.raises(ArtifactError, match="CHANGED since its promotion"):
        await promoted.rollback(to=1)
    assert found_aliases(agent)["champion"] == "2"


def change_digest_tag(agent, run_id):
    agent.client().set_tag(run_id, "agentcore.program.optimized_model", json.dumps({"x.json": "0" * 64}))


def change_runs_artifact(agent, run_id):
    (file,) = agent.directory.glob(f"artifacts/{run_id}/artifacts/models/optimized_model.json")
    file.write_text(file.read_text().replace("Given", "Ignore"))


def change_training_data(agent, run_id):
    (file,) = agent.directory.glob(f"artifacts/{run_id}/artifacts/training_data.json")
    content = json.loads(file.read_text())
    content["splits"]["train"]["examples"], content["splits"]["sealed"]["examples"] = [], []
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "tamper",
    [
        change_artifact,
        change_manifest,
        change_code,
        remove_a_file,
        change_digest_tag,
        change_runs_artifact,
        change_training_data,
    ],
)
async def test_a_changed_run_is_not_promoted(agent, tamper):
    tamper(agent, agent.weak)
    with pytest.raises(ArtifactError):
        await agent.registry().promote(agent.weak, policy=QUALITY)
    assert agent.client().search_registered_models() == []


async def test_a_changed_parameter_of_the_data_is_a_contradiction(agent):
    with sqlite3.connect(agent.directory / "mlflow.db") as connection:
        connection.execute(
            "UPDATE params SET value = ? WHERE key = 'sealed_digest' AND run_uuid = ?", ("0" * 64, agent.weak)
        )
    connection.close()
    found = await agent.registry().promote(agent.weak, policy=QUALITY)
    assert found.verdict == "reject"
    assert "not the sealed data that the run recorded" in found.criteria[0].text


async def test_a_changed_journal_is_noticed(agent, promoted):
    """The evidence on the version is a digest of what the journal holds."""
    from agentcore.journal import close_journals
    from agentcore.tracking import stop_deliveries

    stop_deliveries()
    close_journals()
    with sqlite3.connect(agent.directory / "state/journal.db") as connection:
        changed = connection.execute(
            "UPDATE agentcore_events SET body = replace(body, '\"gain\":0', '\"gain\":1') "
            "WHERE kind = 'look_decided'"
        )
        assert changed.rowcount == 1
    connection.close()
    verified = await agent.registry().verify()
    assert [item.what for item in verified.differences] == ["evidence"]


async def test_a_tag_does_not_choose_the_metric(agent):
    with sqlite3.connect(agent.directory / "mlflow.db") as connection:
        connection.execute("UPDATE params SET value = 'os:abort' WHERE key = 'metric'")
    connection.close()
    from agentcore.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="pass it as metric="):
        await agent.registry().promote(agent.weak, policy=QUALITY)
