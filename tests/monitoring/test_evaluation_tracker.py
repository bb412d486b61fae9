"""`EvaluationTracker`: reports of generated applications as runs."""

import logging
import os

import pytest
from mlflow import MlflowClient

from agentcore.errors import ConfigurationError, DataError
from agentcore.monitoring import EvaluationTracker, GenerationReport, track_evaluation
from agentcore.settings import MLflowConfig


def apps(number=20, **changes):
    return [
        {
            "name": f"app{index}",
            "build_success": True,
            "runtime_success": False,
            "tests_pass": index >= 3,
            "databricks_connectivity": index >= 2,
            "local_runability_score": 2,
            "deployability_score": 3,
            "cost_usd": 0.25,
            "output_tokens": 1000,
            "turns": 8,
            **changes,
        }
        for index in range(number)
    ]


def test_figures_of_applications():
    found = GenerationReport(apps=apps()).figures()
    assert found == {
        "total_apps": 20,
        "evaluated": 20,
        "build_success_rate": 1.0,
        "runtime_success_rate": 0.0,
        "tests_pass_rate": pytest.approx(0.85),
        "databricks_connectivity_rate": pytest.approx(0.9),
        "avg_local_runability_score": 2.0,
        "avg_deployability_score": 3.0,
        "generation_cost_usd": pytest.approx(5.0),
        "total_output_tokens": 20_000,
        "avg_turns_per_app": 8.0,
        "apps_per_dollar": pytest.approx(4.0),
        "overall_quality_score": pytest.approx((1 + 0 + 0.85 + 0.9 + 0.4 + 0.6) / 6),
    }


def test_given_figures_win_and_unknown_fields_are_kept():
    report = GenerationReport.model_validate(
        {
            "summary": {
                "metrics_summary": {"build_success_rate": 0.5},
                "overall_quality_score": 0.9,
                "avg_files_score": 3.5,
                "lint_rate": 0.25,
            },
            "apps": {"first": {"metrics": {"build_success": True}, "screenshot": "a.png"}},
            "author": "me",
        }
    )
    found = report.figures()
    assert found["build_success_rate"] == 0.5
    assert found["overall_quality_score"] == 0.9
    assert (found["avg_files_score"], found["lint_rate"]) == (3.5, 0.25)
    assert report.model_extra["author"] == "me"
    assert report.apps[0].name == "first"


@pytest.mark.parametrize(
    ("report", "told"),
    [
        ({"build_success_rate": 85}, "build_success_rate: .*less than or equal to 1"),
        ({"lint_rate": 85}, "lint_rate is 85: a rate is a share from 0 to 1"),
        ({"lint_rate": "high"}, "lint_rate must be a number"),
        ({"apps": [{"deployability_score": 7}]}, r"apps\.0\.deployability_score"),
        ({"apps": [{"cost_usd": -1}]}, r"apps\.0\.cost_usd"),
        ({"total_apps": "many"}, "total_apps"),
        ([1, 2], "a dict of figures"),
    ],
)
def test_wrong_fields_are_told(config, report, told):
    with pytest.raises(DataError, match=told):
        EvaluationTracker(config=config).track_evaluation(report)


def test_a_whole_evaluation(config, monkeypatch):
    monkeypatch.setenv("EVAL_MODE", "mcp")
    tracker = EvaluationTracker(config=config)
    run_id = tracker.track_evaluation({"apps": apps()}, model_version="some-model", tags={"team": "x"})
    tracker.flush(60)
    client = MlflowClient(config.tracking_uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("eval_mcp_20")
    assert run.data.params.keys() == {"mode", "total_apps", "timestamp", "model_version"}
    assert (run.data.params["mode"], run.data.params["total_apps"]) == ("mcp", "20")
    tags = run.data.tags
    assert (tags["framework"], tags["mode"], tags["team"]) == ("agentcore", "mcp", "x")
    assert tags["run_name"] == run.info.run_name
    assert run.data.metrics["tests_pass_rate"] == pytest.approx(0.85)
    assert {item.path for item in client.list_artifacts(run_id)} == {
        "evaluation_report.json",
        "EVALUATION_REPORT.md",
    }


def test_step_by_step_and_compared(config, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    tracker = EvaluationTracker(experiment_name="/Shared/my-experiment", config=config)
    ids = []
    for rate in (0.5, 0.75):
        ids.append(tracker.start_run(f"run {rate}", tags={"version": "1.0"}))
        tracker.log_evaluation_parameters(mode="custom", total_apps=20, timestamp="2025-10-22T12:00:00Z")
        tracker.log_evaluation_metrics({"build_success_rate": rate})
        tracker.log_artifact_file("report.json")
        tracker.end_run()
    found = tracker.compare_runs(ids)
    assert list(found) == ids
    assert [found[run]["metrics"]["build_success_rate"] for run in ids] == [0.5, 0.75]
    assert found[ids[0]]["params"]["mode"] == "custom"
    assert found[ids[0]]["tags"]["version"] == "1.0"


def test_mlflows_own_calls_log_to_the_run(config, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    mlflow.set_tracking_uri(config.tracking_uri)
    try:
        tracker = EvaluationTracker()
        run_id = tracker.start_run("custom_metrics_run")
        mlflow.log_metric("custom_score", 0.95)
        mlflow.log_metric("my_metric", 42)
        tracker.end_run()
        assert mlflow.active_run() is None
        assert "MLFLOW_RUN_ID" not in os.environ
        tracker.flush(60)
        client = MlflowClient(config.tracking_uri)
        run = client.get_run(run_id)
        assert (run.data.metrics["custom_score"], run.info.status) == (0.95, "FINISHED")
        experiments = [item.experiment_id for item in client.search_experiments()]
        assert len(client.search_runs(experiments)) == 1  # no ghost run
    finally:
        mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("given", [(), ("DATABRICKS_HOST",), ("DATABRICKS_TOKEN",)])
def test_databricks_needs_its_credentials(monkeypatch, caplog, given):
    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in given:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    with caplog.at_level(logging.WARNING, "agentcore"):
        assert track_evaluation({"build_success_rate": 1.0}) is None
        tracker = EvaluationTracker()
        assert tracker.start_run() is None
        tracker.log_evaluation_parameters(mode="x")
        assert tracker.log_evaluation_metrics({"build_success_rate": 1.0})["build_success_rate"] == 1.0
        tracker.end_run()
    missing = [name for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN") if name not in given]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2  # one for each tracker
    assert all(name in lines[0] for name in missing)
    assert not any(name in lines[0] for name in given)
    with pytest.raises(ConfigurationError, match="no tracking"):
        tracker.compare_runs(["a"])


def test_a_dead_server_costs_no_evaluation(caplog):
    config = MLflowConfig(tracking_uri="http://127.0.0.1:9", request_timeout=1)
    with caplog.at_level(logging.WARNING, "agentcore"):
        run_id = EvaluationTracker(config=config).track_evaluation({"build_success_rate": 1.0})
    assert run_id.startswith("local-")
    assert sum("waits in the journal" in record.getMessage() for record in caplog.records) == 1


async def test_awaited(config):
    tracker = EvaluationTracker(config=config).aio
    run_id = await tracker.track_evaluation({"build_success_rate": 1.0}, mode="x")
    await tracker.flush(60)
    assert (await tracker.compare_runs([run_id]))[run_id]["metrics"]["build_success_rate"] == 1.0
