"""MLflow away: nothing lost, nothing blocked."""

import contextlib
import socket
import threading
import time

import pytest

from agentcore.journal import open_journal
from agentcore.monitoring import AgentTracker, EvaluationTracker, MetricsCollector, ModelEvaluator
from agentcore.settings import MLflowConfig
from tests.monitoring.loans import TARGET, applications, decide, saved

BLOCKED = 0.05
"""Seconds that a call may take."""


@pytest.fixture(params=["refuses", "hangs"])
def dead(request):
    """A server that refuses connections, or accepts them and never answers."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if request.param == "hangs":
            listener.listen(50)
        else:
            listener.close()
        yield MLflowConfig(tracking_uri=f"http://127.0.0.1:{port}", request_timeout=1)


def timed(call, *args, **kwargs):
    """How long a call takes, and what it returns."""
    began = time.perf_counter()
    found = call(*args, **kwargs)
    return time.perf_counter() - began, found


def test_a_running_agent_does_not_notice(dead, tmp_path):
    open_journal()  # its migrations are not part of a call
    tracker = AgentTracker("loan_approval", dead)
    collector = MetricsCollector("loan_approval", config=dead)
    took = {name: [] for name in ("start", "metrics", "params", "request", "record", "window", "end")}
    runs = []
    for number in range(12):
        seconds, run_id = timed(tracker.start_run)
        took["start"].append(seconds)
        runs.append(run_id)
        took["metrics"].append(timed(tracker.log_metrics, {"a": 1.0}, number)[0])
        took["params"].append(timed(tracker.log_params, {"a": 1})[0])
        took["request"].append(timed(tracker.log_request, f"r{number}", {"a": 1}, {}, 1.0)[0])
        took["record"].append(timed(collector.record_duration, 1.0)[0])
        took["window"].append(timed(collector.flush_window)[0])
        took["end"].append(timed(tracker.end_run)[0])
    # Half of the calls: others may wait for a processor that other tests use.
    for name, seconds in took.items():
        assert sorted(seconds)[len(seconds) // 2] < BLOCKED, (name, seconds)
    assert all(run.startswith("local-") for run in runs)
    waiting = {item.id: item.waiting for item in open_journal().waiting(dead.tracking_uri)}
    assert len(waiting) == 13
    assert all(waiting.values())


def test_evaluations_go_on(dead, tmp_path):
    open_journal()
    seconds, run_id = timed(EvaluationTracker(config=dead).track_evaluation, {"build_success_rate": 1.0})
    assert run_id.startswith("local-")
    own = ModelEvaluator(
        "loan_approval", decide, datasets=saved(tmp_path / "sets", rows=applications(30)), config=dead
    )
    found = own.evaluate_dataset("rows", TARGET)
    assert found.run_id.startswith("local-")
    assert seconds < 1.0  # not the two seconds for which start_run waits for a server that answers


def test_everything_arrives_later(dead, tmp_path, config):
    """The same journal, delivered to a server that is there."""
    tracker = AgentTracker("loan_approval", config)
    held = threading.Event()
    tracker.start_run()
    tracker.log_metrics({"a": 1.0})
    tracker.log_request("r", {"a": 1}, {"b": 2}, 5.0)
    held.set()
    tracker.end_run()
    tracker.flush(60)
    from mlflow import MlflowClient

    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name("/Shared/ai-agents/loan_approval")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["a"] == 1.0
    assert len(client.search_traces(locations=[experiment.experiment_id])) == 1
