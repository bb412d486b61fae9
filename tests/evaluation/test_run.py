import asyncio
import threading
import time

import dspy
import numpy as np
import pytest

from agentcore.data import Dataset
from agentcore.errors import ConfigurationError, DataError, EvaluationError, LMUnavailableError, MetricError
from agentcore.evaluation import EvaluationLimits, ScoredMetric, evaluate, exact_match, resolve_metric
from agentcore.lm import offline_lm
from tests.support import AsyncClassifier, Classifier, colours

DATA = colours(30)
EXACT = ScoredMetric(exact_match)


def zero_shot(program_class=AsyncClassifier):
    return program_class()


@pytest.mark.parametrize("program_class", [Classifier, AsyncClassifier])
async def test_records_hold_what_happened(program_class):
    lm = offline_lm()
    report = await evaluate(program_class(), DATA, EXACT, lm=lm)
    assert [record.index for record in report.records] == list(range(30))
    assert [record.digest for record in report.records] == [item.digest for item in DATA]
    record = report.records[0]
    assert set(record.prediction) == {"colour"}
    assert record.score in (0.0, 1.0)
    assert record.latency_ms > 0
    assert record.input_tokens > 50
    assert record.lm_calls == 1
    assert record.cost_usd == 0.0
    assert lm.engine.calls == 30
    assert report.metrics.success_rate == report.metrics.quality_score == pytest.approx(report.mean_score)


async def test_programs_without_aforward_run_in_threads_beside_the_loop():
    """Sixteen at once: one after the other they would take 3 s."""
    stalls = []

    async def watch():
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            stalls.append(time.perf_counter() - before)

    watcher = asyncio.create_task(watch())
    started = time.perf_counter()
    await evaluate(Classifier(), DATA, EXACT, lm=offline_lm(latency=0.1))
    elapsed = time.perf_counter() - started
    watcher.cancel()
    assert elapsed < 2.0
    assert max(stalls) < 0.5


async def test_concurrency_is_bounded_and_used():
    running, most = 0, 0

    class Counting(AsyncClassifier):
        async def aforward(self, thing):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            return dspy.Prediction(colour="red")

    await evaluate(Counting(), DATA, EXACT, lm=offline_lm(), limits=EvaluationLimits(max_concurrency=4))
    assert most == 4


async def test_two_evaluations_share_a_gate():
    running, most = 0, 0

    class Counting(AsyncClassifier):
        async def aforward(self, thing):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.005)
            running -= 1
            return dspy.Prediction(colour="red")

    limits = EvaluationLimits(max_concurrency=8, gate=asyncio.Semaphore(5))
    await asyncio.gather(
        *(evaluate(Counting(), DATA, EXACT, lm=offline_lm(), limits=limits) for _ in range(2))
    )
    assert most == 5


class Failing(AsyncClassifier):
    """Fails on the examples whose number it is told."""

    def __init__(self, numbers, error):
        super().__init__()
        self.numbers, self.error = numbers, error

    async def aforward(self, thing):
        if int(thing.split()[-1]) in self.numbers:
            raise self.error
        return dspy.Prediction(colour="red")


async def test_a_programs_failure_scores_0_and_is_data():
    report = await evaluate(Failing({2, 5}, ValueError("broken reply")), DATA, EXACT, lm=offline_lm())
    assert [record.index for record in report.failures] == [2, 5]
    record = report.records[2]
    assert (record.failed, record.score, record.prediction) == ("program", 0.0, None)
    assert record.error == "ValueError: broken reply"
    assert len([score for score in report.scores if score is not None]) == 30


async def test_the_models_failure_has_no_score():
    error = dspy.LMServerError("down")
    report = await evaluate(Failing({2, 5}, error), DATA, EXACT, lm=offline_lm())
    assert report.scores[2] is None
    assert report.records[2].failed == "lm"
    right = sum(item.values["colour"] == "red" for index, item in enumerate(DATA) if index not in (2, 5))
    assert report.mean_score == pytest.approx(right / 28)


async def test_too_many_failures_raise_and_name_the_first():
    with pytest.raises(
        EvaluationError, match=r"4 of 30 examples failed, more than the 3 allowed.*ValueError: bad"
    ):
        await evaluate(Failing(set(range(30)), ValueError("bad")), DATA, EXACT, lm=offline_lm())


async def test_an_outage_is_an_error_and_ends_the_evaluation_early():
    lm = offline_lm(error_rate=1.0, num_retries=0)
    with pytest.raises(LMUnavailableError, match="the language model failed"):
        await evaluate(AsyncClassifier(), DATA, EXACT, lm=lm, limits=EvaluationLimits(max_concurrency=2))
    assert lm.engine.calls <= 6


async def test_candidates_may_fail_but_not_their_model():
    limits = EvaluationLimits(only_lm_failures=True)
    report = await evaluate(
        Failing(set(range(30)), ValueError("bad")), DATA, EXACT, lm=offline_lm(), limits=limits
    )
    assert report.mean_score == 0.0
    with pytest.raises(LMUnavailableError):
        await evaluate(
            Failing(set(range(30)), dspy.LMTimeoutError("slow")), DATA, EXACT, lm=offline_lm(), limits=limits
        )


async def test_no_examples():
    with pytest.raises(DataError, match="no examples"):
        await evaluate(AsyncClassifier(), [], EXACT, lm=offline_lm())


async def test_cancelling_stops_all_calls():
    lm = offline_lm(latency=0.05)
    task = asyncio.create_task(
        evaluate(AsyncClassifier(), colours(90), EXACT, lm=lm, limits=EvaluationLimits(max_concurrency=4))
    )
    while lm.engine.calls < 8:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    calls = lm.engine.calls
    await asyncio.sleep(0.15)
    assert lm.engine.calls == calls < 90


async def test_cached_answers_have_no_latency_and_no_cost(tmp_path):
    from dspy.clients import Cache

    old = dspy.cache
    dspy.cache = Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=str(tmp_path))
    try:
        lm = offline_lm(cache=True)
        first = await evaluate(AsyncClassifier(), DATA, EXACT, lm=lm)
        second = await evaluate(AsyncClassifier(), DATA, EXACT, lm=lm)
    finally:
        dspy.cache = old
    assert first.metrics.avg_latency_ms > 0
    assert second.metrics.avg_latency_ms is None
    assert {record.cache_hits for record in second.records} == {1}
    assert first.scores == second.scores


def result_of(metric, prediction="red"):
    example = dspy.Example(thing="a", colour="red").with_inputs("thing")
    return asyncio.run(ScoredMetric(metric).score(example, dspy.Prediction(colour=prediction)))


async def asynchronous(example, prediction):
    await asyncio.sleep(0)
    return example.colour == prediction.colour


class AsynchronousObject:
    async def __call__(self, example, prediction, trace=None):
        return 0.5


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        (exact_match, 1.0),
        (asynchronous, 1.0),
        (AsynchronousObject(), 0.5),
        (lambda example, prediction: 0.25, 0.25),
        (lambda example, prediction, trace=None: np.float32(0.5), 0.5),
        (lambda example, prediction, trace: trace is None, 1.0),
        (lambda gold, pred, trace, name, predicted: True, 1.0),
        (lambda *arguments: len(arguments) == 3, 1.0),
        (lambda example, prediction: dspy.Prediction(score=0.75, feedback="why"), 0.75),
    ],
)
def test_what_metrics_may_be(metric, score):
    assert result_of(metric).value == score


def test_feedback_is_kept():
    assert result_of(lambda example, prediction: dspy.Prediction(score=1, feedback="well")).feedback == "well"


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda example, prediction: None, "returned NoneType instead of .*does it lack a return"),
        (lambda example, prediction: "yes", "returned str instead of"),
        (lambda example, prediction: float("nan"), "returned NaN"),
        (lambda example, prediction: 87.0, "returned 87: scale it to 0–1"),
        (lambda example, prediction: -0.1, "returned -0.1"),
        (lambda example, prediction: 1 / 0, "raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_metrics_may_not_return(metric, message):
    with pytest.raises(MetricError, match=message):
        result_of(metric)


def test_a_metrics_thread_is_not_the_loops():
    seen = []
    result_of(lambda example, prediction: bool(seen.append(threading.current_thread())) or True)
    assert seen[0] is not threading.main_thread()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("f1", "use package.module:name or one of exact_match"),
        ("nowhere:f", "no module named 'nowhere'"),
        ("math:nothing", "math has no 'nothing'"),
        ("math:pi", "metric must be a function, got float"),
        (lambda example: True, r"must take \(example, prediction\), but takes 1 argument$"),
    ],
)
def test_unknown_metrics(metric, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve_metric(metric)


def test_exact_match_folds_text_and_compares_numbers():
    example = dspy.Example(q=1, text="New  York", number=0.1 + 0.2, flag=True).with_inputs("q")
    assert exact_match(example, dspy.Prediction(text="new york", number=0.3, flag=True))
    assert not exact_match(example, dspy.Prediction(text="new york", number=0.31, flag=True))
    with pytest.raises(MetricError, match=r"compares the label 'flag', but .* has only text, number"):
        exact_match(example, dspy.Prediction(text="new york", number=0.3))
    assert Dataset.from_rows([{"q": 1, "answer": "x"}])[0].labels == {"answer": "x"}


def test_exact_match_of_a_numeric_label_and_an_answer_in_text():
    """A CSV column of numbers holds numbers, where the program's `answer` is text."""
    example = dspy.Example(q=1, answer=4).with_inputs("q")
    assert exact_match(example, dspy.Prediction(answer="4"))
    assert exact_match(example, dspy.Prediction(answer=" 4.0 "))
    assert not exact_match(example, dspy.Prediction(answer="5"))
    assert not exact_match(example, dspy.Prediction(answer="four"))
    assert not exact_match(example, dspy.Prediction(answer=None))


def test_rounding_beyond_the_ends_is_no_error():
    assert result_of(lambda example, prediction: 1 + 1e-15).value == 1.0
    assert result_of(lambda example, prediction: -1e-17).value == 0.0


def test_optional_parameters_keep_their_defaults():
    assert result_of(lambda example, prediction, strict=True: strict is True).value == 1.0
    assert result_of(lambda example, prediction, trace="default": trace is None).value == 1.0


async def test_the_tolerated_share_is_not_lost_to_rounding():
    """0.29 · 100 is 28.999999999999996."""
    program = Failing(set(range(29)), ValueError("bad"))
    report = await evaluate(
        program, colours(100), EXACT, lm=offline_lm(), limits=EvaluationLimits(max_error_rate=0.29)
    )
    assert len(report.failures) == 29
