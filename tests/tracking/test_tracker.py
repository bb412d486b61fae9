import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import dspy
import pytest

from agentcore.dspy_optimization import OptimizationPipeline, PerformanceMetrics
from agentcore.dspy_optimization.tracking import MLflowConfig, MLflowTracker
from agentcore.errors import ArtifactError, ConfigurationError, TrackingError
from tests.support import Classifier, colours, request

METRICS = PerformanceMetrics(success_rate=0.5, quality_score=0.6, avg_cost=0.02, avg_latency_ms=120.0)
BETTER = PerformanceMetrics(success_rate=0.75, quality_score=0.9, avg_cost=0.01, avg_latency_ms=100.0)


@pytest.fixture
def tracker(config):
    return MLflowTracker(config)


async def test_figures_under_their_exact_names(tracker):
    run_id = await tracker.start_run(request(), tags={"version": "7", "team": "a"})
    await tracker.log_baseline_metrics(METRICS)
    await tracker.log_optimized_metrics(BETTER)
    await tracker.log_improvement_metrics(
        METRICS, BETTER, improvement_percentage=0.5, statistical_significance=0.01
    )
    await tracker.log_optimization_details(
        {
            "algorithm": "miprov2",
            "parameters": {"auto": "light"},
            "key_improvements": ["one", "two"],
            "iterations": 3,
            "duration_seconds": 1.5,
        }
    )
    await tracker.end_run("FINISHED")
    run = await tracker.get_run(run_id)
    assert run.data.metrics == {
        "baseline_success_rate": 0.5,
        "baseline_quality_score": 0.6,
        "baseline_avg_cost": 0.02,
        "baseline_avg_latency_ms": 120.0,
        "optimized_success_rate": 0.75,
        "optimized_quality_score": 0.9,
        "optimized_avg_cost": 0.01,
        "optimized_avg_latency_ms": 100.0,
        "success_rate_improvement": 0.25,
        "quality_improvement": pytest.approx(0.3),
        "cost_reduction": 0.01,
        "latency_reduction_ms": 20.0,
        "improvement_percentage": 0.5,
        "statistical_significance": 0.01,
        "iterations": 3.0,
        "duration_seconds": 1.5,
    }
    assert run.data.params == {"algorithm": "miprov2"}
    expected = {"target_type": "component", "target_id": "colours", "environment": "dev"}
    assert {**run.data.tags, **expected, "version": "7", "team": "a"} == run.data.tags
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time
    assert tracker.current_run_id is None
    assert await tracker.read_json(run_id, "algorithm_parameters.json") == {
        "algorithm": "miprov2",
        "auto": "light",
    }


async def test_training_data_is_an_artifact_and_an_input(tracker):
    run_id = await tracker.start_run(request())
    await tracker.log_training_data(colours(), colours().split())
    content = await tracker.read_json(run_id, "training_data.json")
    assert content["digest"] == colours().digest
    assert content["examples"] == colours().rows()
    assert [len(part["examples"]) for part in content["splits"].values()] == [14, 14, 17]


async def test_concurrent_tasks_each_have_their_own_run(tracker):
    async def one(index: int) -> tuple[str, str | None]:
        run_id = await tracker.start_run(request(f"target-{index}"))
        for step in range(3):
            await tracker.log_metrics({"value": index * 10 + step}, step=step)
            await asyncio.sleep(0)
        current = tracker.current_run_id
        await tracker.end_run()
        return run_id, current

    results = await asyncio.gather(*(one(index) for index in range(6)))
    assert len({run_id for run_id, _ in results}) == 6
    for index, (run_id, current) in enumerate(results):
        assert current == run_id
        run = await tracker.get_run(run_id)
        assert (run.data.metrics["value"], run.data.tags["target_id"]) == (index * 10 + 2, f"target-{index}")
    assert tracker.current_run_id is None


async def test_without_a_current_run(tracker):
    with pytest.raises(ConfigurationError, match="no current run in this task"):
        await tracker.log_metrics({"x": 1})


async def test_nan_is_refused(tracker):
    await tracker.start_run(request())
    with pytest.raises(ConfigurationError, match="must be finite numbers: x"):
        await tracker.log_metrics({"x": float("nan"), "y": 1})


async def test_the_best_run_is_ordered_by_the_server(tracker):
    """Among FINISHED runs with a finite value only; more runs than any page the client might sort."""
    values = [0.2, 0.9, 0.5, 0.9]
    ids = []
    for value in values:
        ids.append(await tracker.start_run(request()))
        await tracker.log_metrics({"improvement_percentage": value})
        await tracker.end_run()
    await tracker.start_run(request())  # no metric
    await tracker.end_run()
    await tracker.start_run(request())
    await tracker.log_metrics({"improvement_percentage": 5.0})
    await tracker.end_run("FAILED")
    infinite = await tracker.start_run(request())
    await tracker.gateway.call(
        lambda client: client.log_metric(infinite, "improvement_percentage", float("inf"))
    )
    await tracker.end_run()
    metric = "improvement_percentage"
    assert (await tracker.get_best_run(metric)).info.run_id == ids[1]
    assert (await tracker.get_best_run(metric, order_by="ASC")).info.run_id == ids[0]
    assert await tracker.get_best_run("nothing") is None
    assert await tracker.get_best_run(metric, target_id="other") is None
    for wrong in (
        {"metric": "a`b"},
        {"metric": metric, "order_by": "UP"},
        {"metric": ""},
        {"order_by": "ASC"},
    ):
        with pytest.raises(ConfigurationError):
            await tracker.get_best_run(**wrong)


async def test_search_is_newest_first_and_takes_filters(tracker):
    first = await tracker.start_run(request("a"))
    await tracker.end_run()
    second = await tracker.start_run(request("b"))
    assert [run.info.run_id for run in await tracker.search_runs()] == [second, first]
    assert [run.info.run_id for run in await tracker.search_runs("tags.target_id = 'a'")] == [first]
    assert len(await tracker.search_runs(max_results=1)) == 1
    with pytest.raises(TrackingError, match="Invalid clause"):
        await tracker.search_runs("nonsense")


async def test_statuses_are_checked(tracker):
    await tracker.start_run(request())
    with pytest.raises(ConfigurationError, match="got 'DONE'"):
        await tracker.end_run("DONE")


async def test_a_lost_reply_makes_no_second_run(tracker, monkeypatch):
    """The server made the run, the client saw an error: the run is found by its key."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    real = MlflowClient.create_run

    def lose_the_reply(self, *arguments, **named):
        real(self, *arguments, **named)
        raise MlflowException("the connection was reset")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "create_run", lose_the_reply)
        run_id = await tracker.start_run(request())
    await tracker.flush()
    (run,) = await tracker.search_runs()
    assert await tracker.tracking_id(run_id) == run.info.run_id


async def test_cleanup_asks_for_the_name(tracker):
    await tracker.start_run(request())
    with pytest.raises(ConfigurationError, match="pass confirm='dspy-optimization'"):
        await tracker.cleanup_experiment(confirm="yes")
    await tracker.cleanup_experiment(confirm="dspy-optimization")
    with pytest.raises(TrackingError, match="is deleted: restore it"):
        await tracker.search_runs()


async def test_a_model_is_logged_and_loaded(tracker):
    program = Classifier()
    program.predict.demos = [dspy.Example(thing="leaf", colour="green")]
    run_id = await tracker.start_run(request())
    await tracker.log_model_artifact(program, metadata={"why": "test"})
    model_id = await tracker.model_id(run_id)
    loaded = await tracker.load_model_artifact(run_id, "optimized_model")
    assert loaded.dump_state() == program.dump_state()
    prompt = await tracker.read_prompt(run_id)
    assert prompt["predict"]["demos"] == [{"thing": "leaf", "colour": "green"}]
    assert model_id.startswith("m-")
    with pytest.raises(ArtifactError, match="has no model 'other'; it has optimized_model"):
        await tracker.load_model_artifact(run_id, "other")


async def test_an_image_without_pip_is_no_reason_to_warn(tracker, monkeypatch, caplog):
    from mlflow.utils import environment

    monkeypatch.setattr(environment, "_get_package_version", lambda name: None)
    await tracker.start_run(request())
    await tracker.log_model_artifact(Classifier())
    await tracker.flush()
    assert caplog.messages == []


async def test_a_changed_artifact_is_refused(tracker, config):
    run_id = await tracker.start_run(request())
    await tracker.log_model_artifact(Classifier())
    await tracker.flush()
    (stored,) = Path(config.artifact_location).glob(f"{run_id}/artifacts/models/optimized_model.json")
    stored.write_bytes(stored.read_bytes().replace(b"colour", b"color!", 1))
    with pytest.raises(ArtifactError, match=r"optimized_model\.json was changed after it was logged"):
        await tracker.load_model_artifact(run_id)


@pytest.mark.parametrize("kind", ["artifact", "pyfunc"])
async def test_the_model_gives_the_same_answers_in_a_new_process_without_pickle(config, kind):
    result = await OptimizationPipeline(lm="offline/knn", mlflow_config=config).run_optimization(
        request("iris"), training_data="iris"
    )
    tracker = MLflowTracker(config)
    expected = await tracker.read_json(result.run_id, "test_examples.json")
    (output,) = (
        await tracker.gateway.call(lambda client: client.get_run(result.run_id))
    ).outputs.model_outputs
    script = f"""
import json, sys, agentcore, dspy
from agentcore.lm import offline_lm
from agentcore.tracking import MLflowConfig
from agentcore.dspy_optimization.tracking import MLflowTracker
rows = json.load(sys.stdin)
if {kind!r} == "artifact":
    tracker = MLflowTracker(MLflowConfig(tracking_uri={config.tracking_uri!r}))
    program = tracker.sync.load_model_artifact({result.run_id!r}, "optimized_model")
    with dspy.context(lm=offline_lm()):
        answers = [program(**row).species for row in rows]
else:
    import mlflow, pandas
    mlflow.set_tracking_uri({config.tracking_uri!r})
    model = mlflow.pyfunc.load_model("models:/{output.model_id}")
    answers = list(model.predict(pandas.DataFrame(rows))["species"])
print(json.dumps(answers))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "PATH": "/usr/bin:/bin",
            "HOME": str(Path.cwd()),
        },
    )
    sent = json.dumps([item["inputs"] for item in expected["examples"]]).encode()
    stdout, _ = await process.communicate(sent)
    assert process.returncode == 0
    answers = json.loads(stdout.splitlines()[-1])
    assert answers == [item["optimized"]["prediction"]["species"] for item in expected["examples"]]
    assert len(answers) == 65


async def test_no_call_blocks_the_loop_with_a_dead_server():
    """The server's socket accepts and says nothing: calls fail by our own time limit."""
    gaps, last = [], asyncio.get_running_loop().time()

    async def heartbeat():
        nonlocal last
        while True:
            await asyncio.sleep(0.01)
            now = asyncio.get_running_loop().time()
            gaps.append(now - last)
            last = now

    import mlflow  # noqa: F401 - its import is not what is measured

    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(heartbeat())
        with socket.create_server(("127.0.0.1", 0)) as server:
            uri = f"http://127.0.0.1:{server.getsockname()[1]}"
            tracker = MLflowTracker(MLflowConfig(tracking_uri=uri, request_timeout=1))
            with pytest.raises(TrackingError):
                await tracker.search_runs()
        watcher.cancel()
    assert max(gaps) < 0.5


def test_configuration_from_arguments_environment_and_file(monkeypatch, tmp_path):
    assert MLflowConfig().tracking_uri == "http://localhost:5000"
    assert MLflowConfig().experiment_name == "dspy-optimization"
    (tmp_path / ".env.mlflow").write_text(
        "# comment\nMLFLOW_EXPERIMENT_NAME=file\nMLFLOW_TRACKING_URI=http://file:1\nOTHER=x\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:2")
    config = MLflowConfig()
    assert (config.tracking_uri, config.experiment_name) == ("http://environment:2", "file")
    assert MLflowConfig(tracking_uri="http://argument:3").tracking_uri == "http://argument:3"


@pytest.mark.parametrize(
    ("content", "message"),
    [("MLFLOW_TRACKING_URI=x\nthis is no setting\n", "line 2: expected NAME=value"), ("=x\n", "line 1")],
)
def test_a_malformed_environment_file(tmp_path, content, message):
    (tmp_path / ".env.mlflow").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        MLflowConfig()


def test_wrong_configuration_does_not_repeat_secrets(monkeypatch):
    with pytest.raises(ConfigurationError, match="is not a tracking URI"):
        MLflowConfig(tracking_uri="localhost:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-secret")
    assert "hunter2" not in repr(MLflowConfig())
