"""What holds for every optimizer, and for several in one request."""

import asyncio
from importlib.metadata import EntryPoint, EntryPoints

import dspy
import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.optimizers import (
    BaseOptimizer,
    Optimizer,
    OptimizerSettings,
    _make,
    available_optimizers,
    make_optimizer,
)
from agentcore.errors import ConfigurationError, LMUnavailableError, MetricError
from agentcore.lm import offline_lm
from agentcore.tracking import program_state
from tests.dspy_optimization.test_search import TwoSteps, uneven_lm
from tests.support import QUICK, AsyncClassifier, Classifier, colours

SMALL = {
    "bootstrap_random_search": {"num_candidate_programs": 4},
    "copro": {"breadth": 3, "depth": 2},
    "gepa": {"auto": None, "max_metric_calls": 60},
    "labeled_few_shot": {},
    "miprov2": QUICK,
    "simba": {"max_steps": 2, "num_candidates": 3, "bsize": 8},
}

every = pytest.mark.parametrize("name", available_optimizers())


def test_every_optimizer_is_here():
    assert available_optimizers() == sorted(SMALL)


async def optimize(*names, program=None, lm=None, metric=None, events=None, **request):
    pipeline = OptimizationPipeline(
        program or AsyncClassifier(),
        metric,
        lm=lm or offline_lm(),
        enable_tracking=False,
        max_concurrency=8,
        on_event=None if events is None else events.append,
    )
    settings = {name: SMALL[name] for name in names if name in SMALL}
    asked = {"target": {"id": "x"}, "algorithms": list(names), "optimizer_settings": settings, **request}
    return await pipeline.run_optimization(asked, training_data=colours(60))


@every
async def test_an_optimizer_reports_its_trials_and_returns_the_best_of_them(name):
    assert isinstance(make_optimizer(name, SMALL[name]), Optimizer)
    lm, events = offline_lm(), []
    given = AsyncClassifier()
    before = program_state(given)
    result = await optimize(name, program=given, lm=lm, events=events)
    assert result.status == "completed"
    assert program_state(given) == before
    trials = result.optimization_details["trials"]
    assert [trial["trial"] for trial in trials] == list(range(len(trials)))
    assert trials[-1]["best"] == max(trial["score"] for trial in trials if trial["full"])
    assert trials[-1]["best"] >= trials[0]["score"]
    assert result.spend.calls == lm.engine.calls
    assert result.optimized_performance.quality_score >= result.measured_baseline.quality_score - 1e-9
    assert type(result.program) is AsyncClassifier
    assert result.optimization_details["algorithm"] == name


@every
async def test_the_limit_holds(name):
    lm = uneven_lm(0.004)
    await optimize(name, lm=lm)
    assert lm.engine.most <= 8


@every
@pytest.mark.parametrize("program", [AsyncClassifier, Classifier])
async def test_a_cap_stops_it_and_keeps_the_best_so_far(name, program):
    if name == "labeled_few_shot":
        pytest.skip("takes no more calls than its two candidates")
    lm = offline_lm()
    result = await optimize(name, program=program(), lm=lm, constraints={"max_lm_calls": 75})
    assert lm.engine.calls <= 75
    assert result.status == "budget_exhausted"
    assert result.program is not None


@every
async def test_an_outage_is_an_error_and_no_score(name):
    lm = offline_lm(num_retries=0)
    events = []

    def follow(event):
        events.append(event)
        if event.kind == "stage_started" and event.stage == "search":
            lm.engine.error_rate = 1.0

    pipeline = OptimizationPipeline(AsyncClassifier(), lm=lm, enable_tracking=False, on_event=follow)
    asked = {"target": {"id": "x"}, "algorithms": [name], "optimizer_settings": {name: SMALL[name]}}
    with pytest.raises(LMUnavailableError):
        await pipeline.run_optimization(asked, training_data=colours(60))
    assert not any(event.kind == "trial_finished" for event in events)


@every
async def test_an_outage_in_the_middle_too(name):
    if name == "labeled_few_shot":
        pytest.skip("both of its candidates are scored at once")
    lm, scores = offline_lm(num_retries=0), []

    def follow(event):
        if event.kind == "trial_finished":
            lm.engine.error_rate = 1.0
            scores.append(event.score)

    pipeline = OptimizationPipeline(AsyncClassifier(), lm=lm, enable_tracking=False, on_event=follow)
    settings = {**SMALL[name], **({"auto": "light"} if name == "miprov2" else {})}
    if name == "miprov2":
        settings = {"auto": "light"}
    if name == "bootstrap_random_search":
        pytest.skip("its candidates are scored at once, after all were made")
    asked = {"target": {"id": "x"}, "algorithms": [name], "optimizer_settings": {name: settings}}
    with pytest.raises(LMUnavailableError):
        await pipeline.run_optimization(asked, training_data=colours(60))
    assert 0.0 not in scores


@every
async def test_cancelling_stops_its_calls(name):
    lm, searching = offline_lm(latency=0.02), asyncio.Event()

    def follow(event):
        if event.kind == "stage_started" and event.stage == "search":
            searching.set()

    pipeline = OptimizationPipeline(
        Classifier(), lm=lm, enable_tracking=False, on_event=follow, max_concurrency=4
    )
    asked = {"target": {"id": "x"}, "algorithms": [name], "optimizer_settings": {name: SMALL[name]}}
    task = asyncio.create_task(pipeline.run_optimization(asked, training_data=colours(60)))
    await searching.wait()
    calls = lm.engine.calls
    while lm.engine.calls < calls + 6:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)  # what was in flight
    calls = lm.engine.calls
    await asyncio.sleep(0.15)
    assert lm.engine.calls == calls


@every
async def test_a_broken_metric_is_an_error(name):
    seen = []

    def metric(example, prediction, trace=None):
        seen.append(1)
        if len(seen) > 40:
            raise ZeroDivisionError("oh")
        return example.colour == prediction.colour

    with pytest.raises(MetricError, match="ZeroDivisionError: oh"):
        await optimize(name, metric=metric)


@every
async def test_an_asynchronous_metric_is_awaited(name):
    async def metric(example, prediction, trace=None):
        await asyncio.sleep(0)
        return example.colour == prediction.colour

    result = await optimize(name, metric=metric)
    assert result.status == "completed"


@every
def test_unknown_settings_are_refused(name):
    with pytest.raises(ConfigurationError, match="no_such_setting"):
        make_optimizer(name, {"no_such_setting": 1})


async def test_a_third_partys_optimizer_by_its_entry_point(monkeypatch):
    own = EntryPoint("mine", "tests.dspy_optimization.test_optimizers:Mine", "agentcore.optimizers")

    def entry_points(group, name=None):
        assert group == "agentcore.optimizers"
        return EntryPoints([own]) if name in (None, "mine") else EntryPoints([])

    monkeypatch.setattr(_make, "entry_points", entry_points)
    assert available_optimizers() == ["mine"]
    result = await optimize("mine", optimizer_settings={"mine": {"instruction": "Say green."}})
    assert result.program.predict.signature.instructions == "Say green."
    with pytest.raises(ConfigurationError, match="no optimizer 'theirs': use one of mine"):
        make_optimizer("theirs")


class MineSettings(OptimizerSettings):
    instruction: str = "x"


class Mine(BaseOptimizer[MineSettings]):
    name = "mine"
    settings_type = MineSettings

    async def optimize(self, task):
        program = task.program.deepcopy()
        program.predict.signature = program.predict.signature.with_instructions(self._settings.instruction)
        await task.score(program, task.validation.examples, full=True)
        return program


async def test_several_are_compared_on_validation_and_the_winner_is_tested_once():
    lm, events = offline_lm(), []
    names = ["labeled_few_shot", "bootstrap_random_search", "miprov2", "copro"]
    result = await optimize(*names, lm=lm, events=events)
    told = result.optimization_details["optimizers"]
    assert list(told) == names
    best = max(item["validation_score"] for item in told.values())
    assert told[result.winning_optimizer]["validation_score"] == best
    measured = [event for event in events if event.kind == "example_measured"]
    winner = {event.candidate for event in measured if event.evaluation == "winner"}
    assert len(winner) == 1
    searched = [
        (event.candidate, event.record["digest"]) for event in measured if event.evaluation == "search"
    ]
    assert len(searched) == len(set(searched))  # none asks again what another has measured
    assert result.spend.calls == lm.engine.calls
    alone = [await optimize(name) for name in names]
    best = max(item.optimization_details["trials"][-1]["best"] for item in alone)
    assert result.optimization_details["trials"][-1]["best"] == best


async def test_candidates_that_were_scored_in_part_count_when_a_cap_is_reached():
    result = await optimize("bootstrap_random_search", constraints={"max_lm_calls": 150})
    assert result.status == "budget_exhausted"
    assert result.optimization_details["trials"]
    assert result.optimized_performance.quality_score > result.measured_baseline.quality_score


async def test_several_and_a_cap():
    result = await optimize("labeled_few_shot", "copro", "miprov2", constraints={"max_lm_calls": 130})
    assert result.status == "budget_exhausted"
    assert result.spend.calls <= 130
    assert result.optimized_performance.quality_score > result.measured_baseline.quality_score


def test_an_algorithm_named_twice_is_refused():
    with pytest.raises(ConfigurationError, match="miprov2 more than once"):
        asyncio.run(optimize("miprov2", "copro", "miprov2"))


async def test_an_optimized_program_is_a_start():
    """Its demonstrations and instructions are the first candidate, and teach."""
    first = await optimize("bootstrap_random_search")
    start = first.program.deepcopy()
    assert start.predict.demos
    for name in ("miprov2", "bootstrap_random_search", "labeled_few_shot"):
        start._compiled = True
        again = await optimize(name, program=start)
        assert again.measured_baseline.quality_score == first.optimized_performance.quality_score
        trials = again.optimization_details["trials"]
        assert trials[0]["score"] >= first.optimization_details["trials"][-1]["best"] - 1e-9
        assert again.optimized_performance.quality_score >= first.optimized_performance.quality_score


@pytest.mark.parametrize("name", ["miprov2", "bootstrap_random_search", "labeled_few_shot"])
@pytest.mark.parametrize(
    ("freeze", "kept"),
    [
        (["describe"], [("describe", "instructions"), ("describe", "demos")]),
        (["name.demos"], [("name", "demos")]),
        (["instructions"], [("describe", "instructions"), ("name", "instructions")]),
        (
            ["describe", "name"],
            [(one, part) for one in ("describe", "name") for part in ("instructions", "demos")],
        ),
    ],
    ids=str,
)
async def test_what_is_frozen_stays(name, freeze, kept):
    given = TwoSteps()
    given.describe.demos = [dspy.Example(thing="leaf", kind="plant")]
    given.name.signature = given.name.signature.with_instructions("Name it.")
    seen = []
    result = await optimize(name, program=given, freeze=freeze, events=seen)
    own, found = dict(given.named_predictors()), dict(result.program.named_predictors())
    for predictor, part in kept:
        if part == "demos":
            assert found[predictor].demos == own[predictor].demos
        else:
            assert found[predictor].signature.instructions == own[predictor].signature.instructions
    proposed = [event for event in seen if event.kind == "candidate_proposed"]
    if name == "miprov2":
        frozen = {predictor for predictor, part in kept if part == "instructions"}
        assert all(len(proposed[0].instructions[predictor]) == 1 for predictor in frozen)


def test_what_cannot_be_frozen_is_said():
    with pytest.raises(ConfigurationError, match="predictors are predict"):
        asyncio.run(optimize("miprov2", freeze=["nothing"]))
    with pytest.raises(ConfigurationError, match="copro can't leave parts of a program unchanged"):
        asyncio.run(optimize("copro", freeze=["demos"]))


async def test_one_optimizer_leaves_the_next_its_tolerance():
    """copro ends at the first failed call, which DSPy would score 0; what follows it tolerates some again."""
    lm, failures = offline_lm(num_retries=0), []

    def follow(event):
        if event.kind == "step_finished" or failures:
            return
        if event.kind == "trial_finished" and event.trial == 7:  # copro's last; labeled_few_shot begins
            failures.append(1)
            lm.engine.error_rate = 0.04

    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=lm, enable_tracking=False, on_event=follow, max_concurrency=2
    )
    result = await pipeline.run_optimization(
        {
            "target": {"id": "x"},
            "algorithms": ["copro", "labeled_few_shot"],
            "optimizer_settings": {"copro": SMALL["copro"]},
            "constraints": {"max_error_rate": 0.5},
        },
        training_data=colours(60),
    )
    assert failures
    assert result.status == "completed"


async def test_what_gepa_evaluates_of_the_training_split_is_no_trial():
    """Its minibatches are as large as the validation split here."""
    events = []
    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=offline_lm(), enable_tracking=False, on_event=events.append
    )
    rows = colours(60).rows()
    result = await pipeline.run_optimization(
        {
            "target": {"id": "x"},
            "algorithms": ["gepa"],
            "optimizer_settings": {
                "gepa": {"auto": None, "max_metric_calls": 80, "reflection_minibatch_size": 6}
            },
        },
        training_data=rows[:30],
        validation_data=rows[30:36],
        test_data=rows[36:],
    )
    assert len(result.optimization_details["trials"]) <= 3


async def test_a_tie_is_not_won_by_rounding():
    """A metric that knows no candidate: 2 of 3 examples succeed, whatever the program says."""

    def metric(example, prediction, trace=None):
        return int(example.thing.split()[-1]) % 3 != 0

    for seed in range(3):
        pipeline = OptimizationPipeline(
            AsyncClassifier(), metric, lm=offline_lm(), enable_tracking=False, seed=seed
        )
        result = await pipeline.run_optimization(
            {"target": {"id": "x"}, "algorithms": ["copro"], "optimizer_settings": {"copro": SMALL["copro"]}},
            training_data=colours(60),
        )
        assert program_state(result.program) == program_state(AsyncClassifier())
