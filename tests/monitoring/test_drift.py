"""Drift: proven, over the threshold, in figures and fields; and what the canary says about the cause."""

import functools

import numpy as np
import pytest
from mlflow import MlflowClient
from scipy import stats

from agentcore.errors import DataError
from agentcore.monitoring import ModelEvaluator, detect_drift, field_drift
from agentcore.monitoring._two_samples import (
    difference_interval,
    holm,
    loss_in_mean,
    rise_in_log,
)
from tests.monitoring.loans import TARGET, applications, decide, saved


def compared(tmp_path, config, *, agent=decide, before=None, after=None, **options):
    data = saved(
        tmp_path / "sets", baseline=before or applications(300, 1), current=after or applications(300, 2)
    )
    own = ModelEvaluator("loan_approval", agent, datasets=data, config=config)
    return own, own.detect_drift("baseline", "current", **options)


def worse_on(prefix, error):
    """The agent errs more on the rows of one data set."""

    def agent(request):
        return decide(request, error if request["request_id"].startswith(prefix) else 0.1)

    return agent


def test_no_drift(tmp_path, config):
    _, found = compared(tmp_path, config, log_to_mlflow=False)
    assert found["has_drift"] is False
    assert not found.has_input_drift
    assert found.cause == "none"
    assert "No performance drift" in found.headline()


def test_a_proven_loss_over_the_threshold(tmp_path, config):
    own, found = compared(tmp_path, config, agent=worse_on("2_", 0.35))
    assert found["has_drift"]
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["drifted"]
    assert accuracy["degradation"] == pytest.approx(found.baseline.accuracy - found.current.accuracy)
    assert accuracy["interval"][0] < accuracy["degradation"] < accuracy["interval"][1]
    assert found.cause == "unknown"  # no canary

    own.flush(60)
    client = MlflowClient(config.tracking_uri)
    run = client.get_run(found.run_id)
    assert run.data.metrics["has_drift"] == 1.0
    assert run.data.metrics["accuracy_degradation"] == pytest.approx(accuracy["degradation"])
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"baseline_v1", "current_v1"}
    assert {item.path for item in client.list_artifacts(found.run_id)} == {
        "DRIFT_REPORT.md",
        "drift_report.json",
        "plots",
    }
    plots = {item.path for item in client.list_artifacts(found.run_id, "plots")}
    assert plots == {"plots/drift_metrics.png", "plots/drift_fields.png"}


def test_a_loss_below_the_threshold_is_no_drift(tmp_path, config):
    _, found = compared(tmp_path, config, agent=worse_on("2_", 0.35), threshold=0.5, log_to_mlflow=False)
    assert not found.has_drift


def test_a_loss_that_a_few_rows_show_is_not_proven(tmp_path, config):
    _, found = compared(
        tmp_path,
        config,
        agent=worse_on("2_", 0.3),
        before=applications(20, 1),
        after=applications(20, 2),
        log_to_mlflow=False,
    )
    accuracy = found.metrics[0]
    assert accuracy.degradation > found.threshold
    assert not found.has_drift


@pytest.mark.parametrize("what", ["inputs", "model", "inputs and model"])
def test_the_canary_tells_the_cause(tmp_path, config, what):
    data = saved(
        tmp_path / "sets",
        baseline=applications(300, 1),
        current=applications(300, 2, shifted="inputs" in what),
    )
    before = ModelEvaluator("loan_approval", decide, datasets=data, config=config)
    canary = before.freeze_canary("baseline", TARGET)
    assert canary.name == "loan_approval_canary"
    assert canary.lineage["canary_of"]["name"] == "baseline_v1"
    now = functools.partial(decide, error=0.25, salt="new") if "model" in what else decide
    after = ModelEvaluator("loan_approval", now, datasets=data, config=config)
    found = after.detect_drift("baseline", "current", log_to_mlflow=False)
    assert found.cause == what
    assert found.canary.model_changed is ("model" in what)
    assert found["canary"]["unstable"] == 0


def test_an_agent_that_varies_is_not_a_changed_one(tmp_path, config):
    calls = iter(range(10**9))

    def moody(request):
        found = decide(request)
        return {"outcome": "rejected"} if next(calls) % 7 == 0 else found

    data = saved(tmp_path / "sets", baseline=applications(300, 1), current=applications(300, 2))
    own = ModelEvaluator("loan_approval", moody, datasets=data, config=config)
    own.freeze_canary("baseline", TARGET)
    found = own.detect_drift("baseline", "current", log_to_mlflow=False)
    assert found.canary.unstable > 0
    assert not found.canary.model_changed


def test_a_canary_needs_rows_and_is_one(tmp_path, config):
    data = saved(tmp_path / "sets", baseline=applications(10))
    own = ModelEvaluator("loan_approval", decide, datasets=data, config=config)
    with pytest.raises(DataError, match="at least 20"):
        own.freeze_canary("baseline", TARGET)
    with pytest.raises(DataError, match="no canary"):
        own.detect_drift("baseline", "baseline", canary="baseline")


def test_which_target(tmp_path, config):
    rows = [{"x": 1, "y": 2}] * 10
    data = saved(tmp_path / "sets", one=rows, two=rows)
    own = ModelEvaluator("loan_approval", decide, datasets=data, config=config)
    with pytest.raises(DataError, match="which field is the expected answer"):
        own.detect_drift("one", "two")


def test_as_a_function(tmp_path, config):
    data = saved(tmp_path / "sets", baseline=applications(60, 1), current=applications(60, 2))
    found = detect_drift(
        "baseline",
        "current",
        threshold=0.05,
        agent_name="loan_approval",
        agent_func=decide,
        datasets=data,
        config=config,
        log_to_mlflow=False,
    )
    assert found["has_drift"] is False


def column(draw, kind, *, moved=False):
    if kind == "numbers":
        return draw.normal(0.6 if moved else 0.0, 1, 300).tolist()
    if kind == "categories":
        return draw.choice(["a", "b", "c"], 300, p=[0.6, 0.2, 0.2] if moved else [0.3, 0.4, 0.3]).tolist()
    if kind == "yes and no":
        return [bool(value) for value in draw.random(300) < (0.8 if moved else 0.6)]
    if kind == "few numbers":
        return draw.poisson(3 if moved else 2, 300).tolist()
    if kind == "missing":
        return [None if draw.random() < (0.3 if moved else 0.1) else float(draw.normal()) for _ in range(300)]
    words = ["red", "green", "blue", "car", "house", "tree", "river", "stone"]
    chosen = words[3:] if moved else words[:6]
    return [" ".join(draw.choice(chosen, 9)) + f" {draw.integers(1e6)}" for _ in range(300)]


KINDS = ("numbers", "categories", "yes and no", "few numbers", "missing", "text")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_field(kind):
    draw = np.random.default_rng(3)
    before = {name: column(draw, name) for name in KINDS}
    after = {name: column(draw, name, moved=name == kind) for name in KINDS}
    rows = [
        [dict(zip(part, values, strict=True)) for values in zip(*part.values(), strict=True)]
        for part in (before, after)
    ]
    found = {item.name: item for item in field_drift(*rows)}
    assert [name for name, item in found.items() if item.drifted] == [kind]
    assert found[kind].effect > 0.1


def test_identifiers_and_times_are_not_tested():
    rows = [
        [
            {"id": start + number, "request_id": f"r{start + number}", "at": f"2026-{month}-01T10:00:00Z"}
            for number in range(100)
        ]
        for start, month in ((0, "01"), (1000, "09"))
    ]
    found = field_drift(*rows)
    assert [item.test for item in found] == ["not tested"] * 3
    assert not any(item.drifted for item in found)


def test_a_field_that_is_gone():
    (found,) = field_drift([{"a": 1.5}] * 30, [{}] * 30)
    assert found.drifted
    assert found.note == "missing: 0.0% → 100.0%"


def test_fields_of_one_distribution_rarely_alarm():
    draw = np.random.default_rng(11)
    alarms = 0
    for _ in range(60):
        rows = []
        for _ in range(2):
            part = {name: column(draw, name) for name in KINDS}
            rows.append([dict(zip(part, values, strict=True)) for values in zip(*part.values(), strict=True)])
        alarms += any(item.drifted for item in field_drift(*rows))
    # At a true rate of 1.5 %, more than 4 of 60 have a probability of 0.2 %.
    assert alarms <= 4


def test_two_samples():
    old, new = [1.0] * 45 + [0.0] * 5, [1.0] * 30 + [0.0] * 20
    expected = stats.boschloo_exact([[45, 30], [5, 20]], alternative="greater").pvalue
    assert loss_in_mean(old, new) == pytest.approx(expected)
    assert loss_in_mean(new, old) > 0.99
    assert loss_in_mean(old * 20, new * 20) < 1e-20
    assert loss_in_mean([0.5, 0.75] * 20, [0.25, 0.5] * 20) < 0.001
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    draw = np.random.default_rng(5)
    values = draw.lognormal(2, 0.3, 200)
    change, bounds, p = rise_in_log(values, 2 * draw.permutation(values))
    assert change == pytest.approx(1.0)
    assert bounds.low < 1.0 < bounds.high
    assert p < 1e-9
    assert rise_in_log(values, 1.15 * draw.permutation(values), margin=0.2)[2] > 0.5
    # Bursts slow down neighbours: 1 in 20 blocks is 10 times slower, in one sample by chance a bit more.
    alarms = 0
    for _ in range(200):
        old, new = (
            draw.lognormal(2, 0.3, 300) * np.repeat(np.where(draw.random(15) < 0.1, 10, 1), 20)
            for _ in range(2)
        )
        alarms += rise_in_log(old, new, margin=0.2)[2] < 0.005
    assert alarms <= 4
    # Newcombe 1998, method 10: 56/70 against 48/80.
    from agentcore.monitoring._quality import wilson

    low, high = difference_interval(0.8, wilson(0.8, 70), 0.6, wilson(0.6, 80))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_a_field_that_few_rows_have():
    """Missing on one side by chance is no drift; missing where every row had it is."""
    draw = np.random.default_rng(2)
    alarms = 0
    for _ in range(40):
        rows = [[{"rare": 1.5} if draw.random() < 0.01 else {} for _ in range(100)] for _ in range(2)]
        alarms += any(item.drifted for item in field_drift(*rows))
    assert alarms <= 2
    (found,) = field_drift([{"a": 1.5}] * 30, [{}] * 30)
    assert found.drifted
    (found,) = field_drift([{"phone": f"+47{n}"} for n in range(300)], [{"phone": None}] * 300)
    assert found.drifted
    (found,) = field_drift([{"a": n / 7} for n in range(300)], [{"a": str(n / 7)} for n in range(300)])
    assert found.drifted
    assert "texts" in found.note


def test_many_rare_values_of_unequal_sizes():
    draw = np.random.default_rng(4)
    weights = 1 / np.arange(1, 46)
    alarms = 0
    for _ in range(100):
        rows = [
            [{"a": f"v{value}"} for value in draw.choice(45, size, p=weights / weights.sum())]
            for size in (2000, 30)
        ]
        alarms += any(item.drifted for item in field_drift(*rows))
    assert alarms <= 4  # 1 % is the level


def test_psi_of_a_value_that_many_rows_have():
    draw = np.random.default_rng(6)
    before, after = (
        [{"a": 0.0 if draw.random() < share else float(draw.uniform(1, 100))} for _ in range(500)]
        for share in (0.95, 0.5)
    )
    (found,) = field_drift(before, after)
    assert found.psi > 0.5
    same = []
    for _ in range(60):
        rows = [[{"a": float(draw.normal())} for _ in range(50)] for _ in range(2)]
        same.append(field_drift(*rows)[0])
    assert np.mean([item.psi > 0.2 for item in same]) < 0.35


def test_few_errors_expected():
    """The z test would find this at 3 %; the exact test does not."""
    from scipy.stats import fisher_exact

    old, new = [1.0] * 4850 + [0.0] * 150, [1.0] * 27 + [0.0] * 3
    expected = fisher_exact([[4850, 27], [150, 3]], alternative="greater").pvalue
    assert loss_in_mean(old, new) == pytest.approx(expected)


def test_a_price_that_is_always_the_same():
    for old, new in ((0.003, 0.006), (1.0, 2.0), (0.01, 0.02)):
        change, bounds, p = rise_in_log([old] * 60, [new] * 60, margin=0.2)
        assert (change, p) == (pytest.approx(1.0), 0.0)
        assert bounds.low == pytest.approx(1.0)
    assert rise_in_log([0.01] * 60, [0.011] * 60, margin=0.2)[2] == 1.0


def test_errors_of_numbers(tmp_path, config):
    draw = np.random.default_rng(8)
    rows = [
        [{"request_id": f"{part}_{n}", "y": float(draw.normal(0, 50)), "x": 1} for n in range(300)]
        for part in (1, 2)
    ]
    truth = {row["request_id"]: row["y"] for part in rows for row in part}

    def agent(request):
        noise = 10 if request["request_id"].startswith("2_") else 1
        return {"y": truth[request["request_id"]] + float(draw.normal(0, noise))}

    data = saved(tmp_path / "sets", one=rows[0], two=rows[1])
    own = ModelEvaluator("numbers", agent, datasets=data, config=config)
    found = own.detect_drift("one", "two", target_field="y")
    assert [item.name for item in found.metrics if item.drifted] == ["mae"]
    assert found["metrics"]["mae"]["degradation"] == pytest.approx(9, rel=0.4)
    own.flush(60)


def test_one_task_for_both_data_sets(tmp_path, config):
    """Alone, the smaller data set would count as text."""
    labels = [f"pay the claim number {number}" for number in range(40)]
    draw = np.random.default_rng(9)
    rows = [
        [{"n": int(draw.integers(9)), "label": labels[int(draw.integers(40))]} for _ in range(size)]
        for size in (45, 400)
    ]
    data = saved(tmp_path / "sets", one=rows[0], two=rows[1])
    own = ModelEvaluator("claims", lambda row: {"label": labels[0]}, datasets=data, config=config)
    found = own.detect_drift("one", "two", target_field="label", log_to_mlflow=False)
    assert found.baseline.task == found.current.task == "classes"


def test_an_answer_that_no_row_expects_is_no_class_to_compare(tmp_path, config):
    def agent(request):
        if request["request_id"] in ("2_1", "2_2"):
            return {"outcome": "manual_review"}
        return decide(request)

    _, found = compared(tmp_path, config, agent=agent, log_to_mlflow=False)
    precision = next(item for item in found.metrics if item.name == "precision")
    assert found.current.precision < 0.7  # as scikit-learn has it, over three classes
    assert abs(precision.degradation) < 0.1


def test_harder_data_and_another_model_at_once(tmp_path, config):
    data = saved(tmp_path / "sets", baseline=applications(300, 1), current=applications(300, 2))
    before = ModelEvaluator("loan_approval", decide, datasets=data, config=config)
    before.freeze_canary("baseline", TARGET)

    def other(request):
        return decide(request, 0.45 if request["request_id"].startswith("2_") else 0.1, salt="new")

    found = ModelEvaluator("loan_approval", other, datasets=data, config=config).detect_drift(
        "baseline", "current", log_to_mlflow=False
    )
    assert found.cause == "inputs and model"


def test_rows_that_occur_twice_are_paired_in_order(tmp_path, config):
    rows = [row for row in applications(20) for _ in range(10)]
    own = ModelEvaluator("loan_approval", decide, datasets=saved(tmp_path / "s", d=rows), config=config)
    own.evaluate_dataset("d", TARGET)
    found = own.check_regression(own.evaluate_dataset("d", TARGET))
    assert found.examples == 200
    assert found.difference == 0
    assert (found.fixed, found.broken) == ((), ())
    # 20 rows, not 200: nothing is proven by one that changes.
    worse = ModelEvaluator(
        "loan_approval",
        lambda row: {"outcome": "none"} if row["request_id"] in ("0_1", "0_2") else decide(row),
        datasets=own.aio.datasets,
        config=config,
    )
    assert worse.check_regression(worse.evaluate_dataset("d", TARGET)).verdict == "not proven"
