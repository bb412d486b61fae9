"""What a run claims: its verdict, and the care that makes it fair."""

import asyncio
import json
import random
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from agentcore.data import Dataset
from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ConfigurationError, DataError
from agentcore.lm import offline_lm
from tests.support import AsyncClassifier, Classifier, colours, request


def noise(count=80, seed=0):
    """Labels by coin flip: no program can be better than another."""
    flip = random.Random(seed)
    rows = [
        {"thing": f"thing {number}", "colour": flip.choice(["green", "red", "yellow"])}
        for number in range(count)
    ]
    return Dataset.from_rows(rows, input_fields=["thing"], name="noise")


def pipeline_of(config=None, program=None, **arguments):
    arguments.setdefault("lm", offline_lm())
    return OptimizationPipeline(
        program or AsyncClassifier(),
        mlflow_config=config,
        enable_tracking=config is not None,
        **arguments,
    )


@pytest.mark.parametrize("seed", range(4))
async def test_a_gain_on_noise_meets_no_threshold(seed):
    result = await pipeline_of(seed=seed).run_optimization(request(), training_data=noise(seed=seed))
    assert result.verdict in ("not proven", "worse")
    assert result.meets_threshold is False


async def test_the_verdict_and_its_figures_are_logged(config):
    pipeline = pipeline_of(config)
    result = await pipeline.run_optimization(request(), training_data=colours(60))
    await pipeline.flush(30)
    assert result.verdict == "better"
    assert result.meets_threshold
    run = MlflowClient(config.tracking_uri).get_run(result.run_id)
    assert run.data.tags["verdict"] == "better"
    metrics = run.data.metrics
    (quality,) = [item for item in result.claims if item.figure == "quality_score"]
    assert metrics["quality_improvement"] == pytest.approx(quality.gain)
    assert metrics["improvement_low"] == quality.interval.low
    assert metrics["improvement_high"] == quality.interval.high
    assert metrics["statistical_significance"] == quality.p_value
    assert metrics["optimized_quality_low"] == result.quality_interval.low
    assert metrics["optimized_quality_low"] < result.optimized_performance.quality_score
    assert metrics["baseline_median_latency_ms"] >= 0


async def test_a_threshold_beyond_the_gain_is_not_met():
    result = await pipeline_of().run_optimization(
        request(constraints={"min_improvement_threshold": 50.0}), training_data=colours(60)
    )
    assert result.verdict == "better"
    assert result.meets_threshold is False


class SlowStart:
    """The provider's first answer takes a second, as one that has to load a model does."""

    def __init__(self, lm, seconds):
        self.engine, self.seconds = lm.engine, seconds
        self.begin = lm.engine._begin
        lm.engine._begin = self

    def __call__(self):
        failing = self.begin()
        if self.engine.calls == 1:
            time.sleep(self.seconds)
        return failing


@pytest.mark.parametrize("program", [Classifier, AsyncClassifier])
async def test_the_first_call_is_no_latency_of_the_baseline(program):
    lm = offline_lm()
    SlowStart(lm, 1.0)
    result = await pipeline_of(program=program(), lm=lm).run_optimization(
        request(), training_data=colours(60)
    )
    assert result.spend_by_stage["warmup"].calls == 1
    assert result.spend.calls == lm.engine.calls
    assert result.measured_baseline.avg_latency_ms < 300


async def test_cost_and_latency_are_measured_at_the_same_time(config):
    """The provider is three times slower by the time of the winner: that is not the winner's doing."""
    lm = offline_lm(latency=0.05)

    def follow(event):
        if event.kind == "trial_finished":
            lm.engine.latency = 0.15

    objectives = [{"metric": "quality_score"}, {"metric": "avg_latency_ms"}]
    pipeline = pipeline_of(config, lm=lm, on_event=follow)
    result = await pipeline.run_optimization(request(objectives=objectives), training_data=colours(60))
    await pipeline.flush(30)
    before, after = result.measured_baseline, result.optimized_performance
    assert before.avg_latency_ms > 140
    assert after.avg_latency_ms == pytest.approx(before.avg_latency_ms, rel=0.5)
    latency = {item.figure: item for item in result.claims}["avg_latency_ms"]
    metrics = MlflowClient(config.tracking_uri).get_run(result.run_id).data.metrics
    assert metrics["avg_latency_ms_gain"] == latency.gain
    assert metrics["avg_latency_ms_gain_low"] == latency.interval.low
    assert metrics["avg_latency_ms_gain_high"] == latency.interval.high
    assert metrics["avg_latency_ms_p_value"] == latency.p_value != result.statistical_significance
    assert result.spend.calls == lm.engine.calls
    # Baseline, and once more beside the winner.
    tested = result.comparison.examples
    assert result.spend_by_stage["baseline"].calls == 2 * tested
    assert result.spend_by_stage["winner"].calls == tested


async def test_repeats_are_independent_answers():
    """Not the cached answer three times."""
    lm = offline_lm(cache=True)
    result = await pipeline_of(lm=lm, repeats=3).run_optimization(request(), training_data=colours(60))
    tested = result.comparison.examples
    for stage in ("baseline", "winner"):
        spent = result.spend_by_stage[stage]
        assert (spent.calls, spent.cache_hits) == (3 * tested, 0)
    assert result.spend.calls == lm.engine.calls


async def test_clusters_are_what_the_run_tests():
    rows = [{**row, "doc": number // 5} for number, row in enumerate(colours(150).rows())]
    result = await pipeline_of(cluster="doc").run_optimization(request(), training_data=rows)
    assert result.comparison.method == "clusters"
    assert result.comparison.clusters < result.comparison.examples / 3
    assert "doc" not in result.program.predict.demos[0]
    with pytest.raises(DataError, match="no field 'nope' for cluster"):
        await pipeline_of(cluster="nope").run_optimization(request(), training_data=rows)


async def test_another_seed_is_tested_on_the_same_examples(config):
    digests = set()
    for seed in (0, 5):
        pipeline = pipeline_of(config, seed=seed)
        result = await pipeline.run_optimization(request(), training_data=colours(60))
        await pipeline.flush(30)
        digests.add(MlflowClient(config.tracking_uri).get_run(result.run_id).data.params["test_digest"])
    assert len(digests) == 1
    other = pipeline_of(config, split_seed=1)
    result = await other.run_optimization(request(), training_data=colours(60))
    await other.flush(30)
    digests.add(MlflowClient(config.tracking_uri).get_run(result.run_id).data.params["test_digest"])
    assert len(digests) == 2


class TestStartFrom:
    @pytest.fixture
    async def earlier(self, config):
        pipeline = pipeline_of(config)
        result = await pipeline.run_optimization(request(), training_data=colours(60))
        await pipeline.flush(30)
        return result

    async def test_its_test_split_is_kept(self, config, earlier):
        pipeline = pipeline_of(config, start_from=earlier.run_id, seed=2, split_seed=7)
        result = await pipeline.run_optimization(request(), training_data=colours(60))
        await pipeline.flush(30)
        client = MlflowClient(config.tracking_uri)
        first, second = (client.get_run(item.run_id).data for item in (earlier, result))
        assert first.params["test_digest"] == second.params["test_digest"]
        assert second.params["start_from"] == earlier.run_id
        # It starts where the other ended.
        assert result.measured_baseline.quality_score == earlier.optimized_performance.quality_score

    async def test_a_test_split_of_ones_own_that_it_has_seen_is_refused(self, config, earlier):
        lm = offline_lm()
        pipeline = pipeline_of(config, lm=lm, start_from=earlier.run_id)
        demo = dict(earlier.program.predict.demos[0])
        twin = {"thing": f" {str(demo['thing']).upper()}.", "colour": demo["colour"]}
        others = [{"thing": f"leaf apart {number}", "colour": "green"} for number in range(40)]
        with pytest.raises(DataError, match=r"1 of 11 test examples \(rows 1\) are demonstrations of the"):
            await pipeline.run_optimization(
                request(),
                training_data=Dataset.from_rows(others[:10], input_fields=["thing"]),
                validation_data=Dataset.from_rows(others[10:20], input_fields=["thing"]),
                test_data=Dataset.from_rows([twin, *others[20:30]], input_fields=["thing"]),
            )
        assert lm.engine.calls == 0

    async def test_a_run_that_is_not_there(self, config, earlier):
        with pytest.raises(ConfigurationError, match="no run"):
            await pipeline_of(config, start_from="f" * 32).run_optimization(
                request(), training_data=colours(60)
            )


async def test_a_programs_own_demonstrations_are_not_what_it_is_tested_on():
    data = colours(60)
    program = AsyncClassifier()
    program.predict.demos = [item.dspy for item in data.split().test][:6]
    own = {demo["thing"] for demo in program.predict.demos}
    events = []
    result = await pipeline_of(program=program, on_event=events.append).run_optimization(
        request(), training_data=data
    )
    seen = [event for event in events if event.kind == "example_measured" and event.evaluation == "baseline"]
    digests = {item.digest for item in data if item.values["thing"] in own}
    assert seen
    assert not digests & {event.record["digest"] for event in seen}
    assert result.status == "completed"


class TestRanking:
    async def logged(self, config, runs, target="t"):
        """Finished runs with these figures: (baseline, quality's lower bound, gain's lower bound, digest)."""
        tracker, ids = MLflowTracker(config), []
        for baseline, low, gain, digest in runs:
            run_id = await tracker.start_run(request(target=target))
            figures = {
                "improvement_percentage": (low - baseline) / baseline,
                "improvement_low": gain,
                "optimized_quality_low": low,
                "optimized_quality_score": low + 0.05,
            }
            await tracker.log_metrics(figures)
            await tracker.log_params({"test_digest": digest})
            await tracker.end_run()
            ids.append(run_id)
        await tracker.flush(60)
        return tracker, ids

    async def test_a_bad_baseline_does_not_win(self, config):
        tracker, ids = await self.logged(
            config, [(0.6, 0.9, 0.2, "d"), (0.01, 0.5, 0.3, "d"), (0.7, 0.85, 0.1, "d")]
        )
        assert (await tracker.get_best_run()).info.run_id == ids[0]
        assert (await tracker.get_best_run("improvement_percentage")).info.run_id == ids[1]
        worst = await tracker.get_best_run("improvement_percentage", "ASC")
        assert worst.info.run_id == ids[2]

    async def test_a_gain_that_is_not_proven_does_not_win(self, config):
        tracker, ids = await self.logged(config, [(0.6, 0.7, 0.05, "d"), (0.6, 0.95, -0.01, "d")])
        assert (await tracker.get_best_run()).info.run_id == ids[0]

    async def test_only_runs_on_the_same_test_examples_are_ranked(self, config):
        tracker, ids = await self.logged(config, [(0.6, 0.99, 0.2, "easy"), (0.6, 0.8, 0.2, "now")])
        assert (await tracker.get_best_run()).info.run_id == ids[1]

    async def test_only_runs_of_one_target_are_ranked(self, config):
        tracker, ids = await self.logged(config, [(0.6, 0.99, 0.2, "d")], "other")
        _, mine = await self.logged(config, [(0.6, 0.8, 0.2, "d")], "mine")
        assert (await tracker.get_best_run()).info.run_id == mine[0]
        assert (await tracker.get_best_run(target_id="other")).info.run_id == ids[0]

    def test_none_is_proven(self, config, command, monkeypatch):
        tracker, _ = asyncio.run(self.logged(config, [(0.6, 0.7, -0.05, "d")]))
        assert tracker.sync.get_best_run() is None
        monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
        code, printed = command("best")
        assert code == 1
        assert "proven" in printed.out + printed.err


class TestShow:
    @pytest.fixture
    def finished(self, config, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
        pipeline = pipeline_of(config)
        result = pipeline.sync.run_optimization(request(), training_data=colours(60))
        pipeline.sync.flush(30)
        return result

    @staticmethod
    def things(config, run_id, name):
        return Path(MlflowClient(config.tracking_uri).download_artifacts(run_id, name)).read_text()

    def test_no_test_example_is_shown_unasked(self, config, finished, command):
        code, printed = command("show", finished.run_id, "--examples", "100")
        assert code == 0
        validation = json.loads(self.things(config, finished.run_id, "validation_examples.json"))
        test = json.loads(self.things(config, finished.run_id, "test_examples.json"))
        shown = "".join(printed.out.split())
        tested = ["".join(item["inputs"]["thing"].split()) for item in test["examples"]]
        asked = ["".join(item["inputs"]["thing"].split()) for item in validation["examples"]]
        assert not any(f"thing={text}|" in shown for text in tested)
        assert any(f"thing={text}|" in shown for text in asked)
        assert "agentcore.test_revealed" not in self.tags(config, finished)

    def test_what_is_shown_of_the_test_split_is_on_the_record(self, config, finished, command):
        code, printed = command("show", finished.run_id, "--reveal-test")
        assert code == 0
        assert "test examples fixed" in printed.out
        MLflowTracker(config).sync.flush(30)
        assert self.tags(config, finished)["agentcore.test_revealed"]
        code, printed = command("show", finished.run_id)
        assert "its test examples were shown" in printed.out

    @staticmethod
    def tags(config, result):
        return MlflowClient(config.tracking_uri).get_run(result.run_id).data.tags
