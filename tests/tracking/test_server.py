"""Tracker and pipeline on a real stack: MLflow's server on PostgreSQL, artifacts in S3 by its proxy."""

import asyncio
import json
import signal
import time

import dspy
import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import TrackingError
from agentcore.lm import offline_lm
from tests.support import AsyncClassifier, colours, request
from tests.support.stack import BUCKET


async def test_a_run_is_in_postgres_and_s3(own_stack, server):
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), mlflow_config=server, seed=1)
    result = await pipeline.run_optimization(request(), training_data=colours())
    assert result.status == "completed"
    assert not [warning for warning in result.warnings if "MLflow" in warning or "logged" in warning]
    await pipeline.flush()

    rows = own_stack.postgres.psql(f"\\c mlflow\nSELECT status FROM runs WHERE run_uuid = '{result.run_id}';")
    assert "FINISHED" in rows
    stored = own_stack.client().list_objects_v2(Bucket=BUCKET)["Contents"]
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
    body = json.loads(own_stack.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())
    assert body["digest"] == colours().digest


async def test_the_best_run_and_its_model(server):
    tracker = MLflowTracker(server)
    ids = []
    for seed in (1, 2):
        pipeline = OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), mlflow_config=server, seed=seed)
        ids.append(await pipeline.run_optimization(request(), training_data=colours()))
    best = max(ids, key=lambda result: result.improvement_percentage)
    found = await tracker.get_best_run()
    assert found.info.run_id == await tracker.tracking_id(best.run_id)
    loaded = await tracker.load_model_artifact(found.info.run_id)
    assert loaded.predict.demos
    with dspy.context(lm=offline_lm()):
        assert (await loaded.acall(thing="leaf grass")).colour == "green"


async def test_many_pipelines_at_once(server):
    """Four runs in one loop against a server with its default pool."""
    results = await asyncio.gather(
        *(
            OptimizationPipeline(
                AsyncClassifier(), lm=offline_lm(), mlflow_config=server, seed=seed
            ).run_optimization(request(f"target-{seed}"), training_data=colours())
            for seed in range(4)
        )
    )
    tracker = MLflowTracker(server)
    runs = {run.info.run_id: run for run in await tracker.search_runs()}
    ids = [await tracker.tracking_id(result.run_id) for result in results]
    assert set(runs) == set(ids)
    for seed, (run_id, result) in enumerate(zip(ids, results, strict=True)):
        run = runs[run_id]
        assert run.info.status == "FINISHED"
        assert run.data.tags["target_id"] == f"target-{seed}"
        assert run.data.metrics["lm_calls"] == result.spend.calls
        assert run.data.metrics["optimized_quality_score"] == result.optimized_performance.quality_score


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "is killed"])
async def test_a_server_lost_in_the_middle_costs_nothing(own_stack, server, fault):
    """The run goes on as if nothing was; what the server missed is delivered once it is back."""

    def follow(event):
        if event.kind == "trial_finished" and event.trial == 1:
            own_stack.signal_mlflow(fault)

    tracker = MLflowTracker(server)
    await tracker.search_runs()
    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=offline_lm(), mlflow_config=server, on_event=follow, seed=1
    )
    started = time.monotonic()
    result = await pipeline.run_optimization(request(), training_data=colours())
    assert time.monotonic() - started < 10
    assert result.status == "completed"
    with pytest.raises(TrackingError, match="1 run waits in the journal; deliver with: agentcore sync"):
        await pipeline.flush(timeout=3)

    if fault == signal.SIGSTOP:
        own_stack.signal_mlflow(signal.SIGCONT)
    else:
        own_stack.kill_mlflow()
        own_stack.start_mlflow()
    await asyncio.to_thread(own_stack.wait)
    await pipeline.flush(timeout=60)
    (run,) = await tracker.search_runs()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["optimized_quality_score"] == result.optimized_performance.quality_score
    assert run.info.run_id == await tracker.tracking_id(result.run_id)
    assert (await tracker.load_model_artifact(run.info.run_id)).predict.demos
