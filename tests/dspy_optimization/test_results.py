"""A finished run's result, read back from the journal or from MLflow."""

import json
from pathlib import Path

import numpy as np
import pytest

from agentcore.dspy_optimization import OptimizationPipeline, OptimizationResult
from agentcore.dspy_optimization.events import ResultRecorded
from agentcore.dspy_optimization.optimizers.labeled_few_shot import LabeledFewShot
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ArtifactError, ConfigurationError
from agentcore.journal import open_journal
from agentcore.lm import offline_lm
from tests.support import AsyncClassifier, colours, request


def pipeline_for(config, **values):
    return OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), mlflow_config=config, **values)


def same(read: OptimizationResult, made: OptimizationResult) -> bool:
    # Warnings of the delivery itself come after the result was recorded.
    return read.model_dump(exclude={"warnings"}) == made.model_dump(exclude={"warnings"})


async def test_it_comes_back_as_it_was_from_both(config):
    pipeline = pipeline_for(config)
    made = await pipeline.run_optimization(request(), training_data=colours())
    await pipeline.flush(60)
    from_journal = await pipeline.result(made.optimization_id)
    assert same(from_journal, made)
    assert from_journal.program is None
    assert type(from_journal.comparison) is type(made.comparison)
    assert from_journal.interval.low == made.interval.low
    for name in (made.run_id, made.run_id[:8], f"local-{made.optimization_id}", made.optimization_id[:8]):
        assert same(await pipeline.result(name), made)
    recorded = open_journal().read(made.optimization_id, of=ResultRecorded)
    assert len(recorded) == 1

    open_journal().discard(made.optimization_id)
    from_mlflow = await pipeline.result(made.run_id)
    assert same(from_mlflow, made)
    artifact = await MLflowTracker(config).read_json(made.run_id, "result.json")
    assert artifact["schema_version"] == 2
    assert "program" not in artifact
    assert pipeline.sync.result(made.run_id) == from_mlflow


async def test_a_run_without_a_result_says_why(config):
    lm = offline_lm(error_rate=1.0, num_retries=0)
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=lm, mlflow_config=config)
    with pytest.raises(Exception, match="the language model failed"):
        await pipeline.run_optimization(request(), training_data=colours())
    (stream,) = open_journal().streams()
    await pipeline.flush(60)
    with pytest.raises(ConfigurationError, match="has no result: it ended as FAILED"):
        await pipeline.result(stream.id)
    with pytest.raises(ConfigurationError, match="no run 'feed'"):
        await pipeline.result("feed")
    with pytest.raises(ConfigurationError, match="without tracking can't read a result"):
        await OptimizationPipeline(AsyncClassifier(), lm=lm, enable_tracking=False).result("feed")


async def test_a_result_of_another_schema_is_refused(config):
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    await tracker.log_json("result.json", {"schema_version": 2})
    await tracker.end_run()
    with pytest.raises(ArtifactError, match="another version of agentcore wrote it"):
        await pipeline_for(config).result(run_id)


def test_show_prints_it_as_json(config, command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    made = pipeline_for(config).sync.run_optimization(request(), training_data=colours())
    pipeline_for(config).sync.flush(60)
    for name in (made.run_id[:8], "latest", "best"):
        code, told = command("show", name, "--json")
        assert code == 0
        assert json.loads(told.out) == made.model_copy(
            update={"warnings": json.loads(told.out)["warnings"]}
        ).model_dump(mode="json")
    code, told = command("show", "zzz", "--json")
    assert (code, told.out) == (2, "")
    assert "no run 'zzz'" in told.err


class Odd(LabeledFewShot):
    """Reports what JSON can't represent."""

    async def optimize(self, task):
        task.details["odd"] = {"count": np.int64(3), "rate": float("nan"), 4: {Path("x")}, "kind": Path}
        return await super().optimize(task)


async def test_an_optimizer_may_report_anything(config, monkeypatch):
    """It cost the paid-for result: the run ended as FAILED."""
    monkeypatch.setattr("agentcore.dspy_optimization.optimizers.labeled_few_shot.LabeledFewShot", Odd)
    pipeline = pipeline_for(config)
    asked = request(algorithms=["labeled_few_shot"], optimizer_settings={})
    made = await pipeline.run_optimization(asked, training_data=colours())
    odd = made.optimization_details["odd"]
    assert odd == {"count": 3, "rate": "nan", "4": ["x"], "kind": str(Path)}
    await pipeline.flush(60)
    assert same(await pipeline.result(made.run_id), made)
    open_journal().discard(made.optimization_id)
    assert same(await pipeline.result(made.run_id), made)
