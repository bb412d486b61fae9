"""`AgentTracker`: runs, traces, models and stages of a running agent."""

import json
import threading

import dspy
import pandas as pd
import pytest
from mlflow import MlflowClient
from pydantic import BaseModel, Field

from agentcore.errors import ConfigurationError
from agentcore.monitoring import AgentTracker
from agentcore.registry import Registry

EXPERIMENT = "/Shared/ai-agents/loan_approval"


@pytest.fixture
def tracker(config):
    return AgentTracker("loan_approval", config)


def runs_of(config):
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client.search_runs([experiment.experiment_id])


def traces_of(config):
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client.search_traces(locations=[experiment.experiment_id])


def test_everything_that_the_document_shows(tracker, config):
    run_id = tracker.start_run(run_name="loan_eval_batch", tags={"environment": "production"})
    assert run_id
    for step in range(3):
        tracker.log_metrics({"accuracy": 0.95, "avg_latency_ms": 250.5 + step}, step=step)
    tracker.log_params({"model": "gpt-4", "temperature": 0.0})
    tracker.log_request(
        request_id="req_123",
        request_data={"loan_amount": 250000},
        decision_data={"outcome": "approved", "risk_score": 25},
        duration_ms=150.2,
    )
    frame = pd.DataFrame([{"amount": 1, "outcome": "approved"}])
    tracker.log_dataset(frame, name="evaluation_set", targets="outcome")
    tracker.log_evaluation_results(eval_results={"accuracy": 0.95, "f1_score": 0.93}, dataset_name="test_set")
    tracker.log_model(
        model=dspy.Predict("amount -> outcome"),
        artifact_path="models",
        registered_model_name="loan_approval_v1",
    )
    tracker.end_run()
    tracker.flush(60)

    (run,) = runs_of(config)
    assert (run.info.run_name, run.info.status) == ("loan_eval_batch", "FINISHED")
    assert run.data.tags["environment"] == "production"
    assert run.data.params["model"] == "gpt-4"
    assert run.data.metrics["eval_f1_score"] == 0.93
    client = MlflowClient(config.tracking_uri)
    history = client.get_metric_history(run.info.run_id, "avg_latency_ms")
    assert [(item.step, item.value) for item in history] == [(0, 250.5), (1, 251.5), (2, 252.5)]
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["evaluation_set"]
    (version,) = client.search_model_versions("name = 'loan_approval_v1'")
    assert version.run_id == run.info.run_id
    assert client.get_registered_model("loan_approval_v1").aliases == {}

    (trace,) = traces_of(config)
    assert trace.info.client_request_id == "req_123"
    assert trace.info.execution_duration == 150
    assert trace.info.trace_metadata["mlflow.sourceRun"] == run.info.run_id
    (span,) = trace.data.spans
    assert span.inputs == {"loan_amount": 250000}
    assert span.outputs == {"outcome": "approved", "risk_score": 25}


def test_a_run_has_a_name(tracker, config):
    tracker.start_run()
    tracker.end_run()
    tracker.flush(60)
    (run,) = runs_of(config)
    assert run.info.run_name.startswith("loan_approval_run_")


def test_requests_from_other_threads(tracker, config):
    tracker.start_run()

    def handle(number):
        tracker.log_request(f"r{number}", {"n": number}, {"ok": True}, 5.0)
        tracker.log_metrics({"handled": number}, step=number)

    threads = [threading.Thread(target=handle, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracker.end_run()
    tracker.flush(60)
    assert {item.info.client_request_id for item in traces_of(config)} == {f"r{n}" for n in range(12)}
    assert len(runs_of(config)) == 1


def test_a_failed_request_and_one_that_is_too_large(tracker, config, monkeypatch):
    monkeypatch.setenv("AGENTCORE_TRACE_KB", "1")
    tracker = AgentTracker("loan_approval", config)
    tracker.start_run()
    tracker.log_request("bad", {"n": 1}, {}, 5.0, error="ValueError: no")
    tracker.log_request("large", {"text": "é" * 100_000}, {"ok": True}, 5.0)
    tracker.end_run()
    tracker.flush(60)
    found = {item.info.client_request_id: item for item in traces_of(config)}
    assert str(found["bad"].info.state.value) == "ERROR"
    (span,) = found["large"].data.spans
    assert len(json.dumps(span.inputs, ensure_ascii=False).encode()) < 1400
    assert "shortened" in span.inputs


def test_sampling(config):
    tracker = AgentTracker("loan_approval", config, sampling=0.0)
    tracker.start_run()
    for number in range(50):
        tracker.log_request(f"r{number}", {}, {}, 1.0)
    assert not tracker.aio._waiting
    with pytest.raises(ConfigurationError, match="sampling"):
        AgentTracker("loan_approval", config, sampling=2)
    tracker.end_run()


class Address(BaseModel):
    street: str = Field(json_schema_extra={"x-personal-data": True})
    country: str


class Application(BaseModel):
    applicant: str = Field(json_schema_extra={"x-personal-data": True})
    amount: int
    address: Address
    former: list[Address] = []
    phone: str | None = Field(default=None, json_schema_extra={"x-personal-data": True})


def test_personal_data_never_leaves(config, monkeypatch):
    monkeypatch.setenv("BANK_API_KEY", "sk-very-secret-123456")
    address = {"street": "Secret Lane 1", "country": "NO"}
    data = {
        "applicant": "Ada Secret",
        "amount": 5,
        "address": address,
        "former": [address],
        "phone": "+4712Secret",
        "note": "key sk-very-secret-123456",
    }
    tracker = AgentTracker(
        "loan_approval",
        config,
        schema=Application,
        redact=lambda value: {key: item for key, item in value.items() if key != "iban"},
    )
    tracker.start_run()
    tracker.log_request("r", {**data, "iban": "NO93 Secret"}, {"outcome": "approved"}, 5.0)
    (waiting,) = tracker.aio._waiting
    assert "ecret" not in waiting[1].model_dump_json()
    tracker.end_run()
    tracker.flush(60)
    (trace,) = traces_of(config)
    (span,) = trace.data.spans
    assert span.inputs["amount"] == 5
    assert span.inputs["address"] == {"street": "[personal data]", "country": "NO"}
    assert "ecret" not in str(trace.to_dict())


def test_without_a_run(tracker):
    for call in (
        lambda: tracker.log_metrics({"a": 1}),
        lambda: tracker.log_request("r", {}, {}, 1.0),
        tracker.end_run,
    ):
        with pytest.raises(ConfigurationError, match="call start_run first"):
            call()


def test_wrong_targets(tracker):
    tracker.start_run()
    with pytest.raises(ConfigurationError, match="no field 'label'; it has a"):
        tracker.log_dataset(pd.DataFrame([{"a": 1}]), "set", targets="label")


def test_stages_are_aliases_behind_the_gate(tracker, config):
    tracker.start_run()
    tracker.log_model(dspy.Predict("a -> b"), "model", registered_model_name="loan_approval")
    tracker.end_run()
    with pytest.raises(ConfigurationError, match="nothing to examine"):
        tracker.transition_model_stage(model_name="loan_approval", version="1", stage="Production")
    client = MlflowClient(config.tracking_uri)
    assert client.get_registered_model("loan_approval").aliases == {}
    for stage, told in (("Archived", "agentcore rollback"), ("Live", "use Staging or Production")):
        with pytest.raises(ConfigurationError, match=told):
            tracker.transition_model_stage("loan_approval", "1", stage)
    with pytest.raises(ConfigurationError, match="no loan_approval/7"):
        tracker.transition_model_stage("loan_approval", "7", "Production", force=True)

    tracker.transition_model_stage("loan_approval", "1", "Production", force="the old one is broken")
    aliases = client.get_registered_model("loan_approval").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"champion": "1"}
    tags = client.get_model_version("loan_approval", "1").tags
    assert "the old one is broken" in tags["agentcore.forced"]
    history = Registry("loan_approval", config).sync.history()
    assert [item.what for item in history] == ["adopted"]


async def test_awaited(config):
    tracker = AgentTracker("loan_approval", config).aio
    run_id = await tracker.start_run()
    await tracker.log_metrics({"a": 1.0})
    assert tracker.run_id == run_id
    await tracker.end_run("FAILED")
    await tracker.flush(60)
    (run,) = runs_of(config)
    assert run.info.status == "FAILED"
    assert tracker.run_id is None


def test_the_traces_of_a_stopped_process_are_written(tracker, config, monkeypatch):
    """A window that can't be written waits, in order."""
    from agentcore.errors import JournalError

    tracker.start_run()
    for number in range(250):
        tracker.log_request(f"r{number}", {"n": number}, {}, 1.0)
    own = tracker.aio
    log = own.tracker.log
    calls = iter(range(10))

    async def second_fails(drafts, *, run_id=None):
        if next(calls) == 1:
            raise JournalError("disk full")
        await log(drafts, run_id=run_id)

    monkeypatch.setattr(own.tracker, "log", second_fails)
    with pytest.raises(JournalError):
        own.flush_window()
    assert [item.request_id for _, item in own._waiting] == [f"r{number}" for number in range(100, 250)]
    tracker.end_run()
    tracker.flush(60)
    assert (
        len(
            MlflowClient(config.tracking_uri).search_traces(
                locations=[runs_of(config)[0].info.experiment_id], max_results=500
            )
        )
        == 250
    )
