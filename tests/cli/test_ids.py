"""One id for a person to see and type, and a reason for every run that isn't there."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def agentcore(migrated_store, tmp_path):
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    rows = [
        "thing,colour",
        *[f"{'leaf' if n % 2 else 'blood'} {n},{'green' if n % 2 else 'red'}" for n in range(40)],
    ]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}

    def run(*arguments, stop_at=None):
        command = [sys.executable, "-m", "agentcore", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        told = ""
        if stop_at is not None:
            for line in process.stderr:
                told += line
                if stop_at in line:
                    process.send_signal(signal.SIGINT)
                    break
        out, err = process.communicate(timeout=120)
        return process.returncode, out, told + err

    return run


OPTIMIZE = ["optimize", "auto", "--data", "data.csv", "--inputs", "thing", "--lm", "offline/knn"]


def test_the_same_short_id_everywhere(agentcore):
    code, _, told = agentcore(*OPTIMIZE, stop_at="searching")
    assert code == 130, told
    short = re.search(r"agentcore resume ([0-9a-f]{8})\b", told)[1]
    _, listed, _ = agentcore("runs")
    (row,) = [line for line in listed.splitlines() if short in line and "agentcore resume" not in line]
    assert "KILLED, resumable" in row
    assert short in agentcore("journal", "ls")[1]
    assert short in agentcore("show", short)[1]
    code, out, err = agentcore("resume", short)
    assert code == 0, err
    assert short in out + err
    _, listed, _ = agentcore("runs")
    (row,) = [line for line in listed.splitlines() if short in line and "agentcore resume" not in line]
    assert "FINISHED" in row
    assert "resumable" not in row


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lm", "nonsense"], 2, "is not a language model"),
        (["--lm", "offline/other"], 2, "no offline model"),
        (["--metric", "nowhere:judge"], 2, "no module named"),
    ],
)
def test_wrong_arguments_leave_no_run(agentcore, arguments, code, message):
    got, _, told = agentcore(*OPTIMIZE, *arguments)
    assert (got, message in told) == (code, True), told
    _, listed, told = agentcore("runs")
    assert not re.search(r"\b[0-9a-f]{8}\b", listed), listed


def test_a_run_that_failed_before_it_began_has_its_reason(agentcore):
    code, _, told = agentcore(*OPTIMIZE, "--max-lm-calls", "3")
    assert code != 0
    reason = re.search(r"max_lm_calls[^\n]*", told)[0]
    _, listed, _ = agentcore("runs")
    rows = [line for line in listed.splitlines() if "FAILED" in line]
    assert not rows or "max_lm_calls" in listed, (reason, listed)


LOST = """
import signal, sys
from agentcore.cli import main
from agentcore.cli import _app

class Lost:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

real = _app.app

def app():
    Lost()  # Python ignores what a finalizer raises
    real()

_app.app = app
sys.argv = ["agentcore", "runs"]
main()
"""


def test_a_ctrl_c_that_python_swallowed_ends_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOST],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr.partition("Exception ignored")[0]
