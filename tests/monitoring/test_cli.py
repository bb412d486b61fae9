"""`agentcore evaluate`, `drift` and `canary`, and what make calls."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.monitoring.loans import applications, saved

ROOT = Path(__file__).parents[2]
FUNC = ("--func", "tests.monitoring.loans:decide")


@pytest.fixture
def sets(tmp_path, config, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    monkeypatch.setenv("MLFLOW_ARTIFACT_LOCATION", config.artifact_location)
    return saved(
        "data/evaluation",
        test_set=applications(120, 0),
        baseline=applications(200, 1),
        current=applications(200, 2, shifted=True),
    )


def test_evaluate(sets, command):
    every = ("evaluate", "--agent", "loan_approval", "--dataset", "test_set", *FUNC)
    code, told = command(*every, "--min", "accuracy=0.5", "--max", "failures=0")
    assert code == 0
    assert re.search(r"accuracy\s+│\s+\d\d\.\d\d% │ \d\d\.\d\d% – \d\d\.\d\d%", told.out)
    assert re.search(r"run [0-9a-f]{32}; next: agentcore compare --agent loan_approval", told.out)
    code, told = command(*every, "--min", "accuracy=0.999", "--json", "--no-tracking")
    assert code == 1
    found = json.loads(told.out)
    assert found["failed"][0].endswith("below 0.999")
    assert found["run_id"] is None
    code, told = command(*every, "--regression", "--json")
    assert code == 0
    assert json.loads(told.out)["regression"]["verdict"] == "not proven"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--dataset", "nothing"), "nothing"),
        (("--dataset", "test_set/v7"), "v7"),
        (("--dataset", "test_set", "--target", "x"), "no value for the target 'x'"),
        (("--dataset", "test_set", "--min", "accuracy"), "write METRIC=VALUE"),
        (("--dataset", "test_set", "--min", "charm=1", "--no-tracking"), "no metric 'charm'"),
        (("--dataset", "test_set", "--alert", "--no-tracking"), "leave out --no-tracking"),
        (("--dataset", "test_set", "--func", "nowhere:decide"), "no module named 'nowhere'"),
    ],
)
def test_wrong_usage(sets, command, arguments, told):
    func = () if "--func" in arguments else FUNC
    code, printed = command("evaluate", "--agent", "loan_approval", *arguments, *func)
    assert code == 2
    assert told in printed.err.replace("\n", " ")


def test_drift_and_canary(sets, command):
    code, told = command("canary", "--agent", "loan_approval", "--dataset", "baseline", *FUNC)
    assert code == 0
    assert "loan_approval_canary_v1: the answers to 200 rows are recorded" in told.out
    every = ("drift", "--agent", "loan_approval", "--baseline", "baseline", "--dataset", "current", *FUNC)
    code, told = command(*every)
    assert code == 0  # the agent is as good as before
    assert "Inputs have changed: annual_income" in told.out
    assert "the inputs changed" in told.out
    code, told = command(*every, "--inputs", "--json", "--no-tracking")
    assert code == 1
    assert json.loads(told.out)["cause"] == "inputs"


def test_alerts_need_a_receiver(sets, command):
    pytest.importorskip("apprise")
    code, told = command(
        *("drift", "--agent", "loan_approval", "--baseline", "baseline", "--dataset", "baseline"),
        *(*FUNC, "--alert"),
    )
    assert code == 2  # before anything is paid for
    assert "AGENTCORE_ALERT_URLS" in told.err
    assert told.out == ""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_evaluate(tmp_path, config):
    """The example's data and agent, by the commands that make runs."""
    planned = subprocess.run(
        ["make", "-n", "-o", ".venv/.ready", "evaluate", "evaluate-drift"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--agent loan_approval --dataset loan_approval_test_set --func examples.loan" in planned
    assert "--baseline baseline_v1 --dataset current_month" in planned
    made = subprocess.run(
        [sys.executable, str(ROOT / "examples/loan_approval/make_data.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.count(": 500 rows") == 3
    from agentcore.monitoring import ModelEvaluator

    sys.path.insert(0, str(ROOT))
    own = ModelEvaluator("loan_approval", "examples.loan_approval.agent:decide", config=config)
    found = own.evaluate_dataset("loan_approval_test_set", "expected_outcome", log_to_mlflow=False)
    assert found.accuracy > 0.85
    assert own.detect_drift("baseline_v1", "current_month", log_to_mlflow=False).has_drift
