"""Alerts: sent once, again when they are over, to a real webhook."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("apprise", reason="alerts are an extra: agentcore[alerts]")

from agentcore.errors import AlertError, ConfigurationError
from agentcore.monitoring import Alerts, ModelEvaluator
from tests.monitoring.loans import TARGET, applications, decide, saved


@pytest.fixture
def hook():
    """A webhook: what it got, and whether it takes anything."""

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if state["broken"] else 200)
            self.end_headers()

        def log_message(self, *args):
            pass

    got, state = [], {"broken": False}
    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"json://127.0.0.1:{server.server_port}/hook", got, state
    server.shutdown()


def test_once_and_again_when_it_is_over(hook, monkeypatch):
    url, got, _ = hook
    monkeypatch.setenv("AGENTCORE_ALERT_URLS", url)
    alerts = Alerts("loan_approval")
    assert not alerts.resolve("drift", "over")
    assert alerts.raise_alert("drift", "Drift", "accuracy fell")
    assert not Alerts("loan_approval").raise_alert("drift", "Drift", "accuracy fell")  # another process
    assert alerts.raise_alert("cost", "Cost", "too much")
    assert alerts.resolve("drift", "Over", "fine again")
    assert not alerts.resolve("drift", "Over")
    assert alerts.raise_alert("drift", "Drift", "again")
    assert Alerts("loan_approval", repeat_hours=0).raise_alert("drift", "Drift", "still")
    assert [item["title"] for item in got] == ["Drift", "Cost", "Over", "Drift", "Drift"]
    assert [item["type"] for item in got][:3] == ["warning", "warning", "success"]


def test_what_was_not_delivered_is_sent_again(hook):
    url, got, state = hook
    alerts = Alerts("loan_approval", [url])
    state["broken"] = True
    with pytest.raises(AlertError, match="not delivered"):
        alerts.raise_alert("drift", "Drift", "accuracy fell")
    state["broken"] = False
    assert alerts.raise_alert("drift", "Drift", "accuracy fell")
    assert len(got) == 2


def test_one_dead_receiver_of_two(hook, caplog):
    url, got, _ = hook
    alerts = Alerts("loan_approval", ["json://127.0.0.1:9/dead", url])
    assert alerts.raise_alert("drift", "Drift", "accuracy fell")
    assert not alerts.raise_alert("drift", "Drift", "accuracy fell")
    assert len(got) == 1
    assert "receiver 1 of 2" in caplog.text


def test_wrong_receivers(caplog):
    with pytest.raises(ConfigurationError, match="AGENTCORE_ALERT_URLS"):
        Alerts("loan_approval").raise_alert("a", "b", "c")
    with pytest.raises(ConfigurationError, match="receiver 1") as error:
        Alerts("loan_approval", ["nonsense://user:hunter2secret@x"]).raise_alert("a", "b", "c")
    assert "hunter2secret" not in str(error.value) + caplog.text


def test_drift_and_regression(hook, tmp_path, config):
    url, got, _ = hook
    rows = applications(300, 2)
    data = saved(tmp_path / "sets", baseline=applications(300, 1), current=rows)
    alerts = Alerts("loan_approval", [url])

    def evaluator(error):
        def agent(request):
            return decide(request, error if request["request_id"].startswith("2_") else 0.1)

        return ModelEvaluator("loan_approval", agent, datasets=data, config=config)

    for error in (0.4, 0.4, 0.1, 0.1):
        alerts.on_drift(evaluator(error).detect_drift("baseline", "current", log_to_mlflow=False))
    assert [item["title"] for item in got] == ["Drift of loan_approval", "No more drift of loan_approval"]
    got.clear()
    for error in (0.1, 0.4, 0.1):
        own = evaluator(error)
        metrics = own.evaluate_dataset("current", TARGET)
        alerts.on_regression(own.check_regression(metrics), metrics.dataset)
    assert [item["title"] for item in got] == [
        "Regression of loan_approval on current_v1",
        "No more regression of loan_approval on current_v1",
    ]
