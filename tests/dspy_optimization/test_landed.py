"""Runs that an earlier version left in its journal are resumed and delivered by this one."""

import json

import pytest

from agentcore.dspy_optimization import OptimizationPipeline, OptimizationRequest, OptimizationTarget
from agentcore.dspy_optimization._resume import find_unfinished, recorded_data
from agentcore.dspy_optimization.events import RunResumed
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ConfigurationError, RunFinishedError
from agentcore.journal import open_journal
from agentcore.lm import offline_lm
from agentcore.settings import MLflowConfig
from agentcore.tracking import destination_of
from tests.support import QUICK, AsyncClassifier, colours, request
from tests.support.landed import BY_HAND, FINISHED, ONCE, UNFINISHED, unpack


@pytest.fixture
def landed(config: MLflowConfig, tmp_path):
    """The store that the journal's runs are for."""
    unpack(tmp_path / "state", destination_of(config))
    return config


def recorded_splits():
    journal, _, job = find_unfinished(UNFINISHED)
    return recorded_data(json.loads(journal.payloads.get(job.data)), UNFINISHED, job.spec["program"]["class"])


def pipeline_for(config, **values):
    return OptimizationPipeline(
        AsyncClassifier(), lm=offline_lm(), seed=3, max_concurrency=4, mlflow_config=config, **values
    )


async def test_the_undelivered_runs_are_delivered_whole(landed):
    tracker = MLflowTracker(landed)
    await tracker.deliver_backlog(60)
    run = await tracker.get_run(BY_HAND)
    assert (run.info.run_name, run.info.status) == ("by-hand", "FINISHED")
    assert run.data.metrics == {
        "x": 0.5,
        "y": 2.0,
        "baseline_success_rate": 0.5,
        "baseline_quality_score": 0.5,
    }
    assert run.data.params == {"algorithm": "none", "colour": "grün"}
    assert await tracker.read_json(BY_HAND, "notes.json") == {"text": "ä 日本", "n": [1, 2]}
    run = await tracker.get_run(FINISHED)
    assert run.info.status == "FINISHED"
    assert run.data.tags["optimization_status"] == "completed"
    program = await tracker.load_model_artifact(FINISHED)
    assert isinstance(program, AsyncClassifier)
    files = await tracker.gateway.call(lambda client: client.list_artifacts(run.info.run_id, "plots"))
    assert [item.path for item in files] == ["plots/comparison.png", "plots/trials.png"]
    assert await tracker.model_id(FINISHED)
    assert [item.waiting for item in open_journal().streams() if item.finished] == [0, 0]


async def test_the_unfinished_run_is_resumed_as_the_one_that_never_stopped(landed):
    seen = []
    pipeline = pipeline_for(landed, on_event=seen.append)
    _, splits = recorded_splits()
    resumed = await pipeline.resume(UNFINISHED[:8])
    # Divided as the earlier version did, and with its default.
    whole = await pipeline_for(landed).run_optimization(
        request("whole", settings={**QUICK, "racing_level": 0.35}),
        training_data=splits.train,
        validation_data=splits.validation,
        test_data=splits.test,
    )
    (start,) = [event for event in seen if isinstance(event, RunResumed)]
    assert start.trials == 4
    assert resumed.status == whole.status == "completed"
    assert resumed.improvement_percentage == whole.improvement_percentage
    details = resumed.optimization_details["trials"], whole.optimization_details["trials"]
    assert details[0] == details[1]
    # The new one warms up before the baseline, the resumed one before the winner.
    assert resumed.spend.calls == whole.spend.calls
    await pipeline.flush(60)
    run = await MLflowTracker(landed).get_run(UNFINISHED)
    assert (run.info.status, run.data.tags["optimization_status"]) == ("FINISHED", "completed")
    assert run.data.metrics["lm_calls"] == whole.spend.calls


async def test_its_name_is_known_and_its_result_is_not(landed):
    """Typed results came with the schema after it: the run says so instead of guessing."""
    pipeline = pipeline_for(landed)
    asked = OptimizationRequest(
        target=OptimizationTarget(id="finished"), optimizer_settings=request().optimizer_settings
    )
    with pytest.raises(RunFinishedError, match="has already finished"):
        await pipeline.run_optimization(asked, training_data=colours(), once=ONCE)
    with pytest.raises(ConfigurationError, match=r"is tracked at|has no result yet"):
        await pipeline.result(UNFINISHED)
