"""A journal that was restored twice: only one of the copies goes on with a run."""

import asyncio
import shutil

import pytest
from mlflow import MlflowClient

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.errors import ConfigurationError, TrackingError
from agentcore.journal import close_journals, open_journal
from agentcore.lm import offline_lm
from agentcore.tracking import _delivery as delivery_module
from agentcore.tracking import stop_deliveries
from tests.dspy_optimization.test_resume import pipeline_for, stopped
from tests.support import AsyncClassifier


def use(state, monkeypatch):
    stop_deliveries()
    close_journals()
    monkeypatch.setenv("AGENTCORE_STATE_DIR", str(state))


async def two_copies(config, tmp_path, monkeypatch):
    run_id = await stopped(config, ("trial_finished", 1))
    await pipeline_for(config).flush(60)
    use(tmp_path / "state", monkeypatch)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    return run_id


async def test_the_second_is_refused(config, tmp_path, monkeypatch):
    run_id = await two_copies(config, tmp_path, monkeypatch)
    first = pipeline_for(config)
    result = await first.resume(run_id)
    await first.flush(60)
    use(tmp_path / "copy", monkeypatch)
    lm = offline_lm()
    with pytest.raises(ConfigurationError, match="resumed from another copy of this journal"):
        await pipeline_for(config, lm=lm).resume(run_id)
    assert lm.engine.calls == 0
    history = MlflowClient(config.tracking_uri).get_metric_history(result.run_id, "validation_score")
    steps = [item.step for item in history]
    assert steps == sorted(set(steps))
    # The first one may go on as often as it likes.
    use(tmp_path / "state", monkeypatch)
    with pytest.raises(ConfigurationError, match="has already finished"):
        await pipeline_for(config).resume(run_id)


async def test_so_it_is_where_mlflow_could_not_be_asked(config, tmp_path, monkeypatch):
    """Then its entries are held, and the run in MLflow stays the first one's."""
    monkeypatch.setattr(delivery_module, "_LONGEST_PAUSE", 0.2)
    run_id = await two_copies(config, tmp_path, monkeypatch)
    first = pipeline_for(config)
    result = await first.resume(run_id)
    await first.flush(60)
    use(tmp_path / "copy", monkeypatch)

    async def unasked(tracker, run):
        return None

    monkeypatch.setattr("agentcore.dspy_optimization.pipeline.check_only_copy", unasked)
    second = OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), seed=3, mlflow_config=config)
    await second.resume(run_id)
    with pytest.raises(TrackingError, match="resumed from another copy of this journal"):
        await second.flush(20)
    assert open_journal().stream(run_id).waiting > 0
    history = MlflowClient(config.tracking_uri).get_metric_history(result.run_id, "validation_score")
    assert len({item.step for item in history}) == len(history)


async def test_a_run_may_be_resumed_again_and_again_from_one(config):
    run_id = await stopped(config, ("example_measured", 5))
    for _ in range(2):
        await pipeline_for(config).flush(60)
        started = asyncio.Event()

        def follow(event, started=started):
            if event.kind == "example_measured":
                started.set()

        pipeline = pipeline_for(config, lm=offline_lm(latency=0.02), on_event=follow)
        task = asyncio.create_task(pipeline.resume(run_id))
        await asyncio.wait_for(started.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await pipeline_for(config).resume(run_id)).status == "completed"
