"""The concurrent search: DSPy's own candidates, nothing asked twice, the allowed number in flight."""

import itertools
import random
from collections import Counter

import dspy
import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.optimizers._racing import behind
from agentcore.lm import offline_lm
from agentcore.lm.offline import AsyncOfflineEngine, OfflineEngine
from tests.support import AsyncClassifier, Classifier, TwoSteps, colours, request


class Uneven(OfflineEngine):
    """Answers come in another order each time; counts how many requests are open."""

    def __init__(self, longest=0.02):
        super().__init__()
        self.longest, self.open, self.most = longest, 0, 0

    @property
    def latency(self):
        return random.random() * self.longest

    @latency.setter
    def latency(self, value):
        pass

    def _begin(self):
        with self._lock:
            self.open += 1
            self.most = max(self.most, self.open)
        return super()._begin()

    def _finish(self, request, failing):
        with self._lock:
            self.open -= 1
        return super()._finish(request, failing)


def uneven_lm(longest=0.02):
    engine = Uneven(longest)
    return dspy.LM("offline/knn", engine=engine, async_engine=AsyncOfflineEngine(engine), cache=False)


async def search(program, settings, *, seed=0, lm=None, data=None, max_concurrency=16):
    events = []
    pipeline = OptimizationPipeline(
        program,
        lm=lm or offline_lm(),
        enable_tracking=False,
        seed=seed,
        on_event=events.append,
        max_concurrency=max_concurrency,
    )
    result = await pipeline.run_optimization(request(settings=settings), training_data=data or colours(80))
    return result, events


def of(events, kind):
    return [event for event in events if event.kind == kind]


@pytest.mark.parametrize("program", [AsyncClassifier, TwoSteps])
@pytest.mark.parametrize(
    "settings",
    [
        {"auto": "light"},
        {"auto": None, "num_candidates": 5, "num_trials": 4},
        {"auto": "light", "max_bootstrapped_demos": 0, "max_labeled_demos": 0},
        {"auto": "light", "max_labeled_demos": 0},
    ],
    ids=str,
)
async def test_candidates_are_dspys_own(program, settings, monkeypatch):
    """The same demonstrations and instructions for the same seed, whatever order the answers come in."""
    stock_sets = []
    from agentcore.dspy_optimization.optimizers import _stock

    dumped = _stock._dump_sets
    monkeypatch.setattr(_stock, "_dump_sets", lambda made: stock_sets.append(dumped(made)) or dumped(made))
    made = {}
    from agentcore.dspy_optimization.optimizers import miprov2

    make = miprov2.make_demo_set

    async def kept(task, student, plan, number):
        made[number] = await make(task, student, plan, number)
        return made[number]

    monkeypatch.setattr(miprov2, "make_demo_set", kept)
    _, stock = await search(program(), {**settings, "mode": "dspy"}, seed=3)
    _, ours = await search(program(), settings, seed=3, lm=uneven_lm(0.004))
    (proposed,), (expected,) = of(ours, "candidate_proposed"), of(stock, "candidate_proposed")
    assert proposed.instructions == expected.instructions
    assert proposed.demo_sets == expected.demo_sets
    (sets,) = stock_sets
    for index, per_set in sets.items():
        own = [[item.toDict() for item in made[number][int(index)]] for number in sorted(made)]
        assert own == [item["demos"] for item in per_set]


async def test_no_pair_is_asked_twice_and_no_call_is_wasted():
    lm = offline_lm()
    result, events = await search(AsyncClassifier(), {"auto": "light"}, lm=lm, data=colours(200))
    measured = Counter(
        (event.evaluation, event.candidate, event.record["digest"])
        for event in of(events, "example_measured")
    )
    assert set(measured.values()) == {1}
    # Every call is in the account: what was measured, and the steps that journalled their own.
    steps = [event.step for event in of(events, "step_finished") if event.step != "search"]
    warm_up = 1
    assert result.spend.calls == lm.engine.calls == warm_up + len(steps) + sum(measured.values())


async def test_stock_pays_more_for_as_good_a_winner():
    stock, concurrent = offline_lm(), offline_lm()
    theirs, _ = await search(AsyncClassifier(), {"mode": "dspy"}, lm=stock, data=colours(200))
    ours, _ = await search(AsyncClassifier(), {}, lm=concurrent, data=colours(200))
    assert concurrent.engine.calls <= 0.8 * stock.engine.calls
    assert ours.optimized_performance.quality_score >= theirs.optimized_performance.quality_score - 0.05


@pytest.mark.parametrize("program", [AsyncClassifier, Classifier, TwoSteps])
async def test_timing_changes_nothing(program):
    """Trials, winner and account are the same however the answers come in."""
    seen = []
    for _ in range(2):
        result, events = await search(program(), {"auto": "light"}, lm=uneven_lm(), data=colours(200))
        trials = [
            (item.trial, item.score, item.examples, item.candidate, item.stopped)
            for item in of(events, "trial_finished")
        ]
        seen.append((trials, result.spend.calls, result.improvement_percentage))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("limit", [1, 4, 24])
async def test_the_limit_is_kept_and_used(limit):
    lm = uneven_lm(0.01 if limit > 1 else 0.001)
    await search(AsyncClassifier(), {"auto": "light"}, lm=lm, data=colours(120), max_concurrency=limit)
    assert lm.engine.most == limit


async def test_steps_overlap():
    """The program as given is scored, and demonstrations are made, while the data set is summarized."""
    _, events = await search(
        AsyncClassifier(), {"auto": "light"}, lm=offline_lm(latency=0.02), data=colours(200)
    )
    names = [event.step for event in of(events, "step_finished")]
    order = [event.kind if event.kind == "trial_finished" else getattr(event, "step", "") for event in events]
    assert order.index("trial_finished") < order.index("summary")
    assert min(order.index(name) for name in names if name.startswith("demos")) < order.index("view-1")


async def test_racing_stops_what_cannot_win():
    data = colours(200)
    raced, events = await search(
        AsyncClassifier(),
        {"minibatch": False, "auto": None, "num_candidates": 6, "num_trials": 12},
        data=data,
        max_concurrency=8,
    )
    whole, _ = await search(
        AsyncClassifier(),
        {"minibatch": False, "auto": None, "num_candidates": 6, "num_trials": 12, "racing": False},
        data=data,
        max_concurrency=8,
    )
    told = raced.optimization_details["racing"]
    stopped = {event.candidate: event for event in of(events, "trial_finished") if event.stopped}
    assert told["stopped"] == len(stopped) > 0
    size = max(event.examples for event in of(events, "trial_finished"))
    assert told["examples_saved"] == sum(size - event.examples for event in stopped.values())
    assert not any(event.full for event in stopped.values())
    assert whole.optimization_details["racing"]["stopped"] == 0
    assert raced.spend.calls < whole.spend.calls
    assert raced.optimized_performance.quality_score == pytest.approx(
        whole.optimized_performance.quality_score, abs=0.05
    )


def pairs_of_equals(events):
    """How many pairs of candidates that were scored in full had answered the minibatch alike."""
    scores = {}
    for event in of(events, "example_measured"):
        if event.evaluation == "search":
            scores.setdefault(event.candidate, {})[event.record["digest"]] = event.record["score"]
    trials = of(events, "trial_finished")
    minibatch = list(scores[trials[0].candidate])[:35]
    full = {event.candidate for event in trials if event.full}
    answers = [tuple(scores[name][digest] for digest in minibatch) for name in full]
    return sum(one == other for one, other in itertools.combinations(answers, 2))


async def test_of_candidates_that_answer_alike_one_is_scored_in_full():
    data = colours(100)
    _, raced = await search(TwoSteps(), {"auto": "light"}, data=data)
    _, whole = await search(TwoSteps(), {"auto": "light", "racing": False}, data=data)
    assert pairs_of_equals(raced) == 0
    assert pairs_of_equals(whole) > 0


def test_behind_is_the_sign_test_for_equal_differences():
    assert behind([]) == behind([0, 0]) == 1.0
    assert behind([-1] * 5) == pytest.approx(1 / 32)
    assert behind([-1, -1, -1, 1]) == pytest.approx(5 / 16)
    assert behind([1, 1]) == 1.0


def test_behind_is_the_exact_permutation_test_for_others():
    # Of the 8 sign patterns only the observed sum, -0.9, is as low.
    assert behind([-0.5, -0.3, -0.1]) == pytest.approx(1 / 8)
    assert behind([0.5, 0.3, 0.1]) == 1.0
    # -0.2 - 0.3 + 0.1: -0.4 and -0.6 are as low.
    assert behind([-0.2, -0.3, 0.1]) == pytest.approx(2 / 8)


@pytest.mark.parametrize("size", [8, 20, 40])
def test_an_equal_candidate_is_stopped_no_oftener_than_the_level_says(size):
    rng = random.Random(size)
    level, times = 0.1, 2000
    stopped = sum(
        behind([rng.randint(0, 1) - rng.randint(0, 1) for _ in range(size)]) < level for _ in range(times)
    )
    assert stopped / times < level + 3 * (level * (1 - level) / times) ** 0.5


async def test_no_more_trials_are_reported_than_were_planned():
    planned = []

    for settings in (
        {"auto": "light"},
        {"auto": "medium"},
        {"auto": None, "num_candidates": 3, "num_trials": 1},
    ):
        found = []
        pipeline = OptimizationPipeline(
            AsyncClassifier(), lm=offline_lm(), enable_tracking=False, on_progress=found.append
        )
        result = await pipeline.run_optimization(request(settings=settings), training_data=colours(300))
        planned.append((found[0].trials, len(result.optimization_details["trials"])))
    assert all(0 < reported <= most for most, reported in planned), planned
