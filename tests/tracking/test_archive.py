"""Old runs are archived, and never one that somebody relies on."""

import sys
import time
from datetime import timedelta

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from agentcore.cli import main
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import TrackingError
from tests.support import Classifier, request

DAY_MS = 86_400_000


@pytest.fixture
def store(config):
    """Runs of the last 100 days, a finished one for each day; the value of the oldest is the best."""
    client = MlflowClient(tracking_uri=config.tracking_uri)
    experiment = client.create_experiment(config.experiment_name)
    now = int(time.time() * 1000)
    runs = []
    for age in range(0, 100, 10):
        run = client.create_run(experiment, start_time=now - age * DAY_MS - 3_600_000, run_name=f"day-{age}")
        client.log_batch(run.info.run_id, [Metric("optimized_quality_score", age / 100, now, 0)])
        client.set_terminated(run.info.run_id)
        runs.append(run.info.run_id)
    return client, runs


def left(client, config):
    experiment = client.get_experiment_by_name(config.experiment_name)
    return {run.info.run_id for run in client.search_runs([experiment.experiment_id])}


async def archive(config, days, **settings):
    return await MLflowTracker(config).archive_runs(timedelta(days=days), **settings)


async def test_a_dry_run_tells_and_deletes_nothing(store, config):
    client, runs = store
    found = await archive(config, 45, keep_best=0)
    assert [run.info.run_id for run in found.runs] == runs[:4:-1]  # 90 to 50 days, the oldest first
    assert left(client, config) == set(runs)
    done = await archive(config, 45, keep_best=0, dry_run=False)
    assert [run.info.run_id for run in done.runs] == [run.info.run_id for run in found.runs]
    assert left(client, config) == set(runs[:5])
    client.restore_run(runs[9])
    assert runs[9] in left(client, config)


async def test_the_best_stay(store, config):
    client, runs = store
    found = await archive(config, 45, keep_best=2, dry_run=False)
    assert found.kept == {"they are among the best 2": 2}
    assert left(client, config) == {*runs[:5], runs[8], runs[9]}


async def test_what_is_registered_or_promoted_stays(store, config):
    client, runs = store
    client.create_registered_model("agent's model")
    for number in (9, 8, 7):
        client.create_model_version("agent's model", f"runs:/{runs[number]}/model", runs[number])
    # One that tells its run by its LoggedModel only.
    experiment = client.get_experiment_by_name(config.experiment_name)
    model = client.create_logged_model(experiment.experiment_id, name="m", source_run_id=runs[6])
    client.create_model_version("agent's model", f"models:/{model.model_id}")
    client.set_registered_model_alias("agent's model", "champion", "1")
    found = await archive(config, 45, keep_best=0)
    assert [run.info.run_id for run in found.runs] == [runs[5]]
    assert found.kept == {
        "their model has a registry alias": 1,
        "their model is registered": 3,
    }
    done = await archive(config, 45, keep_best=0, keep_registered=False, dry_run=False)
    assert [run.info.run_id for run in done.runs] == [runs[8], runs[7], runs[6], runs[5]]
    assert runs[9] in left(client, config)


async def test_an_alias_protects_the_run_that_made_the_model_too(store, config):
    """The version was registered from another run than the model's own."""
    client, runs = store
    experiment = client.get_experiment_by_name(config.experiment_name)
    model = client.create_logged_model(experiment.experiment_id, name="m", source_run_id=runs[9])
    client.create_registered_model("agent")
    client.create_model_version("agent", f"models:/{model.model_id}", runs[0], model_id=model.model_id)
    client.set_registered_model_alias("agent", "champion", "1")
    assert (await archive(config, 85, keep_best=0, keep_registered=False)).runs == []


async def test_models_go_where_asked_and_never_a_registered_one(store, config):
    client, runs = store
    experiment = client.get_experiment_by_name(config.experiment_name).experiment_id
    models = {}
    for number in (9, 8):
        models[number] = client.create_logged_model(experiment, name="m", source_run_id=runs[number]).model_id
        client.set_tag(runs[number], "agentcore.model.optimized_model", models[number])
    client.create_registered_model("agent")
    client.create_model_version("agent", f"models:/{models[9]}", runs[9], model_id=models[9])

    def there():
        return {model.model_id for model in client.search_logged_models([experiment])}

    assert (await archive(config, 75, keep_best=0, keep_registered=False)).models == []
    asked = {"keep_best": 0, "keep_registered": False, "with_models": True}
    found = await archive(config, 75, **asked)
    assert found.models == [models[8]]
    assert there() == set(models.values())
    client.delete_logged_model(models[8])  # as an archive that was interrupted leaves it
    await archive(config, 75, **asked, dry_run=False)
    assert there() == {models[9]}
    assert left(client, config) == set(runs[:8])


async def test_a_registry_that_does_not_answer_is_no_registry_without_models(store, config, monkeypatch):
    client, runs = store
    experiment = client.get_experiment_by_name(config.experiment_name)
    model = client.create_logged_model(experiment.experiment_id, name="m", source_run_id=runs[9])
    client.create_registered_model("agent")
    client.create_model_version("agent", f"models:/{model.model_id}", runs[0], model_id=model.model_id)

    def fail(self, model_id):
        raise MlflowException("the database is away", error_code=TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(MlflowClient, "get_logged_model", fail)
    with pytest.raises(TrackingError):
        await archive(config, 85, keep_best=0, with_models=True, dry_run=False)
    assert left(client, config) == set(runs)


async def test_a_run_that_has_not_ended_stays(store, config):
    client, runs = store
    client.update_run(runs[9], status="RUNNING")
    found = await archive(config, 85, keep_best=0, dry_run=False)
    assert found.kept == {"they have not ended": 1}
    assert left(client, config) == set(runs)


@pytest.mark.usefixtures("store")
async def test_more_runs_than_a_page_holds(config, monkeypatch):
    monkeypatch.setattr("agentcore.tracking._gateway._PAGE", 2)
    assert len((await archive(config, 15, keep_best=0)).runs) == 8


async def test_mlflow_gc_removes_rows_and_objects_of_what_was_archived(own_stack, server):
    """With a real server on Postgres and S3, as docs/operations.md says."""
    config = server.model_copy(update={"request_timeout": 10})
    tracker = MLflowTracker(config)
    made = []
    for value in (1.0, 2.0):
        local = await tracker.start_run(request())
        await tracker.log_metrics({"optimized_quality_score": value})
        await tracker.log_model_artifact(Classifier())
        await tracker.end_run()
        await tracker.flush(timeout=30)
        made.append((await tracker.tracking_id(local), await tracker.model_id(local)))
    (gone, model), (kept, _) = made

    def objects(word):
        pages = own_stack.client().get_paginator("list_objects_v2").paginate(Bucket="mlflow")
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return [key for key in keys if word in key]

    found = await archive(config, 0, keep_best=1, with_models=True, dry_run=False)
    assert [run.info.run_id for run in found.runs] == [gone]
    assert found.models == [model]
    assert objects(gone)
    assert objects(model)
    own_stack.collect_garbage(run=gone, model=model)
    client = MlflowClient(tracking_uri=own_stack.uri)
    with pytest.raises(MlflowException, match="not found"):
        client.get_run(gone)
    assert objects(gone) == objects(model) == []
    assert objects(kept)
    assert client.get_run(kept).info.lifecycle_stage == "active"


def test_the_command(store, config, monkeypatch, capsys):
    client, runs = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["agentcore", "runs", "archive", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr()

    code, told = command("--older-than", "85d", "--keep-best", "0")
    assert code == 0
    assert f"{runs[9][:8]}" in told.out
    assert "1 run would be archived: add --yes" in told.out
    assert left(client, config) == set(runs)
    assert "1 run archived" in command("--older-than", "85d", "--keep-best", "0", "--yes")[1].out
    assert left(client, config) == set(runs[:9])
    code, told = command("--older-than", "soon")
    assert code == 2
    assert "such as 90d" in told.err
