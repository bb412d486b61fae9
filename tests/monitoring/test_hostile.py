"""What an attacker, a fork, or an odd value must not do."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from mlflow import MlflowClient
from pydantic import BaseModel, ConfigDict, Field

from agentcore.data import DatasetManager
from agentcore.errors import ArtifactError, ConfigurationError, DataError
from agentcore.monitoring import AgentTracker, EvaluationTracker, MetricsCollector, ModelEvaluator
from agentcore.monitoring._events import ConfusionPlotted, DriftPlotted
from agentcore.monitoring._personal import Personal, scrubbed
from agentcore.monitoring._recorded import scores_in
from tests.monitoring.loans import TARGET, applications, decide, saved

MARKED = {"type": "string", "x-personal-data": True}


class Person(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(alias="fullName", json_schema_extra={"x-personal-data": True})


class Pair(BaseModel):
    both: tuple[Person, int]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"a": MARKED}}, {"a": "Ada"}),
        ({"properties": {"a": {"$ref": "#/$defs/P"}}, "$defs": {"P": MARKED}}, {"a": "Ada"}),
        ({"properties": {"a": {"$ref": "#/definitions/P"}}, "definitions": {"P": MARKED}}, {"a": "Ada"}),
        ({"properties": {"a": MARKED, "b": {"$ref": "#/properties/a"}}}, {"b": "Ada"}),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, {"a": "Ada"}),
        ({"patternProperties": {"^a": MARKED}}, {"abc": "Ada"}),
        ({"additionalProperties": MARKED}, {"z": "Ada"}),
        ({"properties": {"a": {"items": MARKED}}}, {"a": ["Ada", "Ada"]}),
        ({"properties": {"a": {"prefixItems": [MARKED, {}]}}}, {"a": ["Ada", 1]}),
        ({"properties": {"a": {"anyOf": [{"type": "null"}, MARKED]}}}, {"a": "Ada"}),
        ({"if": {}, "then": {"properties": {"a": MARKED}}}, {"a": "Ada"}),
        ({"properties": {"a": {"x-personal-data": True}}}, {"a": {"first": "Ada"}}),
        (Person, {"fullName": "Ada"}),
        (Person, {"name": "Ada"}),
        (Pair, {"both": [{"fullName": "Ada"}, 3]}),
        (Pair, {"both": [{"name": "Ada"}, 3]}),
    ],
)
def test_marked_fields_at_any_depth(schema, value):
    cleaned, removed = Personal(schema).clean(value)
    assert "Ada" not in json.dumps(cleaned)
    assert removed == {"Ada"}


def test_a_schema_that_refers_to_itself():
    tree = {"properties": {"name": MARKED, "child": {"$ref": "#"}, "again": {"$ref": "#/properties/again"}}}
    value = {"name": "Ada", "child": {"name": "Bob", "child": {"name": "Cyd"}}, "again": 1}
    cleaned, removed = Personal(tree).clean(value)
    assert removed == {"Ada", "Bob", "Cyd"}
    assert cleaned["again"] == 1


def test_removed_values_elsewhere():
    assert scrubbed({"text": "to Ada Lovelace", "n": 12345, "ok": True}, {"Ada Lovelace", "12345"}) == {
        "text": "to [personal data]",
        "n": "[personal data]",
        "ok": True,
    }


def test_errors_tags_and_answers_have_no_personal_data(config):
    tracker = AgentTracker("loan_approval", config, schema={"properties": {"applicant": MARKED}})
    tracker.start_run()
    tracker.log_request(
        "for Ada Lovelace",
        {"applicant": "Ada Lovelace"},
        {"letter": "Dear Ada Lovelace"},
        5.0,
        error="ValueError: no Ada Lovelace",
        tags={"who": "Ada Lovelace"},
    )
    (waiting,) = tracker.aio._waiting
    assert "Lovelace" not in waiting[1].model_dump_json()
    tracker.end_run()


def test_marks_are_inherited(tmp_path, config):
    def tells(request):
        if request["credit_score"] > 800:
            raise ValueError(f"bad applicant {request['applicant_name']}")
        return {**decide(request), "letter": f"Dear {request['applicant_name']}"}

    manager = DatasetManager(tmp_path / "sets")
    rows = applications(120)
    manager.save_dataset(rows, "d")
    assert manager.save_dataset(rows, "d", personal=["applicant_name"]).version == "v2"  # other marks
    _, test = manager.split_dataset("d", 0.5, save=True)
    assert test.personal == ("applicant_name",)
    own = ModelEvaluator("loan_approval", tells, datasets=manager, config=config)
    assert own.freeze_canary("d", TARGET).personal == ("applicant_name",)
    found = own.evaluate_dataset("d_test", TARGET)
    own.flush(60)
    client = MlflowClient(config.tracking_uri)
    for item in client.list_artifacts(found.run_id):
        if item.path.endswith((".json", ".md")):
            from pathlib import Path

            assert "Person " not in Path(client.download_artifacts(found.run_id, item.path)).read_text()
    with pytest.raises(DataError, match="no field 'x'"):
        manager.save_dataset(rows, "e", personal=["x"])


def test_a_changed_record_is_noticed(tmp_path):
    manager = DatasetManager(tmp_path / "sets")
    manager.save_dataset(applications(20), "d", personal=["applicant_name"])
    record = tmp_path / "sets/d/v1/dataset.json"
    record.write_text(record.read_text().replace("x-personal-data", "x-public-data"))
    with pytest.raises(DataError, match="the record of d v1 was changed"):
        manager.load_dataset("d")
    for name in ("../sets/d", "d/../d", ""):
        with pytest.raises(DataError):
            manager.load_dataset(name)


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e300, "5", [1.0, 2.0], object()])
def test_no_value_stops_the_windows(config, value):
    collector = MetricsCollector("loan_approval", config=config)
    collector.record_duration(5)
    for record in (
        lambda: collector.record_duration(value),
        lambda: collector.record_score("s", value),
        lambda: collector.record_token_usage("m", value),
    ):
        with pytest.raises(ConfigurationError):
            record()
    collector.record_score("s", 1e15)
    collector.record_score("s", 1e15)
    collector.flush(60)
    assert collector.get_summary()["durations"] == 1


def test_a_gatherer_that_fails_does_not_stop_the_others(caplog):
    from agentcore.monitoring._flusher import _Flusher

    class Broken:
        window = 3600.0

        def flush_window(self):
            raise ZeroDivisionError

        def forget(self):
            pass

        def finish(self):
            self.flush_window()

    class Working(Broken):
        done = 0

        def flush_window(self):
            self.done += 1

    flusher, working = _Flusher(), Working()
    flusher.add(Broken())
    flusher.add(working)
    flusher.flush_all()
    assert working.done == 1
    assert "wait in memory" in caplog.text


def test_names_from_requests(config, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "sk-verysecret1234567890")
    collector = MetricsCollector("loan_approval", config=config)
    collector.record_error("AuthError sk-verysecret1234567890")
    collector.record_request("x" * 10**6)
    for _ in range(10):
        collector.record_request("a/b")
        collector.record_request("a?b")
    text = json.dumps(collector.state())
    assert "verysecret" not in text
    assert len(text) < 2000
    collector.flush(60)
    metrics = collector._tracker.sync.get_run(collector.run_id).data.metrics
    assert metrics["requests/a_b"] == 20
    for window in range(3):
        for number in range(150):
            collector.record_request(f"status {window} {number}")
        collector.flush_window()
    assert len(collector.get_summary()["requests_by_status"]) <= 101


def test_reads_include_the_window_that_is_being_written(config, monkeypatch):
    collector = MetricsCollector("loan_approval", config=config)
    collector.record_request()
    seen = []

    async def slow(drafts, *, run_id=None):
        seen.append(collector.get_summary()["total_requests"])

    monkeypatch.setattr(collector._tracker, "log", slow)
    collector.flush_window()
    assert seen == [1]
    assert collector.get_summary()["total_requests"] == 1


FORKED = """
    import os, sys, multiprocessing
    from agentcore.monitoring import get_metrics_collector, recorded_summary, AgentTracker
    from agentcore.settings import MLflowConfig
    config = MLflowConfig(tracking_uri=sys.argv[1])
    collector = get_metrics_collector("loan_approval", config=config)
    collector.record_request("parent")
    collector.flush_window()
    tracker = AgentTracker("loan_approval", config)
    tracker.start_run()

    def work():
        collector.record_request("child")

    if sys.argv[2] == "fork":
        if os.fork() == 0:
            work()
            collector.flush_window()
            found = recorded_summary(collector.run_id, "loan_approval", config)
            print(found["requests_by_status"], flush=True)
            os._exit(0)
        os.wait()
    else:
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(60)
        print(process.exitcode, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["fork", "multiprocessing"])
def test_a_forked_child_writes_its_windows(config, how):
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORKED), config.tracking_uri, how],
        capture_output=True,
        text=True,
        timeout=100,
    )
    if how == "fork":
        assert found.stdout.strip() == "{'child': 1}", found.stderr
        return
    assert found.stdout.strip() == "0", found.stderr
    from agentcore.journal import open_journal
    from agentcore.monitoring._events import WindowRecorded

    journal = open_journal()
    states = [
        entry.event.state["requests"]
        for stream in journal.streams()
        for entry in journal.read(stream.id, of=WindowRecorded)
    ]
    assert {"child": 1} in states


@pytest.mark.parametrize("label", ["$\\foo$", "a\nb", "<b>", "100%", "_x_"])
def test_any_label_can_be_drawn(tmp_path, label):
    ConfusionPlotted(title=label, labels=[label, "b"], counts=[[1, 0], [0, 1]]).render(tmp_path)
    DriftPlotted(
        title=label,
        threshold=0.05,
        metrics=[("accuracy", 0.1, 0.0, 0.2, True)],
        fields=[(label, 0.01, 0.5, True)],
    ).render(tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_picture_that_cannot_be_drawn_holds_nothing_up(config, monkeypatch):
    from agentcore.errors import TrackingError
    from agentcore.tracking import RunEnded, RunTracker

    tracker = RunTracker(config).sync
    run_id = tracker.start_run()
    broken = ConfusionPlotted(title="x", labels=["a"], counts=[])
    tracker.log([broken, RunEnded(status="FINISHED")], run_id=run_id)
    with pytest.raises(TrackingError, match="can't be drawn"):
        tracker.flush(60)
    assert tracker.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    "table",
    [
        [],
        {"columns": {}},
        {"columns": ["digest", "score"], "data": [["a", 10**400]]},
        {"columns": ["digest", "score"], "data": [["a", "high"]]},
        {"columns": ["digest", "score"], "data": [[]]},
        None,
    ],
)
def test_a_tampered_table_is_an_error(table):
    with pytest.raises(ArtifactError):
        scores_in(table)


def test_an_agents_fields_and_changes_stay_its_own(tmp_path, config):
    def odd(request):
        request["history"].pop()
        return {"outcome": "approved", "self": 1, "base": {"outcome": "rejected"}, "lm": 2}

    rows = [{**row, "history": [1, 2, 3]} for row in applications(10)]
    own = ModelEvaluator("loan_approval", odd, datasets=saved(tmp_path / "s", d=rows), config=config)
    found = own.evaluate_dataset("d", TARGET, log_to_mlflow=False, repeats=3)
    assert found.failures == 0
    assert all(row.inputs["history"] == [1, 2, 3] for row in found.rows)
    assert {row.answer for row in found.rows} == {"approved"}


def test_a_canary_of_another_target(tmp_path, config):
    rows = [{**row, "expected_risk": 25} for row in applications(60)]
    own = ModelEvaluator("loan_approval", decide, datasets=saved(tmp_path / "s", d=rows), config=config)
    own.freeze_canary("d", TARGET)
    with pytest.raises(DataError, match="was recorded for the target 'expected_outcome'"):
        own.detect_drift("d", "d", target_field="expected_risk", prediction_field="risk_score")


def test_runs_of_a_tracker_stay_apart(config, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", "users_own_run")
    tracker = EvaluationTracker(config=config)
    outer = tracker.start_run("outer")
    assert os.environ["MLFLOW_RUN_ID"] == outer
    tracker.track_evaluation({"build_success_rate": 1.0})
    assert os.environ["MLFLOW_RUN_ID"] == outer
    tracker.log_evaluation_metrics({"build_success_rate": 0.5})  # still the current run
    tracker.end_run()
    assert os.environ["MLFLOW_RUN_ID"] == "users_own_run"
    tracker.flush(60)
    run = MlflowClient(config.tracking_uri).get_run(outer)
    assert run.data.metrics["build_success_rate"] == 0.5


def test_ending_twice_ends_nobody_elses_run(config):
    import threading

    tracker = AgentTracker("loan_approval", config)
    other = []
    thread = threading.Thread(target=lambda: other.append(tracker.start_run()))
    thread.start()
    thread.join()
    tracker.start_run()
    tracker.end_run()
    with pytest.raises(ConfigurationError, match="run_id="):
        tracker.end_run()
    tracker.end_run(run_id=other[0])
    tracker.flush(60)
    assert tracker.run_id is None
