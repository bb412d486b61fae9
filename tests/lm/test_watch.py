"""Caps have no way round: every model that a program calls is counted, or refused by name."""

import contextvars
import threading

import dspy
import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.errors import ConfigurationError
from agentcore.lm import Amount, Control, Guard, Ledger, Meter, SearchStopped, offline_lm, outside_runs
from tests.support import AsyncClassifier, Classifier, Colour, colours, request, watched

ASKED = "question -> answer"


def under(calls):
    meter = Meter()
    return Control(Ledger(meter, Amount(calls=calls)), 4, {}), meter


def ask(count, **context):
    with dspy.context(**context):
        for index in range(count):
            dspy.Predict(ASKED)(question=str(index))


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"disable_history": True},
        {"callbacks": []},
        {"caller_modules": []},
        {"disable_history": True, "callbacks": []},
    ],
    ids=str,
)
def test_a_model_made_inside_is_counted_whatever_the_program_turns_off(context):
    control, meter = under(5)
    lm, guard = offline_lm(), Guard()
    with watched(control, guard), meter.stage("trials"), pytest.raises(SearchStopped):
        ask(20, lm=lm, **context)
    assert lm.engine.calls == meter.total.calls == 5
    assert guard.stopped.reason == "call_limit"


async def test_so_is_one_that_is_called_asynchronously():
    control, meter = under(5)
    lm, guard = offline_lm(), Guard()

    async def ask_all():
        for index in range(20):
            await dspy.Predict(ASKED).acall(question=str(index))

    inside = dspy.context(lm=lm, disable_history=True)
    with watched(control, guard), meter.stage("trials"), inside, pytest.raises(SearchStopped):
        await ask_all()
    assert lm.engine.calls == meter.total.calls == 5


def test_its_retries_are_counted_and_made_under_the_limits():
    control, meter = under(None)
    lm = offline_lm(error_rate=0.5, seed=1, num_retries=8)
    with watched(control, Guard()), meter.stage("trials"):
        ask(5, lm=lm)
    assert meter.total.calls == 5
    assert lm.engine.calls > 5
    assert lm.num_retries == 8


class Inner(dspy.Module):
    """Makes a model of its own in `forward`."""

    def __init__(self, lm, **context):
        super().__init__()
        self.predict = dspy.Predict(Colour)
        self.made, self.context = lm, context

    def deepcopy(self):
        copied = super().deepcopy()
        copied.made, copied.context = self.made, self.context  # one engine, to count
        return copied

    def forward(self, thing):
        with dspy.context(lm=self.made, **self.context):
            dspy.Predict("thing -> note")(thing=thing)
        return self.predict(thing=thing)


async def test_a_run_keeps_its_cap_over_models_of_the_programs_own():
    inner, lm = offline_lm(), offline_lm()
    pipeline = OptimizationPipeline(Inner(inner, disable_history=True), lm=lm, enable_tracking=False)
    result = await pipeline.run_optimization(
        request(constraints={"max_lm_calls": 100}), training_data=colours()
    )
    assert inner.engine.calls > 20
    assert inner.engine.calls + lm.engine.calls <= result.spend.calls <= 100


async def test_a_model_without_a_price_is_refused_by_name_under_a_cost_cap():
    inner = offline_lm()
    inner.model = "own/secret-model"
    pipeline = OptimizationPipeline(Inner(inner), lm=offline_lm(), enable_tracking=False)
    with pytest.raises(ConfigurationError, match="the price of own/secret-model is unknown"):
        await pipeline.run_optimization(request(constraints={"max_cost_usd": 1.0}), training_data=colours())
    assert inner.engine.calls == 0


async def test_nor_may_a_metric_call_one():
    judge = offline_lm()
    judge.model = "own/judge"

    def metric(example, prediction):
        with dspy.context(lm=judge):
            dspy.Predict("colour -> verdict")(colour=prediction.colour)
        return True

    pipeline = OptimizationPipeline(AsyncClassifier(), metric, lm=offline_lm(), enable_tracking=False)
    with pytest.raises(ConfigurationError, match="the price of own/judge is unknown"):
        await pipeline.run_optimization(request(constraints={"max_cost_usd": 1.0}), training_data=colours())
    assert judge.engine.calls == 0


class Threads(Classifier):
    """Asks in a thread of its own, with or without the context of the run."""

    def __init__(self, lm, *, carried):
        super().__init__()
        self.made, self.carried = lm, carried

    def deepcopy(self):
        copied = super().deepcopy()
        copied.made = self.made
        return copied

    def forward(self, thing):
        def work():
            try:
                with dspy.context(lm=self.made):
                    dspy.Predict("thing -> note")(thing=thing)
            except (ConfigurationError, SearchStopped):
                pass  # what the program does with it doesn't matter

        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(work) if self.carried else work())
        thread.start()
        thread.join()
        return self.predict(thing=thing)


async def test_a_thread_without_the_runs_context_fails_a_capped_run():
    lm = offline_lm()
    pipeline = OptimizationPipeline(Threads(lm, carried=False), lm=lm, enable_tracking=False)
    with pytest.raises(
        ConfigurationError, match=r"was called in a thread without the run's context.*copy_context"
    ):
        await pipeline.run_optimization(request(constraints={"max_lm_calls": 100}), training_data=colours())
    assert lm.engine.calls <= 100


async def test_a_copy_of_the_model_in_such_a_thread_fails_it_too():
    lm = offline_lm()
    program = Threads(lm.copy(temperature=0.5), carried=False)
    pipeline = OptimizationPipeline(program, lm=lm, enable_tracking=False)
    with pytest.raises(ConfigurationError, match="was called in a thread without the run's context"):
        await pipeline.run_optimization(request(constraints={"max_lm_calls": 100}), training_data=colours())
    assert lm.engine.calls <= 100


async def test_a_thread_with_it_is_counted():
    lm = offline_lm()
    pipeline = OptimizationPipeline(Threads(lm, carried=True), lm=lm, enable_tracking=False)
    result = await pipeline.run_optimization(
        request(constraints={"max_lm_calls": 100}), training_data=colours()
    )
    assert lm.engine.calls <= result.spend.calls <= 100


async def test_without_caps_such_calls_are_told():
    lm = offline_lm()
    pipeline = OptimizationPipeline(Threads(lm, carried=False), lm=lm, enable_tracking=False)
    result = await pipeline.run_optimization(request(), training_data=colours())
    escaped = lm.engine.calls - result.spend.calls
    assert escaped > 20
    assert any(f"{escaped} LM calls were made in threads without" in text for text in result.warnings)


def test_code_that_says_it_is_outside_is_left_alone():
    from agentcore.lm import of_run

    control, meter = under(1)
    lm = offline_lm()
    with of_run(control, lm), outside_runs(), dspy.context(lm=lm):
        dspy.Predict(ASKED)(question="x")
    assert (lm.engine.calls, meter.total.calls) == (1, 0)
    control.check()
