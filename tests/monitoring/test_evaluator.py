"""`ModelEvaluator`: any agent, on any data set, with a run that says what was measured."""

import asyncio
import functools
import json
from dataclasses import dataclass

import dspy
import pytest
from mlflow import MlflowClient
from pydantic import BaseModel
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from agentcore.errors import ConfigurationError, DataError, EvaluationError, LMUnavailableError
from agentcore.lm import offline_lm
from agentcore.monitoring import AgentTracker, ModelEvaluator
from tests.monitoring.loans import TARGET, applications, decide, saved
from tests.support import Classifier, colours


def evaluator(tmp_path, config, agent=decide, **sets):
    return ModelEvaluator("loan_approval", agent, datasets=saved(tmp_path / "sets", **sets), config=config)


def test_a_run_with_everything(tmp_path, config):
    data = applications()
    own = evaluator(tmp_path, config, test_set=data)
    found = own.evaluate_dataset(dataset_name="test_set", target_field=TARGET, log_to_mlflow=True)
    answers = [decide({k: v for k, v in row.items() if k != TARGET})["outcome"] for row in data]
    expected = [row[TARGET] for row in data]
    precision, recall, f1, _ = precision_recall_fscore_support(expected, answers, average="macro")
    assert found.accuracy == pytest.approx(accuracy_score(expected, answers))
    assert (found.precision, found.recall, found.f1_score) == pytest.approx((precision, recall, f1))
    assert found.avg_latency_ms > 0
    assert found.p50_latency_ms <= found.p95_latency_ms <= found.p99_latency_ms

    own.flush(60)
    client = MlflowClient(config.tracking_uri)
    run = client.get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "/Shared/loan_approval_evaluation"
    assert run.data.metrics["accuracy"] == pytest.approx(found.accuracy)
    assert run.data.metrics["accuracy_low"] == pytest.approx(found.intervals["accuracy"].low)
    assert {"agent_name", "run_type", "domain", "dataset_type", "evaluation_type"} <= run.data.tags.keys()
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, found.dataset) == ("test_set_v1", "test_set_v1")
    files = {item.path for item in client.list_artifacts(found.run_id)}
    assert files == {
        "EVALUATION_REPORT.md",
        "confusion_matrix.png",
        "eval_results_table.json",
        "evaluation_report.json",
    }
    report = json.loads(read(client, found.run_id, "evaluation_report.json"))
    assert report["metrics"]["f1_score"] == pytest.approx(found.f1_score)
    # MLflow's own reader of evaluation tables.
    table = client.load_table(config_experiment(client, run), "eval_results_table.json", [found.run_id])
    assert len(table) == len(data)
    assert table["score"].mean() == pytest.approx(found.accuracy)


def config_experiment(client, run):
    return run.info.experiment_id


def read(client, run_id, path):
    from pathlib import Path

    return Path(client.download_artifacts(run_id, path)).read_text()


class Answer(BaseModel):
    outcome: str


@dataclass
class Decision:
    outcome: str


class Rules:
    async def __call__(self, request):
        return decide(request)


async def slowly(request):
    await asyncio.sleep(0)
    return decide(request)


KINDS = {
    "function": decide,
    "async function": slowly,
    "partial": functools.partial(decide, error=0.1),
    "partial of an async function": functools.partial(slowly),
    "object with an async __call__": Rules(),
    "lambda": lambda request: decide(request),
    "Pydantic model": lambda request: Answer(outcome=decide(request)["outcome"]),
    "dataclass": lambda request: Decision(decide(request)["outcome"]),
    "prediction": lambda request: dspy.Prediction(**decide(request)),
    "only the answer, by another name": lambda request: {"verdict": decide(request)["outcome"]},
    "by path": "tests.monitoring.loans:decide",
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_agent(tmp_path, config, kind):
    own = evaluator(tmp_path, config, KINDS[kind], test_set=applications(60))
    expected = evaluator(tmp_path, config).evaluate_dataset("test_set", TARGET, log_to_mlflow=False)
    found = own.evaluate_dataset("test_set", TARGET, log_to_mlflow=False)
    assert found.accuracy == expected.accuracy
    assert found.failures == 0


async def test_the_runs_follow_the_layout(tmp_path, config):
    own = evaluator(tmp_path, config, test_set=applications(40)).aio
    await own.experiments.create()
    await own.evaluate_dataset("test_set", TARGET)
    await own.detect_drift("test_set", "test_set")
    await own.flush(60)
    assert await own.experiments.check() == []


async def test_in_a_running_loop_and_awaited(tmp_path, config):
    own = evaluator(tmp_path, config, test_set=applications(30))
    blocking = own.evaluate_dataset("test_set", TARGET, log_to_mlflow=False)
    awaited = await own.aio.evaluate_dataset("test_set", TARGET, log_to_mlflow=False)
    assert blocking.accuracy == awaited.accuracy


def test_a_program(tmp_path, config):
    rows = [{"thing": row["thing"], "colour": row["colour"]} for row in colours(40).rows()]
    own = ModelEvaluator(
        "colours", Classifier, lm=offline_lm(), datasets=saved(tmp_path / "sets", things=rows), config=config
    )
    found = own.evaluate_dataset("things", "colour", log_to_mlflow=False)
    assert found.examples == 40
    assert found.total_tokens > 0
    again = own.evaluate_dataset("things", "colour", log_to_mlflow=False, repeats=2)
    assert again.repeats == 2


def test_failures_are_counted_not_hidden(tmp_path, config):
    def sometimes(request):
        if request["purpose"] == "car":
            raise ValueError("no cars")
        return decide(request)

    data = applications(60)
    cars = sum(row["purpose"] == "car" for row in data)
    found = evaluator(tmp_path, config, sometimes, test_set=data).evaluate_dataset(
        "test_set", TARGET, log_to_mlflow=False
    )
    assert found.failures == cars
    assert found.examples == 60
    assert "no cars" in next(row.error for row in found.rows if row.error)


@pytest.mark.parametrize(
    ("agent", "target", "options", "error", "told"),
    [
        (lambda request: 1 / 0, TARGET, {}, EvaluationError, "failed on every row"),
        (lambda request: {"a": 1, "b": 2}, TARGET, {}, DataError, "the answers have a, b"),
        (lambda request: [1], TARGET, {}, EvaluationError, "list instead of a dict"),
        (decide, "nothing", {}, DataError, "no value for the target 'nothing'"),
        (decide, TARGET, {"prediction_field": "x"}, DataError, "no answer has a field 'x'"),
        (decide, TARGET, {"repeats": 0}, ConfigurationError, "repeats"),
        (decide, TARGET, {"version": "v9"}, DataError, "v9"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, config, agent, target, options, error, told):
    own = evaluator(tmp_path, config, agent, test_set=applications(20))
    with pytest.raises(error, match=told):
        own.evaluate_dataset("test_set", target, log_to_mlflow=False, **options)


def test_an_outage_is_no_score(tmp_path, config):
    rows = [{"thing": row["thing"], "colour": row["colour"]} for row in colours(20).rows()]
    own = ModelEvaluator(
        "colours",
        Classifier,
        lm=offline_lm(error_rate=1.0, num_retries=0),
        datasets=saved(tmp_path / "sets", things=rows),
        config=config,
    )
    with pytest.raises(LMUnavailableError):
        own.evaluate_dataset("things", "colour")
    assert not MlflowClient(config.tracking_uri).search_experiments(filter_string="name LIKE '%colours%'")


def test_a_function_that_needs_a_model_says_so(tmp_path, config):
    ask = dspy.Predict("note -> outcome")
    own = evaluator(tmp_path, config, lambda row: ask(note=row["note"]), test_set=applications(10))
    with pytest.raises(LMUnavailableError, match="no language model: pass lm="):
        own.evaluate_dataset("test_set", TARGET, log_to_mlflow=False)


def test_no_agent(config):
    with pytest.raises(ConfigurationError, match="agent_func must be"):
        ModelEvaluator("loan_approval", 42, config=config)


def test_a_row_cannot_name_an_argument_of_dspy(tmp_path, config):
    data = [{**row, "lm": "openai/evil", "config": {"api_base": "http://evil"}} for row in applications(20)]
    found = evaluator(tmp_path, config, test_set=data).evaluate_dataset(
        "test_set", TARGET, log_to_mlflow=False
    )
    assert found.failures == 0


def test_the_current_run_stays(tmp_path, config, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    own = evaluator(tmp_path, config, test_set=applications(20))
    tracker = AgentTracker("loan_approval", config)
    run_id = tracker.start_run()
    found = own.evaluate_dataset("test_set", TARGET)
    own.aio.datasets.log_dataset_to_mlflow("test_set")
    tracker.end_run()
    tracker.flush(60)
    own.flush(60)
    client = MlflowClient(config.tracking_uri)
    mine = tracker.aio.tracker.sync.get_run(run_id)
    assert mine.info.run_id != found.run_id
    assert [item.dataset.name for item in mine.inputs.dataset_inputs] == ["test_set_v1"]
    assert len(client.get_run(found.run_id).inputs.dataset_inputs) == 1


def test_personal_data_stays_out_of_the_run(tmp_path, config):
    manager = saved(tmp_path / "sets")
    manager.save_dataset(applications(20), "test_set", personal=["applicant_name"])
    own = ModelEvaluator("loan_approval", decide, datasets=manager, config=config)
    found = own.evaluate_dataset("test_set", TARGET)
    own.flush(60)
    client = MlflowClient(config.tracking_uri)
    for path in ("eval_results_table.json", "EVALUATION_REPORT.md", "evaluation_report.json"):
        assert "Person" not in read(client, found.run_id, path), path


def test_a_regression_is_proven_by_the_same_rows(tmp_path, config):
    data = applications(150)
    before = evaluator(tmp_path, config, test_set=data)
    first = before.evaluate_dataset("test_set", TARGET)
    assert before.check_regression(first) is None
    same = before.evaluate_dataset("test_set", TARGET)
    assert before.check_regression(same).verdict == "not proven"

    after = evaluator(tmp_path, config, functools.partial(decide, error=0.4))
    worse = after.evaluate_dataset("test_set", TARGET)
    found = after.check_regression(worse)
    assert found.regressed
    assert found.run_id == same.run_id
    assert found.difference == pytest.approx(worse.accuracy - same.accuracy)
    assert found.examples == 150
    assert len(found.broken) - len(found.fixed) == round(-found.difference * 150)
