import asyncio
import json
import threading

import dspy
import pytest
from pydantic import ValidationError

from agentcore.dspy_optimization import (
    OptimizationConstraints,
    OptimizationPipeline,
    OptimizationRequest,
    PerformanceMetrics,
)
from agentcore.dspy_optimization._figures import improvement
from agentcore.dspy_optimization.models import OptimizationObjective
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ConfigurationError, EvaluationError, LMUnavailableError, TrackingError
from agentcore.journal import open_journal
from agentcore.lm import OFFLINE_NOTE, offline_lm
from agentcore.lm.offline import AsyncOfflineEngine, OfflineEngine
from agentcore.settings import MLflowConfig
from tests.support import AsyncClassifier, Classifier, colours, request

METRICS = {
    *(f"{side}_{name}" for side in ("baseline", "optimized") for name in PerformanceMetrics.model_fields),
    "success_rate_improvement",
    "cost_reduction",
    "latency_reduction_ms",
    "quality_improvement",
    "improvement_percentage",
    "statistical_significance",
    "iterations",
    "duration_seconds",
    "validation_score",
    "best_validation_score",
    "lm_calls",
    "total_tokens",
    "cost_usd",
}
ARTIFACTS = [
    "training_data.json",
    "key_improvements.txt",
    "algorithm_parameters.json",
    "models/optimized_model.json",
    "models/optimized_model.pkl",
    "models/optimized_model_metadata.json",
    "plots/trials.png",
    "plots/comparison.png",
    "test_examples.json",
]


def untracked(program=None, **values):
    return OptimizationPipeline(
        program or AsyncClassifier(), lm=offline_lm(), enable_tracking=False, **values
    )


def tracked(config, lm=None):
    return OptimizationPipeline(AsyncClassifier(), lm=lm or offline_lm(), mlflow_config=config)


def client_of(config):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=config.tracking_uri)


async def test_the_main_job_end_to_end(config):
    """Baseline, search, winner, comparison; and all of it in MLflow under the exact names."""
    events = []
    lm = offline_lm()
    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=lm, mlflow_config=config, on_event=events.append, seed=1
    )
    result = await pipeline.run_optimization(request=request(), training_data=colours())

    assert result.status == "completed"
    assert result.measured_baseline.quality_score < 0.6
    assert result.optimized_performance.quality_score > 0.85
    assert result.statistical_significance < 0.01
    assert result.interval.low > 0
    assert result.improvement_percentage == pytest.approx(
        result.optimized_performance.quality_score / result.measured_baseline.quality_score - 1
    )
    assert result.spend.calls == lm.engine.calls
    assert result.program.predict.demos
    assert OFFLINE_NOTE in result.warnings

    await pipeline.flush()
    client = client_of(config)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) >= METRICS
    assert run.data.metrics["improvement_percentage"] == result.improvement_percentage
    assert run.data.metrics["lm_calls"] == lm.engine.calls
    assert (
        run.data.metrics["iterations"]
        == len(client.get_metric_history(result.run_id, "validation_score"))
        == 4
    )
    params = run.data.params
    assert {params[name] for name in ("algorithm", "target_id", "target_type", "seed", "lm")} == {
        "miprov2",
        "colours",
        "component",
        "1",
        "offline/knn",
    }
    assert "optimization_time" not in params
    assert params["miprov2.num_trials"] == "3"
    assert params["objective.quality_score"] == "1.0"
    assert params["dataset_digest"] == colours().digest
    assert run.info.run_name.startswith("opt_component_colours_")
    assert run.data.tags["environment"] == "dev"
    assert "not a large language model" in run.data.tags["agentcore.offline_lm"]
    contexts = {item.tags[0].value: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert contexts == {name: params[f"{name}_digest"][:36] for name in ("train", "validation", "test")}
    for path in ARTIFACTS:
        assert client.download_artifacts(result.run_id, path, None)
    (output,) = run.outputs.model_outputs
    assert str(client.get_logged_model(output.model_id).status) == "READY"

    kinds = [event.kind for event in events]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_finished"
    assert kinds.index("baseline_measured") < kinds.index("trial_finished") < kinds.index("winner_measured")
    assert kinds.count("trial_finished") == 4
    assert all(type(event).model_validate_json(event.model_dump_json()) == event for event in events)


async def test_the_optimizer_never_sees_the_test_split():
    """Every example that the metric judges during the search is of train or validation."""
    data = colours()
    test = {item.values["thing"] for item in data.split(seed=0).test}
    stage, judged = ["preparing"], {}

    def metric(example, prediction, trace=None):
        judged.setdefault(stage[0], set()).add(example.thing)
        return example.colour == prediction.colour

    def follow(event):
        if event.kind == "stage_started":
            stage[0] = event.stage

    pipeline = OptimizationPipeline(
        AsyncClassifier(), metric, offline_lm(), enable_tracking=False, on_event=follow
    )
    result = await pipeline.run_optimization(request(), training_data=data)
    assert judged["baseline"] == judged["winner"] == test
    assert not judged["search"] & test
    shown = {demo.thing for demo in result.program.predict.demos}
    assert shown
    assert not shown & test


async def test_a_run_is_repeatable():
    results = [
        await untracked(Classifier(), seed=5).run_optimization(request(), training_data=colours())
        for _ in range(2)
    ]
    first, second = (result.model_dump(include={"comparison", "optimization_id"}) for result in results)
    assert first["comparison"] == second["comparison"]
    assert first["optimization_id"] != second["optimization_id"]
    trials = [result.optimization_details["trials"] for result in results]
    assert trials[0] == trials[1]
    assert results[0].program.dump_state() == results[1].program.dump_state()


async def test_the_winner_is_what_stock_compile_finds():
    """Our evaluation in place of DSPy's leaves the search as it is."""
    splits = colours().split(seed=0)
    lm = offline_lm()
    with dspy.context(lm=lm):
        stock = await asyncio.to_thread(
            lambda: dspy.MIPROv2(
                metric=lambda example, prediction, trace=None: example.colour == prediction.colour,
                prompt_model=lm,
                task_model=lm,
                auto=None,
                num_candidates=3,
                max_labeled_demos=8,
                num_threads=1,
                seed=1,
            ).compile(
                Classifier(),
                trainset=splits.train.dspy(),
                valset=splits.validation.dspy(),
                num_trials=3,
                minibatch=False,
            )
        )
    result = await untracked(Classifier()).run_optimization(request(), training_data=colours())
    ours, theirs = result.program.predict, stock.predict
    assert [demo.toDict() for demo in ours.demos] == [demo.toDict() for demo in theirs.demos]
    assert ours.signature.instructions == theirs.signature.instructions


async def test_two_pipelines_in_one_loop_share_nothing(config):
    """Two LMs, two experiments, two metrics at once: metrics, runs, settings and histories stay apart."""
    lms = [offline_lm(latency=0.002), offline_lm(latency=0.001)]
    names = ["left", "right"]
    judged = [set(), set()]
    seen_lms = [set(), set()]

    def make(index):
        def metric(example, prediction, trace=None):
            judged[index].add(example.thing.split()[0])
            seen_lms[index].add(id(dspy.settings.lm.engine))
            return example.colour == prediction.colour

        return OptimizationPipeline(
            AsyncClassifier(),
            metric,
            lms[index],
            mlflow_config=config.model_copy(update={"experiment_name": names[index]}),
            seed=index,
        )

    results = await asyncio.gather(
        make(0).run_optimization(request("left"), training_data=colours(45)),
        make(1).run_optimization(request("right"), training_data=colours(60)),
    )
    await MLflowTracker(config).flush()
    client = client_of(config)
    for index, (name, result, lm) in enumerate(zip(names, results, lms, strict=True)):
        run = client.get_run(result.run_id)
        experiment = client.get_experiment_by_name(name)
        assert run.info.experiment_id == experiment.experiment_id
        assert len(client.search_runs([experiment.experiment_id])) == 1
        assert run.data.params["target_id"] == name
        assert run.data.params["seed"] == str(index)
        assert run.data.metrics["lm_calls"] == lm.engine.calls == result.spend.calls
        assert run.data.metrics["optimized_quality_score"] == result.optimized_performance.quality_score
        assert seen_lms[index] == {id(lm.engine)}
        assert {entry["model"] for entry in lm.history} == {"offline/knn"}
        assert len(lm.history) <= lm.engine.calls
    assert dspy.settings.lm is None
    assert not dspy.settings.get("callbacks", [])


async def test_the_callers_baseline_is_logged_beside_the_measured_one(config):
    given = PerformanceMetrics(success_rate=0.95, quality_score=0.95)
    result = await tracked(config).run_optimization(request(), given, colours())
    await MLflowTracker(config).flush()
    metrics = client_of(config).get_run(result.run_id).data.metrics
    assert metrics["baseline_quality_score"] == 0.95
    assert metrics["measured_baseline_quality_score"] == result.measured_baseline.quality_score < 0.6
    assert metrics["quality_improvement"] == pytest.approx(
        result.optimized_performance.quality_score - result.measured_baseline.quality_score
    )
    assert any("baseline_metrics says quality_score 0.950" in warning for warning in result.warnings)
    tags = client_of(config).get_run(result.run_id).data.tags
    assert "baseline_metrics says" in tags["warnings"]


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ([("quality_score", 1.0)], 0.5),
        ([("avg_cost", 1.0)], 0.25),
        ([("avg_latency_ms", 1.0)], -0.5),
        ([("quality_score", 3.0), ("avg_latency_ms", 1.0)], (3 * 0.5 - 0.5) / 4),
        ([("success_rate", 1.0)], 0.75),
    ],
)
def test_improvement_is_the_weighted_relative_change_in_the_better_direction(objectives, expected):
    before = PerformanceMetrics(success_rate=0, quality_score=0.4, avg_cost=0.04, avg_latency_ms=100)
    after = PerformanceMetrics(success_rate=0.75, quality_score=0.6, avg_cost=0.03, avg_latency_ms=150)
    chosen = [OptimizationObjective(metric=name, weight=weight) for name, weight in objectives]
    assert improvement(before, after, chosen) == pytest.approx(expected)


async def test_an_objective_without_a_figure_is_refused_before_the_search_spends():
    lm = unpriced()
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=lm, enable_tracking=False)
    wanted = request(objectives=[{"metric": "avg_cost"}])
    with pytest.raises(EvaluationError, match=r"avg_cost can't be measured: the price .* is unknown"):
        await pipeline.run_optimization(wanted, training_data=colours())
    assert lm.engine.calls == 1 + len(colours().split().test)  # one to warm up


def unpriced():
    """The offline engine under a name that no price list has."""
    engine = OfflineEngine()
    return dspy.LM("own/model", engine=engine, async_engine=AsyncOfflineEngine(engine), cache=False)


async def test_unknown_cost_is_left_out_never_0(config):
    result = await tracked(config, lm=unpriced()).run_optimization(request(), training_data=colours())
    await MLflowTracker(config).flush()
    metrics = client_of(config).get_run(result.run_id).data.metrics
    assert result.spend.cost_usd is None
    assert not {"cost_usd", "baseline_avg_cost", "optimized_avg_cost", "cost_reduction"} & set(metrics)
    assert metrics["total_tokens"] > 0


async def test_a_time_limit_keeps_the_best_so_far(config):
    """The latency makes the search take longer than its limit."""
    events = []
    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=offline_lm(latency=0.05), mlflow_config=config, on_event=events.append
    )
    wanted = request(
        constraints={"max_optimization_time": 1.5}, settings={"auto": "heavy", "max_labeled_demos": 8}
    )
    result = await pipeline.run_optimization(wanted, training_data=colours(120))
    assert result.status == "budget_exhausted"
    scores = [event.score for event in events if event.kind == "trial_finished"]
    assert any("max_optimization_time (1.5 s) was reached" in warning for warning in result.warnings)
    await MLflowTracker(config).flush()
    run = client_of(config).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["optimization_status"] == "budget_exhausted"
    assert len(scores) == run.data.metrics["iterations"]


@pytest.mark.parametrize("limit", [45, 60, 75])
async def test_a_call_limit_is_never_exceeded(limit):
    lm = offline_lm()
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=lm, enable_tracking=False)
    result = await pipeline.run_optimization(
        request(constraints={"max_lm_calls": limit}), training_data=colours()
    )
    assert result.status == "budget_exhausted"
    assert lm.engine.calls <= limit
    assert result.program.predictors()


async def test_a_call_limit_too_small_for_any_search():
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), enable_tracking=False)
    with pytest.raises(ConfigurationError, match="max_lm_calls=30 leaves nothing for the search"):
        await pipeline.run_optimization(request(constraints={"max_lm_calls": 30}), training_data=colours())


async def test_an_outage_in_the_middle_fails_the_run(config):
    """The engine fails for good once the search has begun: stock DSPy would score 0 and complete."""
    lm = offline_lm(num_retries=0)
    events = []

    def follow(event):
        events.append(event)
        if event.kind == "trial_finished" and event.trial == 1:
            lm.engine.error_rate = 1.0

    pipeline = OptimizationPipeline(AsyncClassifier(), lm=lm, mlflow_config=config, on_event=follow)
    with pytest.raises(LMUnavailableError, match="the language model failed"):
        await pipeline.run_optimization(request(), training_data=colours())
    await pipeline.flush()
    client = client_of(config)
    (run,) = client.search_runs([client.get_experiment_by_name("dspy-optimization").experiment_id])
    assert run.info.status == "FAILED"
    assert "language model failed" in run.data.tags["error"]
    assert not [name for name in run.data.metrics if name.startswith("optimized_")]
    assert min(event.score for event in events if event.kind == "trial_finished") > 0
    assert events[-1].kind == "run_finished"
    assert events[-1].status == "failed"


@pytest.mark.parametrize("when", ["bootstrap", "proposal"])
async def test_an_outage_before_the_first_trial_fails_the_run(when):
    lm, prompt_lm = offline_lm(num_retries=0), offline_lm(num_retries=0)

    def follow(event):
        if event.kind == "stage_started" and event.stage == "search":
            (lm if when == "bootstrap" else prompt_lm).engine.error_rate = 1.0

    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=lm, prompt_lm=prompt_lm, enable_tracking=False, on_event=follow
    )
    with pytest.raises(LMUnavailableError, match="failed"):
        await pipeline.run_optimization(request(), training_data=colours())


async def test_an_unreachable_server_costs_nothing():
    """The run goes on, is told of, and waits in the journal."""
    config = MLflowConfig(tracking_uri="http://127.0.0.1:9", request_timeout=1)
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), mlflow_config=config, seed=1)
    result = await pipeline.run_optimization(request(), training_data=colours())
    assert result.status == "completed"
    assert result.run_id == f"local-{result.optimization_id}"
    with pytest.raises(
        TrackingError, match=r"9: can't be reached.* 1 run waits in the journal; deliver with: agentcore sync"
    ):
        await pipeline.flush()
    (stream,) = open_journal().waiting("http://127.0.0.1:9")
    assert stream.id == result.optimization_id
    assert stream.finished


def test_the_sync_twin_gives_the_same(config):
    result = OptimizationPipeline(Classifier(), lm=offline_lm(), mlflow_config=config).sync.run_optimization(
        request(), training_data=colours()
    )
    assert result.status == "completed"
    assert MLflowTracker(config).sync.get_run(result.run_id).data.metrics["iterations"] == 4


async def test_the_sync_twin_works_where_a_loop_already_runs():
    """As in a notebook."""
    pipeline = untracked(Classifier())
    result = pipeline.sync.run_optimization(request(), training_data=colours())
    assert result.status == "completed"


async def test_an_asynchronous_metric_judges_in_the_callers_loop():
    loop, seen = asyncio.get_running_loop(), set()

    async def metric(example, prediction, trace=None):
        seen.add((asyncio.get_running_loop() is loop, threading.current_thread() is threading.main_thread()))
        await asyncio.sleep(0)
        return dspy.Prediction(score=float(example.colour == prediction.colour), feedback="judged")

    result = await OptimizationPipeline(
        AsyncClassifier(), metric, offline_lm(), enable_tracking=False
    ).run_optimization(request(), training_data=colours())
    assert result.status == "completed"
    assert seen == {(True, True)}


async def test_an_agent_with_asynchronous_tools_is_optimized():
    """ReAct called synchronously would turn the tool's result into an "Execution error"."""
    results = []

    async def look_up(thing: str = "") -> str:
        """Look a thing up."""
        await asyncio.sleep(0)
        results.append(thing)
        return "seen"

    agent = dspy.ReAct("thing -> colour", tools=[look_up], max_iters=2)
    rows = [{"thing": f"thing {index}", "colour": "red"} for index in range(20)]
    result = await OptimizationPipeline(
        agent,
        lambda example, prediction: "Execution error" not in str(prediction.trajectory),
        offline_lm(),
        enable_tracking=False,
    ).run_optimization(
        request(settings={"auto": None, "num_candidates": 2, "num_trials": 1, "minibatch": False}),
        training_data=rows,
    )
    assert result.measured_baseline.quality_score == result.optimized_performance.quality_score == 1.0


async def test_without_a_program_one_is_built_from_the_data():
    result = await OptimizationPipeline(lm=offline_lm(), enable_tracking=False).run_optimization(
        request(), training_data=colours()
    )
    assert isinstance(result.program, dspy.Predict)
    assert list(result.program.signature.fields) == ["thing", "colour"]
    free = [{"question": f"question {index}", "answer": f"answer {index}"} for index in range(20)]
    result = await OptimizationPipeline(lm=offline_lm(), enable_tracking=False).run_optimization(
        request(), training_data=free
    )
    assert isinstance(result.program, dspy.ChainOfThought)


async def test_splits_of_the_callers_own():
    splits = colours().split(seed=9)
    train, validation, test = (part.rows() for part in splits)
    result = await untracked().run_optimization(
        request(), training_data=train, validation_data=validation, test_data=test
    )
    assert result.comparison.examples == len(test)


def test_requests_are_checked():
    with pytest.raises(ValidationError, match="Input should be 'agent', 'workflow' or 'component'"):
        OptimizationRequest.model_validate({"target": {"type": "robot", "id": "x"}})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        OptimizationConstraints(max_time=3)
    assert request().algorithms == ["miprov2"]
    assert request().constraints.max_optimization_time == 7200
    assert request().constraints.min_improvement_threshold == 0.05


def test_a_result_is_json():
    result = untracked(Classifier()).sync.run_optimization(request(), training_data=colours())
    content = json.loads(result.model_dump_json())
    assert "program" not in content
    assert content["status"] == "completed"
