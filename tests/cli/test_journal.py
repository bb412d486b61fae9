"""`agentcore sync` and `agentcore journal` as a user sees them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from agentcore.cli._console import fail, note, out
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.journal import close_journals
from agentcore.settings import MLflowConfig
from agentcore.tracking import stop_deliveries
from tests.support import request

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(proxy, tmp_path):
    return {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": proxy.url, "COLUMNS": "120"}


def agentcore(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "agentcore", *arguments], env=environment, capture_output=True, text=True
    )


def leave_behind(proxy, experiment, runs=2):
    """Runs that no server took."""
    proxy.fault = lambda method, path: "drop"
    tracker = MLflowTracker(MLflowConfig(tracking_uri=proxy.url, experiment_name=experiment))
    for number in range(runs):
        tracker.sync.start_run(request(f"t{number}"))
        tracker.sync.log_metrics({"x": number})
        tracker.sync.end_run()
    stop_deliveries()
    close_journals()
    return tracker


def test_sync_delivers_and_says_what(proxy, environment):
    leave_behind(proxy, "sync-once")
    proxy.fault = lambda method, path: None
    listed = agentcore(environment, "journal", "ls")
    assert listed.stdout.count("ended") == 2
    done = agentcore(environment, "sync")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"delivered 6 entries of 2 runs to {proxy.url}\n"
    assert agentcore(environment, "sync").stdout == f"nothing waits for {proxy.url}\n"
    tracker = MLflowTracker(MLflowConfig(tracking_uri=proxy.url, experiment_name="sync-once"))
    assert sorted(run.data.metrics["x"] for run in tracker.sync.search_runs()) == [0.0, 1.0]


def test_ctrl_c_while_mlflow_is_told_prints_the_result(proxy, environment):
    """The run has finished: a server that hangs then costs patience, not the result."""
    proxy.fault = lambda method, path: "hang"
    running = subprocess.Popen(
        [sys.executable, "-m", "agentcore", "demo"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in running.stderr:
        if "delivering to MLflow" in line:
            break
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "gain in quality score" in output
    assert "stopped during delivery to MLflow; agentcore sync delivers the rest" in output
    assert "Traceback" not in errors


def test_sync_without_a_server_is_one_line_and_keeps_all(proxy, environment):
    leave_behind(proxy, "sync-dead")
    done = agentcore(environment, "sync", "--timeout", "1")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "2 runs wait in the journal; deliver with: agentcore sync" in line


def test_watching_delivers_what_comes_and_ends_on_sigterm(proxy, environment):
    leave_behind(proxy, "sync-watch")
    watching = subprocess.Popen(
        [sys.executable, "-m", "agentcore", "sync", "--watch"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout.readline().startswith("delivering to")
    assert any(
        "can't be reached" in line for line in watching.stderr
    )  # a slow machine says first that it waits
    proxy.fault = lambda method, path: None
    assert "delivered 6 entries of 2 runs" in watching.stdout.readline()
    watching.send_signal(signal.SIGTERM)
    output, errors = watching.communicate(timeout=30)
    assert watching.returncode == 0
    assert "stopped; undelivered entries stay in the journal" in output
    assert "Traceback" not in errors


def test_a_note_prints_what_others_wrote_as_it_is(capsys):
    note("refused: [/b] [redacted] [bold]")
    assert capsys.readouterr().err == "note: refused: [/b] [redacted] [bold]\n"


def test_what_others_wrote_does_not_steer_the_terminal(capsys):
    """Colours, the clipboard, the title and the cursor are the terminal's, whoever named the run."""
    table = Table("name")
    table.add_row("\x1b]52;c;ZXZpbA==\x07run\x9b2J\rname")
    out.print(table)
    out.print("[bold]\x1b[31mred[/]\tkept\nlines")
    note("\x1b]0;title\x07")
    with pytest.raises(SystemExit):
        fail("\x08\x7f", 3)
    captured = capsys.readouterr()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", captured.out + captured.err)
    assert "\ufffd]52;c;ZXZpbA==" in captured.out  # Rich itself drops the bell
    assert "lines" in captured.out


def test_looking_into_the_journal(proxy, environment):
    empty = agentcore(environment, "journal", "ls")
    assert "is empty" in empty.stdout
    tracker = leave_behind(proxy, "looking", runs=1)
    short = agentcore(environment, "journal", "ls").stdout.splitlines()[1][:8]
    shown = agentcore(environment, "journal", "show", short)
    assert "MLflow's id not known yet" in shown.stdout
    assert "metrics_logged" in shown.stdout
    assert "3 entries, 3 waiting" in shown.stdout
    wrong = agentcore(environment, "journal", "show", "zzz")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "error: the journal has no run 'zzz'. List its runs with: agentcore journal ls\n",
    )
    kept = agentcore(environment, "journal", "prune", "--older-than", "0")
    assert "removed 0 runs" in kept.stdout
    assert tracker.config.experiment_name == "looking"


@pytest.mark.parametrize(
    ("variable", "value", "code", "message"),
    [
        (
            "AGENTCORE_STATE_DIR",
            "/proc/nothing",
            3,
            "Set AGENTCORE_STATE_DIR to a writable directory",
        ),
        ("AGENTCORE_JOURNAL_URL", "postgresql+psycopg://u:p@host:abc/db", 2, "journal_url: use postgresql"),
        ("AGENTCORE_JOURNAL_URL", "mysql://x", 2, "journal_url: use postgresql+psycopg://"),
        ("AGENTCORE_JOURNAL_URL", "postgresql+psycopg://u:secretpw@127.0.0.1:9/d", 3, "can't be opened"),
    ],
)
def test_a_journal_that_cannot_be_had_is_one_line(environment, variable, value, code, message):
    for command in (["journal", "ls"], ["sync"]):
        done = agentcore({**environment, variable: value}, *command)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert "secretpw" not in done.stderr
