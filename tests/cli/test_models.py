"""Models from the command line, and lines that fit a terminal."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.dspy_optimization.test_http_lm import server  # noqa: F401 - a fixture
from tests.support import colours

# Of litellm's own imports and models.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
ROOT = Path(__file__).parents[2]
LIGHT = ["--optimizer", "labeled_few_shot"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    rows = [{"thing": row["thing"], "answer": row["colour"]} for row in colours().rows()]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "data.jsonl"


def test_a_server_of_ones_own(server, data, command, monkeypatch):  # noqa: F811
    url = server.url()
    monkeypatch.setenv("TEAM_TOKEN", "a-secret-token-of-mine")
    options = ["--lm", "smol", "--lm-base-url", url, "--lm-arg", "max_tokens=200", "--lm-arg", "cache=false"]
    code, printed = command(
        *("optimize", "auto", "--data", data, *LIGHT, *options, "--lm-arg", "header.X-Team=env:TEAM_TOKEN")
    )
    assert code == 0, printed.err
    assert "better: " in printed.out
    assert server.requests(url) > 30
    (run,) = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).search_runs(["1"])
    assert run.data.params["lm"] == "openai/smol"
    assert run.data.params["lm.endpoint"] == url
    assert run.data.params["lm.max_tokens"] == "200"
    assert "a-secret-token-of-mine" not in json.dumps([run.data.params, run.data.tags])


def test_mistakes_are_usage_errors(data, command):
    code, printed = command(
        "optimize", "auto", "--data", data, "--lm-base-url", "localhost:8080", "--lm", "x"
    )
    assert (code, "write an address" in printed.err) == (2, True)
    code, printed = command("optimize", "auto", "--data", data, "--lm", "x/y", "--lm-arg", "max_token=200")
    assert (code, "did you mean max_tokens?" in printed.err) == (2, True)
    code, printed = command("optimize", "auto", "--data", data, "--lm", "offline/knn", "--optimizer", "mipro")
    assert code == 2
    assert "did you mean miprov2?" in printed.err


def test_resuming_needs_the_same_server(server, data, command):  # noqa: F811
    dead = ["--lm-base-url", "http://127.0.0.1:9/v1", "--lm-arg", "num_retries=0"]
    code, printed = command("optimize", "auto", "--data", data, *LIGHT, "--lm", "smol", *dead)
    assert code == 3
    run_id = printed.err.rpartition("agentcore resume ")[2].split()[0]
    (run,) = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).search_runs(["1"])
    assert (run.info.status, "language model" in run.data.tags["error"]) == ("FAILED", True)
    code, printed = command("resume", "latest")
    assert code == 3  # at the same address
    assert "127.0.0.1:9" in printed.err
    code, printed = command("resume", run_id, "--lm-base-url", server.url())
    assert code == 2
    assert "the language model differs" in printed.err
    assert "--lm-base-url" in printed.err


def test_no_word_is_cut_at_80_columns(data, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, printed = command(
        "optimize", "auto", "--data", data, *LIGHT, "--lm", "offline/knn", "--target-id", "t" * 20
    )
    assert code == 0
    for arguments in (["runs"], ["show", "latest"]):
        code, printed = command(*arguments)
        assert code == 0
        assert "…" not in printed.out
        assert "started, UTC" in printed.out or arguments[0] == "show"


def test_the_page_of_the_runs_and_ctrl_c(data):
    """MLflow's server prints nothing about it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "agentcore", "ui", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Path("output").open("w") as output:
        page = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as found:
                if found.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        page.send_signal(signal.SIGINT)
        assert page.wait(30) == 0
    finally:
        page.kill()
    printed = Path("output").read_text()
    assert f"the runs are at http://127.0.0.1:{port}/#/experiments/" in printed
    assert "Traceback" not in printed
    assert "Warning" not in printed


def test_a_plan_on_ray_says_that_ray_is_missing(data, command, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "ray" else real(name, *more)
    )
    for name in [name for name in sys.modules if name.startswith("agentcore.evaluation.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("agentcore.evaluation.ray", raising=False)
    arguments = ["optimize", "auto", "--data", data, "--lm", "offline/knn", "--executor", "ray", "--plan"]
    code, printed = command(*arguments)
    assert code == 2
    assert "executor 'ray' needs Ray: pip install 'agentcore[ray]'" in printed.err
