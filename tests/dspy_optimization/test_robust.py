"""What programs, metrics, listeners and trackers may do without a wrong figure, a hang or a lost result."""

import asyncio
import gc
import os
import threading
import time
from base64 import b64encode
from contextlib import contextmanager
from pathlib import Path

import dspy
import pytest
import requests
from mlflow.tracking.request_auth.registry import fetch_auth

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization._entries import OptimizationEntries
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ConfigurationError, MetricError
from agentcore.evaluation import ScoredMetric, evaluate, exact_match
from agentcore.lm import offline_lm
from agentcore.settings import MLflowConfig, Settings, StackSettings
from agentcore.tracking import prepare_environment
from agentcore.tracking._connection import Connection
from tests.support import AsyncClassifier, Classifier, colours, request


def untracked(program=None, metric=None, lm=None, **values):
    return OptimizationPipeline(
        program or AsyncClassifier(), metric, lm or offline_lm(), enable_tracking=False, **values
    )


async def test_an_unchanged_program_is_no_improvement():
    """Measured twice, its second figures would be the cache's: free of charge and 100% better."""
    lm = offline_lm()
    result = await untracked(metric=lambda example, prediction: 0.5, lm=lm).run_optimization(
        request(), training_data=colours()
    )
    assert result.improvement_percentage == 0.0
    assert not result.meets_threshold
    assert result.statistical_significance == 1.0
    assert "winner" not in result.spend_by_stage
    assert any("kept the original program" in warning for warning in result.warnings)


async def test_whatever_logging_raises_the_result_is_kept(config, monkeypatch):
    def broken(self, *arguments, **named):
        raise TypeError("keys must be str")

    monkeypatch.setattr(OptimizationEntries, "evaluation", broken)
    result = await OptimizationPipeline(
        AsyncClassifier(), lm=offline_lm(), mlflow_config=config, seed=1
    ).run_optimization(request(), training_data=colours())
    assert result.status == "completed"
    assert any("could not be logged: TypeError" in warning for warning in result.warnings)
    run = await MLflowTracker(config).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert "optimized_quality_score" in run.data.metrics


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt])
async def test_odd_exceptions_of_a_metric_are_errors_not_hangs(error):
    def metric(example, prediction):
        raise error("odd")

    with pytest.raises(MetricError, match=f"{error.__name__} raised in a worker thread"):
        async with asyncio.timeout(10):
            await untracked(metric=metric).run_optimization(request(), training_data=colours())


def test_a_metric_that_exits_leaves_the_sync_twin_usable():
    async def leave(example, prediction):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        untracked(metric=leave).sync.run_optimization(request(), training_data=colours())
    assert untracked().sync.run_optimization(request(), training_data=colours()).status == "completed"


class OnlyForward(dspy.Predict):
    """Inherits an `aforward` that knows nothing of its `forward`."""

    def forward(self, **inputs):
        return dspy.Prediction(colour="mine")


async def test_a_subclass_that_overrides_forward_only_is_what_is_measured():
    report = await evaluate(
        OnlyForward("thing -> colour"), colours(6), ScoredMetric(exact_match), lm=offline_lm()
    )
    assert {record.prediction["colour"] for record in report.records} == {"mine"}


class Cancelling(AsyncClassifier):
    async def aforward(self, thing):
        if int(thing.split()[-1]) == 3:
            raise asyncio.CancelledError("a tool's")
        return dspy.Prediction(colour="red")


async def test_a_program_that_raises_cancelled_loses_no_example():
    report = await evaluate(Cancelling(), colours(30), ScoredMetric(exact_match), lm=offline_lm())
    assert len(report.records) == 30
    (failure,) = report.failures
    assert (failure.index, failure.failed) == (3, "program")


async def test_a_column_that_is_neither_input_nor_output_is_not_compared():
    rows = [{"id": index, **row} for index, row in enumerate(colours().rows())]
    result = await untracked(dspy.Predict("thing -> colour"), seed=1).run_optimization(
        request(), training_data=rows
    )
    assert result.optimized_performance.quality_score > 0.5
    assert any("exact_match does not compare id" in warning for warning in result.warnings)


@pytest.mark.parametrize("name", ["labels", "items", "keys", "values", "get"])
def test_exact_match_reads_fields_with_the_names_of_methods(name):
    example = dspy.Example(**{"q": 1, name: "a"}).with_inputs("q")
    assert exact_match(example, dspy.Prediction(**{name: "a"}))
    assert not exact_match(example, dspy.Prediction(**{name: "b"}))


def test_exact_match_on_enums_models_and_large_numbers():
    import enum

    import pydantic

    class Kind(enum.Enum):
        RED = "red"

    class Point(pydantic.BaseModel):
        x: int

    def match(label, predicted):
        return exact_match(dspy.Example(q=1, value=label).with_inputs("q"), dspy.Prediction(value=predicted))

    assert match("red", Kind.RED)
    assert match({"x": 1}, Point(x=1))
    assert match(10**400, 10**400)
    assert not match(1234567890123, 1234567890124)


@contextmanager
def slowly(monkeypatch, seconds):
    """Within the block each MLflow request takes that long."""
    real = Connection.run

    def run(self, work):
        time.sleep(seconds)
        return real(self, work)

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "run", run)
        yield


@pytest.mark.parametrize("after", [0.05, 0.25])
async def test_a_run_cancelled_while_it_starts_does_not_stay_running(config, monkeypatch, after):
    events = []
    await MLflowTracker(config).search_runs()
    with slowly(monkeypatch, 0.2):
        pipeline = OptimizationPipeline(
            AsyncClassifier(), lm=offline_lm(), mlflow_config=config, on_event=events.append
        )
        task = asyncio.create_task(pipeline.run_optimization(request(), training_data=colours()))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [run.info.status for run in await MLflowTracker(config).search_runs()] in ([], ["KILLED"])
    assert [event.kind for event in events][-1] == "run_finished"


async def test_killed_is_said_also_to_a_slow_server(config, monkeypatch):
    events, reached = [], asyncio.Event()

    def follow(event):
        events.append(event)
        if event.kind == "trial_finished":
            reached.set()

    with slowly(monkeypatch, 0.4):
        pipeline = OptimizationPipeline(
            AsyncClassifier(), lm=offline_lm(latency=0.05), mlflow_config=config, on_event=follow
        )
        task = asyncio.create_task(pipeline.run_optimization(request(), training_data=colours()))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [run.info.status for run in await MLflowTracker(config).search_runs()] == ["KILLED"]
    assert events[-1].kind == "run_finished"


@pytest.mark.parametrize("kind", ["run_started", "trial_finished", "run_finished"])
async def test_a_listener_that_raises_costs_nothing_but_itself(config, kind):
    def follow(event):
        if event.kind == kind:
            raise BrokenPipeError("gone")

    pipeline = OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), mlflow_config=config, on_event=follow)
    result = await pipeline.run_optimization(request(), training_data=colours())
    assert result.status == "completed"
    assert any("on_event raised BrokenPipeError" in warning for warning in result.warnings)
    assert (await MLflowTracker(config).get_run(result.run_id)).info.status == "FINISHED"


class Many(Classifier):
    """Makes twenty calls one after the other, in a thread that no cancellation ends."""

    def forward(self, thing):
        return [self.predict(thing=f"{thing} {number}") for number in range(20)][-1]


async def test_cancelling_the_baseline_stops_synchronous_programs_at_their_next_call():
    lm = offline_lm(latency=0.02)
    task = asyncio.create_task(untracked(Many(), lm=lm).run_optimization(request(), training_data=colours()))
    while lm.engine.calls < 20:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    calls = lm.engine.calls
    await asyncio.sleep(0.3)
    assert lm.engine.calls <= calls


async def test_a_call_limit_that_can_hold_no_search_spends_nothing():
    lm = offline_lm()
    with pytest.raises(ConfigurationError, match="leaves nothing for the search"):
        await untracked(lm=lm).run_optimization(
            request(constraints={"max_lm_calls": 5}), training_data=colours()
        )
    assert lm.engine.calls == 0


@pytest.mark.parametrize("constraint", [{"max_lm_calls": 100}, {"max_optimization_time": 0.3}])
async def test_a_limit_leaves_no_unretrieved_exception(constraint):
    noise = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context["message"]))
    for seed in range(4):
        pipeline = untracked(lm=offline_lm(latency=0.01), seed=seed)
        await pipeline.run_optimization(
            request(constraints=constraint, settings={"auto": "heavy"}), training_data=colours()
        )
    gc.collect()
    await asyncio.sleep(0.1)
    assert noise == []


def test_two_threads_of_one_sync_twin_share_nothing():
    pipeline = untracked(seed=1)
    alone = pipeline.sync.run_optimization(request(), training_data=colours())
    twin, results = pipeline.sync, []
    threads = [
        threading.Thread(
            target=lambda: results.append(twin.run_optimization(request(), training_data=colours()))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.spend_by_stage for result in results] == [alone.spend_by_stage] * 2


def test_the_sync_trackers_run_goes_on_from_call_to_call(config):
    tracker = MLflowTracker(config)
    run_id = tracker.sync.start_run(request())
    tracker.sync.log_metrics({"x": 1})
    tracker.sync.end_run()
    assert tracker.sync.get_run(run_id).data.metrics == {"x": 1.0}
    with pytest.raises(ConfigurationError, match="no current run"):
        tracker.sync.log_metrics({"x": 1})


def test_each_server_gets_the_credentials_of_its_own_configuration():
    prepare_environment(
        MLflowConfig(tracking_uri="https://a.example", tracking_token="for a", request_timeout=60)
    )
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "60"
    prepare_environment(
        MLflowConfig(tracking_uri="https://b.example", tracking_username="me", tracking_password="for b")
    )
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"

    def sent(url):
        headers = {"Authorization": "from the environment"} if "c.example" in url else {}
        request = requests.Request("GET", url, headers=headers, auth=fetch_auth("agentcore"))
        return request.prepare().headers.get("Authorization")

    assert sent("https://a.example/api/2.0/mlflow") == "Bearer for a"
    assert sent("https://b.example/api/2.0/mlflow") == "Basic " + b64encode(b"me:for b").decode()
    assert sent("https://c.example/api") == "from the environment"
    assert sent("https://you:pw@d.example/api") == "Basic " + b64encode(b"you:pw").decode()
    assert sent("https://e.example/api") is None
    # requests writes a host in lower case and in ASCII.
    prepare_environment(MLflowConfig(tracking_uri="https://F.Example:443/", tracking_token="for f"))
    prepare_environment(MLflowConfig(tracking_uri="https://bücher.example", tracking_token="for books"))
    assert sent("https://f.example/api") == sent("https://F.EXAMPLE:443/api") == "Bearer for f"
    assert sent("https://f.example:8443/api") is None
    assert sent("https://bücher.example/api") == "Bearer for books"
    with pytest.raises(ConfigurationError, match="already uses other credentials"):
        prepare_environment(MLflowConfig(tracking_uri="https://f.example", tracking_token="of another user"))
    with pytest.raises(
        ConfigurationError, match=r"already uses other credentials for MLflow at https://a\.example"
    ):
        prepare_environment(MLflowConfig(tracking_uri="https://a.example", tracking_token="of another user"))


def test_an_empty_variable_is_unset(monkeypatch):
    monkeypatch.delenv("AGENTCORE_STATE_DIR")
    for settings in (Settings, MLflowConfig, StackSettings):
        prefix = settings.model_config["env_prefix"]
        expected = settings()
        for name in settings.model_fields:
            monkeypatch.setenv(f"{prefix}{name}".upper(), "")
        assert settings() == expected
        lines = [f"{prefix}{name}=\n".upper() for name in settings.model_fields]
        Path(".env.mlflow").write_text("".join(lines))
        assert settings() == expected
        Path(".env.mlflow").unlink()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "")
    prepare_environment(MLflowConfig())
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


def test_a_token_wins_over_another_servers_name_and_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of the first server")
    second = MLflowConfig(tracking_uri="https://second.example", tracking_token="for the second")
    assert (second.tracking_username, second.tracking_password) == (None, None)
    assert MLflowConfig().tracking_username == "me"
    both = MLflowConfig(tracking_token="t", tracking_username="you", tracking_password="pw")
    assert both.tracking_username == "you"


async def test_a_request_that_is_none_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="target: Field required"):
        await untracked().run_optimization({}, training_data=colours())
    with pytest.raises(ConfigurationError, match="success_rate"):
        await untracked().run_optimization(request(), {"success_rate": 5}, colours())
