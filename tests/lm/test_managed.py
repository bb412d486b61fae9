"""Any `dspy.BaseLM` under a run's control, by delegation."""

import asyncio
import copy
import functools
import time
from types import SimpleNamespace as Box

import cloudpickle
import dspy
import pytest
from dspy.utils import DummyLM
from dspy.utils.callback import BaseCallback

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.lm import Amount, Control, Guard, Ledger, ManagedLM, Meter, manage, offline_lm
from tests.support import AsyncClassifier, Classifier, colours, request, watched

legacy = pytest.mark.filterwarnings(
    "ignore:Implementing custom LMs through BaseLM.forward:DeprecationWarning"
)
ANSWER = "[[ ## answer ## ]]\nx\n\n[[ ## completed ## ]]"


def under(caps=None, concurrency=8):
    meter = Meter()
    return Control(Ledger(meter, caps or Amount()), concurrency, meter.prices), meter


def completion():
    message = Box(content=ANSWER, tool_calls=None)
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return Box(choices=[Box(message=message, finish_reason="stop")], usage=usage, model="own/x")


class Plain(dspy.BaseLM):
    """A class of a user's own, with state of its own and no `__copy__`."""

    def __init__(self):
        super().__init__("own/x", temperature=0.3, max_tokens=100)
        self.session = object()
        self.asked = []

    def forward(self, prompt=None, messages=None, **kwargs):
        self.asked.append(("forward", kwargs))
        return completion()


class Both(Plain):
    async def aforward(self, prompt=None, messages=None, **kwargs):
        self.asked.append(("aforward", kwargs))
        await asyncio.sleep(0)
        return completion()


class Router(dspy.LM):
    """Overrides the synchronous half of DSPy's own class alone: its asynchronous half would go past it."""

    def __init__(self):
        super().__init__("openai/never-asked", api_key="x", cache=False)
        self.asked = []

    def forward(self, prompt=None, messages=None, **kwargs):
        self.asked.append(("forward", kwargs))
        return completion()


class Logging(Plain):
    """Overrides the call itself, with a signature of its own."""

    def __call__(self, prompt=None, messages=None, **kwargs):
        self.asked.append(("call", kwargs))
        return super().__call__(prompt, messages=messages, **kwargs)


def hosted():
    return dspy.LM("openai/gpt-4o-mini", num_retries=2, api_key="x")


program = dspy.Predict("question -> answer")


async def ask(lm, how, **config):
    with dspy.context(lm=lm):
        if how == "task":
            return (await program.acall(question="q", config=config)).answer
        return (await asyncio.to_thread(program, question="q", config=config)).answer


@legacy
@pytest.mark.parametrize("how", ["task", "thread"])
@pytest.mark.parametrize("kind", [Plain, Both, Router, Logging])
async def test_any_class_of_a_users_own_answers_both_ways(kind, how):
    control, meter = under(Amount(calls=10))
    given = kind()
    lm = manage(control, given)
    with meter.stage("trials"):
        assert await ask(lm, how, temperature=0.7) == "x"
    expected = "aforward" if (kind is Both and how == "task") else "forward"
    assert given.asked[-1][0] == expected
    assert given.asked[-1][1]["temperature"] == 0.7
    assert meter.total.calls == 1
    assert (meter.total.input_tokens, meter.total.output_tokens) == (3, 2)
    assert control.limits[str(given.model)].in_flight == 0


@pytest.mark.parametrize("how", ["task", "thread"])
async def test_dspys_own_dummy_answers_both_ways(how):
    control, meter = under()
    lm = manage(control, DummyLM([{"answer": "first"}, {"answer": "second"}]))
    with meter.stage("trials"):
        assert [await ask(lm, how), await ask(lm, how)] == ["first", "second"]
    assert meter.total.calls == 2


@legacy
@pytest.mark.parametrize("kind", [Plain, Both, Router, offline_lm])
def test_it_stands_for_the_model_in_all_that_is_asked_of_it(kind):
    control, _ = under()
    given = kind()
    lm = manage(control, given)
    assert isinstance(lm, dspy.BaseLM)
    names = ("model", "model_type", "cache", "kwargs", "num_retries", "callbacks", "history")
    assert [getattr(lm, name) for name in names] == [getattr(given, name) for name in names]
    for name in (
        "supports_function_calling",
        "supports_reasoning",
        "supports_response_schema",
        "supported_params",
    ):
        assert getattr(lm, name) == getattr(given, name)
    assert lm.dump_state() == given.dump_state()
    assert manage(control, lm) is lm
    if kind in (Plain, Both):
        assert lm.session is given.session
    with pytest.raises(AttributeError, match="no_such_thing"):
        lm.no_such_thing  # noqa: B018
    lm.kwargs["temperature"] = 0.9
    lm.temperature_of_mine = 1
    assert not hasattr(given, "temperature_of_mine")


@legacy
@pytest.mark.parametrize("kind", [Plain, Both, Router, Logging, hosted])
def test_copies_stay_under_control_and_other_processes_get_the_plain_model(kind):
    control, _ = under()
    given = kind()
    lm = manage(control, given)
    for made in (copy.copy(lm), copy.deepcopy(lm), lm.copy(temperature=0.5)):
        assert isinstance(made, ManagedLM)
        assert made._control is control
        assert made.num_retries == given.num_retries
    assert lm.copy(temperature=0.5).kwargs["temperature"] == 0.5
    assert lm.kwargs.get("temperature") == given.kwargs.get("temperature")
    sent = cloudpickle.loads(cloudpickle.dumps(lm))
    assert type(sent) is type(given)
    assert sent.num_retries == given.num_retries
    assert type(lm.plain()) is type(given)


class Told(BaseCallback):
    def __init__(self):
        self.started, self.ended = [], []

    def on_lm_start(self, call_id, instance, inputs):
        self.started.append((call_id, type(instance).__name__))

    def on_lm_end(self, call_id, outputs, exception=None):
        self.ended.append((call_id, exception))


@legacy
@pytest.mark.parametrize("kind", [Plain, Both, Router, Logging])
async def test_callbacks_are_told_once_for_all_attempts(kind):
    control, _ = under()
    everywhere, own = Told(), Told()
    given = kind()
    given.callbacks.append(own)
    with dspy.context(callbacks=[everywhere]):
        await ask(manage(control, given), "thread")
    assert len(everywhere.started) == len(everywhere.ended) == len(own.started) == len(own.ended) == 1


@legacy
@pytest.mark.parametrize("kind", [Plain, Both, Logging])
async def test_a_call_is_reserved_once_whoever_tells_the_guard_of_it(kind):
    control, meter = under(Amount(calls=1))
    guard = Guard()
    with meter.stage("trials"), watched(control, guard):
        assert await ask(manage(control, kind()), "thread") == "x"
    assert guard.stopped is None
    assert meter.total.calls == 1


def test_histories_are_the_models_own():
    control, _ = under()
    given = offline_lm()
    lm = manage(control, given)
    with dspy.context(lm=lm):
        program(question="q")
    assert len(given.history) == len(lm.history) == 1
    assert given.history[0]["model"] == "offline/knn"


@legacy
@pytest.mark.filterwarnings("error:Passing OpenAI-style message dictionaries:DeprecationWarning")
async def test_an_adapters_messages_are_not_warned_of_and_a_users_are():
    control, _ = under()
    lm = manage(control, Both())
    assert await ask(lm, "task") == "x"
    with pytest.raises(DeprecationWarning, match="message dictionaries"):
        await lm.acall(messages=[{"role": "user", "content": "hello"}])


class Slow(Plain):
    def forward(self, prompt=None, messages=None, **kwargs):
        self.asked.append("began")
        time.sleep(0.2)
        return completion()


@legacy
async def test_of_a_synchronous_model_cancelled_calls_that_wait_are_not_made():
    control, meter = under(concurrency=1)
    lm = manage(control, Slow())
    with dspy.context(lm=lm):
        tasks = [asyncio.create_task(program.acall(question=str(number))) for number in range(5)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await ask(lm, "task") == "x"
    assert len(lm.asked) == 2
    assert meter.total.calls <= 2


def twice(function):
    @functools.wraps(function)
    def retried(*arguments, **kwargs):
        try:
            return function(*arguments, **kwargs)
        except RuntimeError:
            return function(*arguments, **kwargs)

    return retried


class Decorated(Plain):
    """Its own decorator is part of it, unlike DSPy's around the callbacks."""

    @twice
    def __call__(self, prompt=None, messages=None, **kwargs):
        self.asked.append("call")
        if len(self.asked) == 1:
            raise RuntimeError("flaky")
        return ["[[ ## answer ## ]]\nx\n\n[[ ## completed ## ]]"]


@legacy
@pytest.mark.parametrize("how", ["thread", "task"])
async def test_a_users_own_decorator_is_kept(how):
    control, _ = under()
    lm = manage(control, Decorated())
    assert await ask(lm, how) == "x"
    assert lm.asked == ["call", "call"]


@pytest.mark.parametrize("kind", [Classifier, AsyncClassifier])
async def test_an_optimization_with_dspys_dummy(kind):
    """It ended in a RecursionError."""
    lm = DummyLM({"leaf": {"colour": "green"}, "blood": {"colour": "red"}, "": {"colour": "yellow"}})
    pipeline = OptimizationPipeline(kind(), lm=lm, enable_tracking=False)
    result = await pipeline.run_optimization(
        request(algorithms=["labeled_few_shot"], optimizer_settings={}), training_data=colours()
    )
    assert result.status == "completed"
    assert result.spend.calls > 20
