"""Caps on calls, tokens and USD: never exceeded; the best so far is measured from what was kept for it."""

import asyncio
import json
import random

import dspy
import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.errors import ConfigurationError
from agentcore.lm import Price, offline_lm
from tests.support import QUICK, AsyncClassifier, Classifier, colours, request

PRICES = {"offline/knn": Price(1.0, 5.0)}


async def optimize(constraints, *, program=None, seed=0, on_event=None, **values):
    lm = offline_lm(max_tokens=200)
    pipeline = OptimizationPipeline(
        program or AsyncClassifier(),
        lm=lm,
        enable_tracking=False,
        seed=seed,
        prices=PRICES,
        max_concurrency=8,
        on_event=on_event,
    )
    result = await pipeline.run_optimization(
        request(constraints=constraints, settings={**QUICK, "num_trials": 6}, **values),
        training_data=colours(60),
    )
    return result, lm


@pytest.fixture(scope="module")
def unlimited():
    result, _ = asyncio.run(optimize({}))
    return result


def within(result, constraints):
    spent = {
        "max_lm_calls": result.spend.calls,
        "max_tokens": result.spend.total_tokens,
        "max_cost_usd": result.spend.cost_usd,
    }
    return all(spent[name] <= cap + 1e-12 for name, cap in constraints.items())


@pytest.mark.parametrize("name", ["max_lm_calls", "max_tokens", "max_cost_usd"])
async def test_random_budgets_are_never_exceeded(name, unlimited):
    """Each run ends with a program and its figures, or says at the start that there is too little."""
    whole = {
        "max_lm_calls": unlimited.spend.calls,
        "max_tokens": unlimited.spend.total_tokens,
        "max_cost_usd": unlimited.spend.cost_usd,
    }[name]
    rng, ended, refusals = random.Random(name), set(), []
    for seed in range(12):
        share = rng.uniform(0.3, 1.1)
        cap = share * whole if name == "max_cost_usd" else int(share * whole)
        program = Classifier() if seed % 3 == 0 else AsyncClassifier()
        try:
            result, lm = await optimize({name: cap}, program=program, seed=seed)
        except ConfigurationError as error:
            refusals.append(str(error))
            continue
        ended.add(result.status)
        assert within(result, {name: cap}), (name, cap, result.spend)
        # What was in flight when the cap was reached was cancelled: asked, and not answered.
        assert 0 <= lm.engine.calls - result.spend.calls <= 8
        assert name != "max_lm_calls" or lm.engine.calls <= cap
        assert result.program is not None
        assert result.optimized_performance.quality_score is not None
    assert "budget_exhausted" in ended
    assert all("leaves nothing for the search" in refusal for refusal in refusals)


async def test_the_winner_is_measured_from_what_was_kept_for_it(unlimited):
    cap = int(0.75 * unlimited.spend.total_tokens)
    result, _ = await optimize({"max_tokens": cap})
    assert result.status == "budget_exhausted"
    assert result.comparison.examples == len(colours(60).split(seed=0).test)
    assert any(f"max_tokens ({cap}, of which " in message for message in result.warnings)


async def test_a_cap_reached_while_the_winner_is_measured_says_of_how_many(monkeypatch, unlimited):
    from agentcore.dspy_optimization import _budget

    monkeypatch.setattr(_budget.Budget, "_keep", lambda self: None)
    cap = unlimited.spend.calls - 10
    result, lm = await optimize({"max_lm_calls": cap})
    assert lm.engine.calls == cap
    assert result.status == "budget_exhausted"
    assert any("was reached while measuring the winner, after" in item for item in result.warnings)
    assert result.comparison.examples == len(colours(60).split(seed=0).test) - 10


async def test_cost_is_what_the_users_price_says(unlimited):
    spend = unlimited.spend
    assert spend.cost_usd == pytest.approx((spend.input_tokens * 1 + spend.output_tokens * 5) / 1e6)
    assert unlimited.measured_baseline.avg_cost > 0


async def test_the_account_names_proposer_teacher_task_and_judge():
    judge = offline_lm()

    def judged(example, prediction, trace=None):
        with dspy.context(lm=judge):
            dspy.Predict("colour -> verdict")(colour=prediction.colour)
        return example.colour == prediction.colour

    pipeline = OptimizationPipeline(AsyncClassifier(), judged, lm=offline_lm(), enable_tracking=False)
    result = await pipeline.run_optimization(request(), training_data=colours())
    by_stage = {name: spend.calls for name, spend in result.spend_by_stage.items()}
    assert set(by_stage) == {"warmup", "baseline", "bootstrap", "proposals", "trials", "judge", "winner"}
    assert by_stage["judge"] == judge.engine.calls
    assert sum(by_stage.values()) == result.spend.calls


async def test_an_unknown_price_is_refused_before_anything_is_spent():
    lm = offline_lm()
    lm.model = "own/model"
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=lm, enable_tracking=False)
    with pytest.raises(ConfigurationError, match="price of own/model is unknown"):
        await pipeline.run_optimization(request(constraints={"max_cost_usd": 1}), training_data=colours())
    assert lm.engine.calls == 0


async def test_cache_hits_cost_nothing(tmp_path):
    """The second run of the same request is answered by DSPy's cache."""
    from dspy.clients import Cache

    old = dspy.cache
    dspy.cache = Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=str(tmp_path))
    try:
        lm = offline_lm(cache=True)
        for _ in range(2):
            pipeline = OptimizationPipeline(
                AsyncClassifier(), lm=lm, enable_tracking=False, prices=PRICES, max_concurrency=8
            )
            result = await pipeline.run_optimization(request(), training_data=colours())
    finally:
        dspy.cache = old
    assert result.spend.calls == 0
    assert result.spend.cache_hits > 50
    assert result.spend.cost_usd == 0


async def test_the_account_goes_on_where_a_resumed_run_left_it(tmp_path, config):
    """Caps hold over all processes of a run."""
    reached = asyncio.Event()

    def follow(event):
        if event.kind == "trial_finished":
            reached.set()

    asked = request(constraints={"max_tokens": 30_000}, settings={**QUICK, "num_trials": 6})

    def pipeline(**values):
        return OptimizationPipeline(
            AsyncClassifier(),
            lm=offline_lm(latency=0.005, max_tokens=200),
            mlflow_config=config,
            max_concurrency=8,
            **values,
        )

    task = asyncio.create_task(pipeline(on_event=follow).run_optimization(asked, training_data=colours(60)))
    await asyncio.wait_for(reached.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    from agentcore.journal import open_journal

    (stream,) = open_journal().streams()
    result = await pipeline().resume(stream.id)
    assert result.status == "budget_exhausted"
    assert result.spend.total_tokens <= 30_000
    assert json.dumps(result.optimization_details["trials"])


@pytest.mark.parametrize("stage", ["search", "winner"])
async def test_a_capped_run_can_be_resumed_wherever_it_stopped(config, stage, unlimited):
    cap = int(0.85 * unlimited.spend.calls)
    stages = asyncio.Event()

    def follow(event):
        if event.kind == "stage_started" and event.stage == "winner" and stage == "winner":
            stages.set()
        if event.kind == "trial_finished" and event.trial == 2 and stage == "search":
            stages.set()

    asked = request(constraints={"max_lm_calls": cap}, settings={**QUICK, "num_trials": 6})

    def pipeline(**values):
        lm = offline_lm(latency=0.01)
        return OptimizationPipeline(
            AsyncClassifier(), lm=lm, mlflow_config=config, max_concurrency=8, **values
        )

    task = asyncio.create_task(pipeline(on_event=follow).run_optimization(asked, training_data=colours(60)))
    await asyncio.wait_for(stages.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    from agentcore.journal import open_journal

    (stream,) = open_journal().streams()
    result = await pipeline().resume(stream.id)
    assert result.spend.calls <= cap
    assert result.status == "budget_exhausted"
    assert result.program is not None


@pytest.mark.parametrize("algorithm", ["miprov2", "bootstrap_random_search"])
async def test_a_time_limit_in_the_middle_of_a_race_keeps_what_was_measured(algorithm):
    settings = {"miprov2": {"auto": "medium"}, "bootstrap_random_search": {"num_candidate_programs": 40}}
    latency, limit = {"miprov2": (0.08, 3), "bootstrap_random_search": (0.05, 7)}[algorithm]
    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=offline_lm(latency=latency), enable_tracking=False, max_concurrency=8
    )
    result = await pipeline.run_optimization(
        {
            "target": {"id": "x"},
            "algorithms": [algorithm],
            "optimizer_settings": {algorithm: settings[algorithm]},
            "constraints": {"max_optimization_time": limit},
        },
        training_data=colours(150),
    )
    assert result.status == "budget_exhausted"
    assert result.optimization_details["trials"]
    assert not any("before any candidate was scored" in item for item in result.warnings)


async def test_what_the_judge_takes_is_kept_for_the_winner_too():
    judge = offline_lm()

    def judged(example, prediction, trace=None):
        with dspy.context(lm=judge):
            dspy.Predict("colour -> verdict")(colour=prediction.colour)
        return example.colour == prediction.colour

    pipeline = OptimizationPipeline(
        AsyncClassifier(), judged, lm=offline_lm(), enable_tracking=False, max_concurrency=2
    )
    tests = len(colours(60).split(seed=0).test)
    result = await pipeline.run_optimization(
        request(constraints={"max_lm_calls": 8 * tests}, settings={**QUICK, "num_trials": 12}),
        training_data=colours(60),
    )
    assert result.status == "budget_exhausted"
    assert result.spend.calls <= 8 * tests
    assert result.comparison.examples == tests
