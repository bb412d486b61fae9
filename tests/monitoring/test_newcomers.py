"""What a newcomer with data of their own ran into."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from mlflow import MlflowClient

from agentcore.data import DatasetManager
from agentcore.errors import ConfigurationError, DataError, StorageError
from agentcore.monitoring import AgentTracker, ModelEvaluator
from tests.monitoring.loans import TARGET, applications, decide, saved


def evaluator(tmp_path, config, agent, rows):
    return ModelEvaluator("plants", agent, datasets=saved(tmp_path / "sets", d=rows), config=config)


def without_answer(row):
    return decide({name: value for name, value in row.items() if name != TARGET})


def test_a_data_set_needs_no_inputs_and_outputs(tmp_path):
    manager = DatasetManager(tmp_path / "sets")
    rows = [{"plant name": f"fern {number}", "class": number % 3} for number in range(20)]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "plants.csv", index=False)
    (tmp_path / "plants.json").write_text(json.dumps(rows))
    for number, source in enumerate((frame, tmp_path / "plants.csv", tmp_path / "plants.json", rows)):
        assert manager.save_dataset(source, f"plants{number}").to_list() == rows
    for wrong, told in ((["a"], "tags are a dict"),):
        with pytest.raises(DataError, match=told):
            manager.save_dataset(rows, "plants", tags=wrong)
    assert manager.save_dataset(rows, "one", personal="class").personal == ("class",)
    (tmp_path / "file").write_text("")
    for call in (
        lambda: DatasetManager(tmp_path / "file").save_dataset(rows, "x"),
        lambda: DatasetManager(tmp_path / "file").list_datasets(),
    ):
        with pytest.raises(StorageError, match="base_path"):
            call()


def test_an_answer_without_json_is_a_failure(tmp_path, config):
    def odd(row):
        return {"outcome": object()} if row["credit_score"] > 800 else decide(row)

    rows = applications(60)
    found = evaluator(tmp_path, config, odd, rows).evaluate_dataset("d", TARGET, log_to_mlflow=False)
    assert found.failures == sum(row["credit_score"] > 800 for row in rows)


def test_numbers_that_are_none(tmp_path, config):
    answers = iter([1.5, float("nan"), "three", None] * 10)
    rows = [{"x": number, "y": number + 0.5} for number in range(40)]
    own = ModelEvaluator(
        "plants",
        lambda row: {"y": next(answers)},
        datasets=saved(tmp_path / "sets", d=rows),
        config=config,
        max_concurrency=1,
    )
    found = own.evaluate_dataset("d", "y", log_to_mlflow=False)
    assert found.failures == 30
    assert "leave out the 30 rows" in found.notes[0]


def test_errors_and_a_wrong_field_are_told(tmp_path, config):
    def fails(row):
        if row["purpose"] == "car":
            raise ValueError("no cars")
        return {"answer": "nothing of the kind"}

    rows = applications(60)
    cars = sum(row["purpose"] == "car" for row in rows)
    found = evaluator(tmp_path, config, fails, rows).evaluate_dataset("d", TARGET, log_to_mlflow=False)
    assert found.first_errors == (f"{cars} × ValueError: no cars",)
    assert "no answer is right" in found.notes[0]
    assert found.as_dict()["errors"]


def test_a_regression_is_of_the_same_target(tmp_path, config):
    rows = [{**row, "expected_risk": 25} for row in applications(60)]
    own = evaluator(tmp_path, config, without_answer, rows)
    first = own.evaluate_dataset("d", TARGET)
    own.evaluate_dataset("d", "expected_risk", prediction_field="risk_score")
    again = own.evaluate_dataset("d", TARGET)
    assert own.check_regression(again).run_id == first.run_id


def test_runs_of_different_targets_are_not_ranked(tmp_path, config, command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    rows = [{**row, "expected_risk": 25} for row in applications(60)]
    own = evaluator(tmp_path, config, without_answer, rows)
    own.evaluate_dataset("d", TARGET)
    own.evaluate_dataset("d", "expected_risk", prediction_field="risk_score")
    own.flush(60)
    code, told = command("compare", "--agent", "plants", "--output", "c.html")
    assert code == 0
    page = (tmp_path / "c.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "different data or targets" in page
    assert "<td>better</td>" not in page
    code, told = command("compare", "--agent", "plants", "--group-by", "nothing")
    assert (code, "no run has a tag" in told.err) == (2, True)
    code, told = command("compare", "--agent", "nobody")
    assert code == 2
    assert "there is no experiment '/Shared/nobody_evaluation'" in told.err.replace("\n", " ")
    names = {item.name for item in MlflowClient(config.tracking_uri).search_experiments()}
    assert not any("nobody" in name for name in names)  # asking creates nothing


def test_wrong_arguments(tmp_path, config):
    own = evaluator(tmp_path, config, decide, applications(30))
    for threshold in (-0.1, 1, 5):
        with pytest.raises(ConfigurationError, match="threshold"):
            own.detect_drift("d", "d", threshold=threshold)
    with pytest.raises(ConfigurationError, match="Pass the agent as agent_func"):
        ModelEvaluator("plants", datasets=own.aio.datasets, config=config).evaluate_dataset("d", TARGET)
    tracker = AgentTracker("plants", config)
    tracker.start_run()
    tracker.log_request("r", None, None, 1.0)
    tracker.end_run()
    with pytest.raises(ConfigurationError, match="schema"):
        AgentTracker("plants", config, schema="nope")


def test_bounds_are_checked_before_anything_is_paid_for(tmp_path, command):
    saved("data/evaluation", d=applications(20))
    for bound, told in (
        ("accuracy=95", "a share from 0 to 1"),
        ("acuracy=0.9", "no metric"),
        ("accuracy=nan", "METRIC=VALUE"),
    ):
        code, printed = command(
            *("evaluate", "--agent", "plants", "--dataset", "d", "--func", "nowhere:at_all", "--min", bound)
        )
        assert code == 2
        assert told in printed.err.replace("\n", " ")


SLOW = """
import time
def slow(row):
    time.sleep(0.2)
    return {"outcome": "approved"}
"""


def test_ctrl_c_says_how_far_it_was(tmp_path, config):
    (tmp_path / "slowly.py").write_text(SLOW)
    saved(tmp_path / "data/evaluation", d=applications(400))
    running = subprocess.Popen(
        [
            *(sys.executable, "-m", "agentcore", "evaluate", "--agent", "plants", "--dataset", "d"),
            *("--func", "slowly:slow", "--max-concurrency", "2"),
        ],
        env={**os.environ, "MLFLOW_TRACKING_URI": config.tracking_uri},
        stderr=subprocess.PIPE,
        text=True,
    )
    line = running.stderr.readline()
    while "rows …" not in line and running.poll() is None:
        line = running.stderr.readline()
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    told = running.stderr.read()
    assert running.wait(60) == 130
    assert "of 400 rows: nothing was logged" in told.replace("\n", " ")
    assert time.monotonic() - began < 30


def test_a_collectors_run_ends_with_its_process(config):
    script = """
import sys
from agentcore.monitoring import get_metrics_collector
from agentcore.settings import MLflowConfig
get_metrics_collector("plants", config=MLflowConfig(tracking_uri=sys.argv[1])).record_request("ok")
"""
    subprocess.run([sys.executable, "-c", script, config.tracking_uri], check=True, timeout=90)
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name("/Shared/ai-agents/plants")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
