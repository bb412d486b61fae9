"""`RunTracker` and `Gateway`: generic runs, MLflow's own entities, its search and its registry."""

import asyncio

import mlflow.entities
import pytest
from mlflow import MlflowClient

from agentcore.data import Dataset
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ConfigurationError, TrackingError
from agentcore.settings import MLflowConfig
from agentcore.tracking import Gateway, MetricsLogged, RunTracker, model_names
from agentcore.tracking._times import MetricTimes
from tests.support import Classifier, request


@pytest.fixture
def tracker(config):
    return RunTracker(config)


async def test_a_run_that_is_no_optimization(tracker):
    run_id = await tracker.start_run(run_name="nightly", tags={"team": "search"})
    await tracker.log_metrics({"accuracy": 0.9}, step=2)
    await tracker.log_params({"k": 3})
    data = Dataset.from_rows([{"q": "a", "answer": "b"}], name="nightly-data")
    await tracker.log_input(data, context="evaluation")
    await tracker.log_json("report.json", {"ok": True})
    await tracker.log_model_artifact(Classifier(), "model")
    await tracker.end_run()
    run = await tracker.get_run(run_id)
    assert isinstance(run, mlflow.entities.Run)
    assert (run.info.run_name, run.info.status) == ("nightly", "FINISHED")
    assert (run.data.metrics, run.data.params) == ({"accuracy": 0.9}, {"k": "3"})
    assert run.data.tags["team"] == "search"
    assert not [tag for tag in run.data.tags if tag.startswith(("target", "optimization"))]
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("nightly-data", data.digest[:36])
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "evaluation")]
    assert model_names(run) == ["model"]
    assert isinstance(await tracker.load_model_artifact(run_id, "model"), Classifier)


async def test_a_run_without_a_name_gets_one_and_a_request_gives_its_own(tracker):
    first = await tracker.get_run(await tracker.start_run())
    assert first.info.run_name.startswith("run_2")
    second = await tracker.get_run(await tracker.start_run(request("t")))
    assert second.info.run_name.startswith("opt_component_t_2")
    assert {"target_id": "t", "target_type": "component"}.items() <= second.data.tags.items()
    for name in ("log_baseline_metrics", "log_result", "log_training_data"):
        assert not hasattr(tracker, name)
        assert hasattr(MLflowTracker, name)


async def test_search_gives_mlflows_entities_in_the_order_asked_for(tracker, monkeypatch):
    monkeypatch.setattr("agentcore.tracking._gateway._PAGE", 4)
    values = [5, 1, 9, 3, 7, 2, 8, 0, 6, 4]
    for value in values:
        await tracker.start_run(run_name=f"r{value}")
        await tracker.log_metrics({"x": value})
        await tracker.end_run()
    found = await tracker.search_runs("metrics.x >= 2", order_by=["metrics.x ASC"])
    assert all(isinstance(run, mlflow.entities.Run) for run in found)
    assert [run.data.metrics["x"] for run in found] == list(range(2, 10))
    newest = await tracker.search_runs(max_results=3)
    assert [run.info.run_name for run in newest] == ["r4", "r6", "r0"]
    assert len(await tracker.search_runs(max_results=9)) == 9
    assert len(await tracker.search_runs(max_results=100)) == 10
    assert await tracker.search_runs("metrics.x > 99") == []
    with pytest.raises(TrackingError, match="Invalid"):
        await tracker.search_runs(order_by=["nonsense"])


async def test_the_best_run_may_be_asked_for_among_tagged_ones(tracker):
    for value, team in ((1, "a"), (3, "b"), (2, "a")):
        await tracker.start_run(tags={"team": team})
        await tracker.log_metrics({"x": value})
        await tracker.end_run()
    best = await tracker.get_best_run("x", tags={"team": "a"})
    assert (best.data.metrics["x"], best.data.tags["team"]) == (2.0, "a")
    assert (await tracker.get_best_run("x")).data.metrics["x"] == 3.0
    assert await tracker.get_best_run("x", tags={"team": "nobody"}) is None
    with pytest.raises(ConfigurationError, match="contains a quote"):
        await tracker.get_best_run("x", tags={"team": "it's"})


async def test_one_rule_finds_a_run_by_whatever_id_is_at_hand(config):
    tracker = RunTracker(config)
    run_id = await tracker.start_run(run_name="mine")
    await tracker.end_run()
    await tracker.flush()
    journal, _ = await tracker.opened()
    (stream,) = journal.streams()
    for name in (run_id, run_id[:7], stream.id, stream.id[:7], f"local-{stream.id}"):
        assert (await tracker.find_run(name)).info.run_name == "mine"
    client = MlflowClient(config.tracking_uri)
    other = client.create_run(
        client.get_experiment_by_name(config.experiment_name).experiment_id, run_name="other"
    )
    assert (await tracker.find_run(other.info.run_id[:9])).info.run_name == "other"
    with pytest.raises(ConfigurationError, match="no run 'zzz' in experiment"):
        await tracker.find_run("zzz")
    elsewhere = RunTracker(MLflowConfig(tracking_uri="sqlite:///elsewhere.db"))
    with pytest.raises(
        ConfigurationError, match=r"is tracked at sqlite:.*: set MLFLOW_TRACKING_URI to see it"
    ):
        await elsewhere.find_run(stream.id)


async def test_the_gateway_reads_the_registry_with_its_aliases(config):
    client = MlflowClient(config.tracking_uri)
    gateway = Gateway(config)
    assert await gateway.registered_models() == []
    run_id = client.create_run(client.create_experiment("models")).info.run_id
    for name in ("agent's model", "other"):
        client.create_registered_model(name)
        for _ in range(2):
            client.create_model_version(name, f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("agent's model", "champion", "2")
    models = {model.name: model for model in await gateway.registered_models()}
    assert {name: int(version) for name, version in models["agent's model"].aliases.items()} == {
        "champion": 2
    }
    assert models["other"].aliases == {}
    versions = await gateway.model_versions("agent's model")
    assert sorted(int(version.version) for version in versions) == [1, 2]


async def test_the_gateway_translates_errors_and_never_blocks(config):
    gateway = Gateway(MLflowConfig(tracking_uri="http://127.0.0.1:9", request_timeout=1))
    with pytest.raises(TrackingError, match=r"MLflow at http://127.0.0.1:9: can't be reached"):
        await gateway.registered_models()
    with pytest.raises(TrackingError, match="not found"):
        await Gateway(config).get_run("f" * 32)
    assert await Gateway(config).call(lambda client: type(client).__name__) == "MlflowClient"
    experiment = await Gateway(config).experiment_id()
    assert experiment == await Gateway(config).experiment_id()


@pytest.mark.parametrize("at_once", [False, True], ids=["one after the other", "at once"])
async def test_equal_values_all_arrive(config, at_once):
    """MLflow keeps one row per run, name, value, time and step: of 500 at once, 11 arrived."""
    tracker = RunTracker(config)
    run_id = await tracker.start_run(run_name="equal")
    calls = [tracker.log_metrics({"hit": float(number % 2), "one": 1.0}) for number in range(500)]
    if at_once:
        await asyncio.gather(*calls)
    else:
        for call in calls:
            await call
    await tracker.log_metrics({"stepped": 1.0}, step=1)
    await tracker.end_run()
    await tracker.flush(60)
    real = (await tracker.get_run(run_id)).info.run_id
    client = MlflowClient(config.tracking_uri)
    hits = client.get_metric_history(real, "hit")
    assert len(hits) == len(client.get_metric_history(real, "one")) == 500
    assert sum(item.value for item in hits) == 250
    assert len(client.get_metric_history(real, "stepped")) == 1


def test_times_move_no_further_than_needed():
    times = MetricTimes()

    def moved(at, step=0, **metrics):
        event = MetricsLogged(metrics=metrics, step=step, timestamp_ms=at)
        return times.distinct("run", [event])[0].timestamp_ms

    assert moved(5, x=1.0) == 5
    assert moved(5, x=2.0) == moved(5, x=1.0, step=1) == 5  # another value, another step
    assert moved(5, x=1.0) == 6
    assert moved(5, x=1.0, y=1.0) == 7
    assert moved(5, y=1.0) == 8
    assert moved(5, z=1.0) == 5
    assert moved(9, x=1.0) == 9
    assert moved(3, x=7.0) == 9  # the clock was set back
    assert (
        times.distinct("another run", [MetricsLogged(metrics={"x": 1.0}, timestamp_ms=5)])[0].timestamp_ms
        == 5
    )
