"""Request metrics: nothing lost, quantiles right, memory bounded, windows in MLflow."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from mlflow import MlflowClient

from agentcore.errors import ConfigurationError
from agentcore.monitoring import get_metrics_collector, merged_summary, recorded_summary
from agentcore.monitoring._collector import MetricsCollector
from agentcore.monitoring._totals import MAX_NAMES, Distribution, Totals


def test_the_documented_way(config):
    collector = get_metrics_collector("loan_approval", run_id="optional_run_id", config=config)
    collector.record_request(status="approved")
    collector.record_duration(duration=125.5)
    collector.record_token_usage(model="gpt-4", tokens=500)
    collector.record_error(error_type="ValidationError")
    summary = collector.get_summary()
    assert summary["total_requests"] == 1
    assert summary["requests_by_status"] == {"approved": 1}
    assert summary["avg_duration_ms"] == 125.5
    assert summary["tokens_by_model"] == {"gpt-4": 500}
    assert summary["errors_by_type"] == {"ValidationError": 1}
    assert summary["error_rate"] == 1.0
    assert get_metrics_collector("loan_approval", run_id="optional_run_id") is collector


def test_nothing_is_lost_by_eight_threads(config):
    collector = MetricsCollector("loan_approval", config=config)
    values = np.random.default_rng(0).lognormal(4, 1, (8, 25_000))
    start = threading.Barrier(8)

    def record(own):
        start.wait()
        for value in own.tolist():
            collector.record_duration(value)
            collector.record_request("ok")
            collector.record_token_usage("m", input_tokens=3, output_tokens=2)

    threads = [threading.Thread(target=record, args=(own,)) for own in values]
    for thread in threads:
        thread.start()
    for _ in range(20):  # readers don't disturb
        collector.get_summary()
    for thread in threads:
        thread.join()
    found = collector.get_summary()
    assert found["durations"] == found["total_requests"] == 200_000
    assert found["input_tokens"] == 600_000
    assert found["total_tokens"] == 1_000_000
    for name, share in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert found[f"{name}_duration_ms"] == pytest.approx(np.percentile(values, share), rel=0.01)
    assert found["avg_duration_ms"] == pytest.approx(values.mean())


@pytest.mark.parametrize(
    "values",
    [[0.0] * 50, [5.0], [-3.0, -1.0, 0.0, 2.0, 1e-9], list(range(1, 2000)), [1e15, 1e-3]],
)
def test_any_values(values):
    found = Distribution()
    found.add(np.asarray(values, dtype=float))
    again = Distribution.of(json.loads(json.dumps(found.state())))
    assert again.summary() == found.summary()
    assert found.count == len(values)
    assert (found.low, found.high) == (min(values), max(values))
    assert found.low <= found.quantiles([0.5])[0] <= found.high


def test_memory_is_bounded():
    totals = Totals()
    draw = np.random.default_rng(1)
    for _ in range(20):
        totals.durations.add(10 ** draw.uniform(-9, 15, 10_000))
        totals.add_counts("requests", totals.requests, {f"status {number}": 1 for number in range(1000)})
        for number in range(200):
            totals.add_scores(f"score {number}", draw.random(3))
    assert len(totals.durations.bins) < 6000
    assert len(totals.requests) <= MAX_NAMES + 1
    assert totals.requests.total() == 20_000
    assert len(totals.scores) <= MAX_NAMES + 1


def test_processes_add_up(config):
    collectors = [MetricsCollector(f"agent{number}", config=config) for number in range(3)]
    for number, collector in enumerate(collectors):
        for value in range(100):
            collector.record_duration(value + 100 * number)
            collector.record_score("risk", value)
    states = [json.loads(json.dumps(collector.state())) for collector in collectors]
    found = merged_summary(states)
    assert found["durations"] == 300
    assert found["p50_duration_ms"] == pytest.approx(149.5, rel=0.01)
    assert found["scores"]["risk"]["count"] == 300


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "12", None])
def test_wrong_values_are_refused(config, value):
    collector = MetricsCollector("loan_approval", config=config)
    with pytest.raises(ConfigurationError, match="duration"):
        collector.record_duration(value)
    with pytest.raises(ConfigurationError, match="tokens"):
        collector.record_token_usage("m", value)
    if value != -1:
        with pytest.raises(ConfigurationError, match="score"):
            collector.record_score("risk", value)
    assert collector.get_summary()["durations"] == 0


def test_windows_reach_mlflow(config, monkeypatch):
    monkeypatch.setenv("AGENTCORE_METRICS_WINDOW", "3600")
    collector = MetricsCollector("loan_approval", config=config)
    for window in range(2):
        for value in range(100):
            collector.record_duration(10 + window)
            collector.record_request("approved" if value % 4 else "../re/jected\n")
            collector.record_score("risk", value)
        collector.window = 0.001  # windows are numbered by time
        time.sleep(0.01)
        collector.flush(60)
    collector.close()
    collector.flush(60)
    client = MlflowClient(config.tracking_uri)
    run = collector._tracker.sync.get_run(collector.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "/Shared/ai-agents/loan_approval"
    assert run.info.run_name.startswith("loan_approval_metrics_")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["requests"] == 100
    assert run.data.metrics["requests_total"] == 200
    assert run.data.metrics["requests/approved"] == 75
    assert run.data.metrics["p95_latency_ms"] == pytest.approx(11, rel=0.01)
    history = client.get_metric_history(run.info.run_id, "avg_latency_ms")
    assert [item.value for item in history] == [10, 11]
    assert history[0].step < history[1].step
    whole = recorded_summary(collector.run_id, "loan_approval", config)
    assert whole["durations"] == 200
    assert whole == {name: value for name, value in collector.get_summary().items() if name in whole}


def test_a_window_that_cannot_be_written_waits(config, monkeypatch):
    from agentcore.errors import JournalError

    collector = MetricsCollector("loan_approval", config=config)
    collector.record_request("ok")
    log = collector._tracker.log

    async def broken(*args, **kwargs):
        raise JournalError("disk full")

    monkeypatch.setattr(collector._tracker, "log", broken)
    with pytest.raises(JournalError):
        collector.flush_window()
    collector.record_request("ok")
    monkeypatch.setattr(collector._tracker, "log", log)
    collector.flush(60)
    assert collector.get_summary()["total_requests"] == 2
    assert recorded_summary(collector.run_id, "loan_approval", config)["total_requests"] == 2


SERVICE = """
    import sys, time
    from agentcore.monitoring import get_metrics_collector
    from agentcore.settings import MLflowConfig
    collector = get_metrics_collector("loan_approval", config=MLflowConfig(tracking_uri=sys.argv[1]))
    for number in range(1000):
        collector.record_request("ok")
    if sys.argv[2] == "exit":
        sys.exit()
    deadline = time.monotonic() + 60
    while not collector._past:
        if time.monotonic() > deadline:
            sys.exit("no window was written")
        time.sleep(0.02)
    for number in range(10):
        collector.record_request("late")
    print(collector.run_id, flush=True)
    time.sleep(60)
"""


def service(config, mode, window):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVICE), config.tracking_uri, mode],
        env={**os.environ, "AGENTCORE_METRICS_WINDOW": window},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_normal_exit_loses_nothing(config):
    assert service(config, "exit", "3600").wait(60) == 0
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name("/Shared/ai-agents/loan_approval")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["requests_total"] == 1000


def test_kill_9_loses_the_last_window_only(config):
    running = service(config, "stay", "1")
    run_id = running.stdout.readline().strip()
    running.send_signal(signal.SIGKILL)
    running.wait()
    found = recorded_summary(run_id, "loan_approval", config)
    assert found["requests_by_status"] == {"ok": 1000}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_counts_for_itself(config, tmp_path):
    script = """
        import os, sys, json
        from agentcore.monitoring import get_metrics_collector
        from agentcore.settings import MLflowConfig
        collector = get_metrics_collector("loan_approval", config=MLflowConfig(tracking_uri=sys.argv[1]))
        collector.record_request("parent")
        if os.fork() == 0:
            collector.record_request("child")
            print(json.dumps(collector.get_summary()["requests_by_status"]), flush=True)
            os._exit(0)
        os.wait()
        print(json.dumps(collector.get_summary()["requests_by_status"]), flush=True)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), config.tracking_uri],
        capture_output=True,
        text=True,
        timeout=90,
    )
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert lines == [{"child": 1}, {"parent": 1}], found.stderr


async def test_awaited(config):
    collector = MetricsCollector("loan_approval", config=config)
    collector.record_request("ok")
    assert (await collector.aio.get_summary())["total_requests"] == 1
    await collector.aio.flush(60)
    await collector.aio.close()


def test_otlp(config, monkeypatch):
    """Windows arrive at a real OTLP endpoint, under the names of the conventions."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    got = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            import gzip

            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            got.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    collector = MetricsCollector("loan_approval", config=config)
    for value in (5, 15, 25, 1500):
        collector.record_duration(value)
    collector.record_token_usage("gpt-4", input_tokens=10, output_tokens=5)
    collector.record_request("approved")
    collector.flush_window()
    server.shutdown()
    (request,) = got
    metrics = {
        item.name: item
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for item in scope.metrics
    }
    (duration,) = metrics["gen_ai.client.operation.duration"].histogram.data_points
    assert duration.count == 4
    assert duration.sum == pytest.approx(1.545)
    assert list(duration.bucket_counts)[:3] == [1, 1, 1]
    tokens = metrics["gen_ai.client.token.usage"].histogram.data_points
    kinds = {
        attribute.value.string_value: point.sum
        for point in tokens
        for attribute in point.attributes
        if attribute.key == "gen_ai.token.type"
    }
    assert kinds == {"input": 10, "output": 5}
