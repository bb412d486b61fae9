"""A run's control of its models: caps, the provider's rate limit, one call for one question."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import copy
import threading
import time
import types

import dspy
import pydantic
import pytest
from dspy.lm15 import Message, RateLimitError, Response, Usage

from agentcore.errors import ConfigurationError
from agentcore.lm import (
    Amount,
    Control,
    Guard,
    Ledger,
    Meter,
    Price,
    SearchStopped,
    manage,
    manage_program,
    offline_lm,
    parse_prices,
    price_of,
    unmanaged,
)
from agentcore.lm._limit import AdaptiveLimit
from agentcore.lm._prices import max_answer_tokens, max_answers
from tests.support import watched

NO_CAPS = Amount()


def under(caps=NO_CAPS, concurrency=8, prices=None):
    meter = Meter(prices)
    return Control(Ledger(meter, caps), concurrency, meter.prices), meter


class Engine:
    """Answers "x" after `seconds`, in both ways; refuses what is over `bears` at once."""

    def __init__(self, seconds=0.0, bears=None, retry_after=None, fail=None):
        self.seconds, self.bears, self.retry_after = seconds, bears, retry_after
        self.fail = list(fail or [])
        self.calls, self.open, self.most, self.refused, self.times = 0, 0, 0, 0, []
        self.lock = threading.Lock()

    def begin(self):
        with self.lock:
            self.calls += 1
            self.times.append(time.monotonic())
            if self.fail:
                raise self.fail.pop(0)
            if self.bears is not None and self.open >= self.bears:
                self.refused += 1
                raise RateLimitError("slow down", status=429, retry_after=self.retry_after)
            self.open += 1
            self.most = max(self.most, self.open)

    def end(self, request):
        with self.lock:
            self.open -= 1
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant("[[ ## answer ## ]]\nx"),
            finish_reason="stop",
            usage=Usage(input_tokens=100, output_tokens=10),
        )

    def complete(self, request):
        self.begin()
        time.sleep(self.seconds)
        return self.end(request)

    def __deepcopy__(self, memo):
        return self


class AsyncEngine:
    def __init__(self, engine):
        self.engine = engine

    async def complete(self, request):
        self.engine.begin()
        await asyncio.sleep(self.engine.seconds)
        return self.engine.end(request)

    def __deepcopy__(self, memo):
        return self


def lm_of(engine, **settings):
    values = {"cache": False, "max_tokens": 50, **settings}
    return dspy.LM("own/model", engine=engine, async_engine=AsyncEngine(engine), **values)


async def ask_all(count, question="{}", *, threads=False):
    program = dspy.Predict("question -> answer")
    questions = [question.format(number) for number in range(count)]
    if not threads:
        return await asyncio.gather(*(program.acall(question=item) for item in questions))

    def run():
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            contexts = [contextvars.copy_context() for _ in questions]
            asked = [
                pool.submit(context.run, lambda item=item: program(question=item))
                for context, item in zip(contexts, questions, strict=True)
            ]
            return [future.result() for future in asked]

    return await asyncio.to_thread(run)


both_ways = pytest.mark.parametrize("threads", [False, True], ids=["tasks", "threads"])


@both_ways
async def test_a_refused_rate_lowers_the_limit_until_the_provider_bears_it(threads):
    engine = Engine(seconds=0.02, bears=3)
    control, meter = under(concurrency=16)
    lm = manage(control, lm_of(engine))
    with meter.stage("trials"), dspy.context(lm=lm):
        answers = await ask_all(40, threads=threads)
    assert len(answers) == 40
    assert engine.most <= 3
    assert meter.total.calls == 40
    assert control.limits["own/model"].limit < 8
    assert 0 < engine.refused < 40


@both_ways
async def test_retry_after_is_honoured_by_all(threads):
    error = RateLimitError("slow down", status=429, retry_after=0.4)
    engine = Engine(fail=[error])
    control, _ = under()
    with dspy.context(lm=manage(control, lm_of(engine))):
        await ask_all(1, threads=threads)
        first, second = engine.times
        assert 0.4 <= second - first < 2
        engine.fail = [RateLimitError("slow down", status=429, retry_after=0.4)]
        began = len(engine.times)
        await ask_all(1, threads=threads)
        await ask_all(3, threads=threads)
    assert engine.times[began + 2] - engine.times[began] >= 0.4


def test_additive_increase_and_one_decrease_for_one_burst():
    limit = AdaptiveLimit(16)
    began = time.monotonic()
    for _ in range(5):
        limit.refused(began, None)
    assert limit.limit == 8
    limit.refused(time.monotonic(), None)
    assert limit.limit == 4
    for _ in range(4):  # one round of answers
        limit.enter().result(timeout=1)
        limit.leave(answered=True)
    assert 4.9 < limit.limit < 5.1
    for _ in range(1000):
        limit.enter().result(timeout=1)
        limit.leave(answered=True)
    assert limit.limit == 16
    for _ in range(20):
        limit.refused(time.monotonic(), None)
    assert limit.limit == 1


async def test_whoever_is_cancelled_leaves_its_place():
    engine = Engine(seconds=0.05)
    control, _ = under(concurrency=2)
    with dspy.context(lm=manage(control, lm_of(engine))):
        waiting = asyncio.ensure_future(ask_all(10))
        while engine.open < 2:
            await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(ask_all(4), 10)
    assert control.limits["own/model"].in_flight == 0


@both_ways
async def test_identical_calls_at_once_are_one(threads, tmp_path):
    from dspy.clients import Cache

    old, engine = dspy.cache, Engine(seconds=0.05)
    dspy.cache = Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=str(tmp_path))
    control, meter = under()
    try:
        with meter.stage("trials"), dspy.context(lm=manage(control, lm_of(engine, cache=True))):
            answers = await ask_all(8, "the same", threads=threads)
    finally:
        dspy.cache = old
    assert [item.answer for item in answers] == ["x"] * 8
    assert engine.calls == 1
    assert (meter.total.calls, meter.total.cache_hits) == (1, 7)


async def test_where_the_first_of_identical_calls_fails_the_next_asks(tmp_path):
    from dspy.clients import Cache

    old, engine = dspy.cache, Engine(seconds=0.02, fail=[RateLimitError("no", status=429)])
    dspy.cache = Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=str(tmp_path))
    control, _ = under()
    program = dspy.Predict("question -> answer")
    try:
        with dspy.context(lm=manage(control, lm_of(engine, cache=True, num_retries=0))):
            asked = (program.acall(question="the same") for _ in range(8))
            answers = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        dspy.cache = old
    assert sum(isinstance(item, Exception) for item in answers) == 1
    assert engine.calls == 2


async def test_identical_calls_without_a_cache_are_samples_of_their_own():
    engine = Engine(seconds=0.01)
    control, _ = under()
    with dspy.context(lm=manage(control, lm_of(engine))):
        await ask_all(4, "the same")
    assert engine.calls == 4


@both_ways
@pytest.mark.parametrize(
    ("caps", "answered"),
    [(Amount(calls=7), 7), (Amount(tokens=1200), None), (Amount(usd=0.004), None)],
    ids=["calls", "tokens", "usd"],
)
async def test_no_cap_is_exceeded_by_a_single_call(caps, answered, threads):
    prices = {"own/model": Price(1.0, 10.0)}
    control, meter = under(caps, prices=prices)
    guard, engine = Guard(), Engine(seconds=0.005)
    lm = manage(control, lm_of(engine))
    stopped = pytest.raises(SearchStopped)
    with meter.stage("trials"), watched(control, guard), dspy.context(lm=lm), stopped:
        await ask_all(30, threads=threads)
    total = meter.total
    assert total.calls == engine.calls > 0
    assert answered is None or total.calls == answered
    assert total.total_tokens <= (caps.tokens or total.total_tokens)
    assert total.cost_usd <= (caps.usd or total.cost_usd)
    assert (
        guard.stopped.reason
        == {"calls": "call_limit", "tokens": "token_limit", "usd": "cost_limit"}[
            "calls" if caps.calls else "tokens" if caps.tokens else "usd"
        ]
    )


async def test_what_is_reserved_and_not_used_makes_room_again():
    """Each call reserves ten times what it takes: they wait for each other instead of stopping."""
    control, meter = under(Amount(tokens=5000))
    engine = Engine(seconds=0.005)
    with meter.stage("trials"), dspy.context(lm=manage(control, lm_of(engine, max_tokens=1000))):
        await ask_all(20)
    assert meter.total.total_tokens == 20 * 110


def test_prices_are_the_users_then_litellms_then_unknown():
    lm = dspy.LM("openai/gpt-4o-mini", api_key="x")
    assert price_of(lm, {}) == Price(pytest.approx(0.15), pytest.approx(0.6))
    assert price_of(lm, {"openai/gpt-4o-mini": Price(1, 2)}) == Price(1, 2)
    assert price_of(lm_of(Engine()), {}) is None
    assert price_of(offline_lm(), {}) == Price(0, 0)
    assert max_answer_tokens(lm) == 16384
    assert max_answer_tokens(dspy.LM("own/model", engine=Engine())) is None


def test_a_price_is_two_numbers():
    assert parse_prices({"a": (1, 2), "b": {"input": 1, "output": 2}}) == {"a": Price(1, 2), "b": Price(1, 2)}
    for wrong in (1, (1,), "12", {"input": 1}, (1, "x")):
        with pytest.raises(ConfigurationError, match="USD per million"):
            parse_prices({"a": wrong})
    with pytest.raises(ConfigurationError, match="negative"):
        parse_prices({"a": (-1, 2)})


async def test_the_users_price_is_what_is_charged():
    prices = {"own/model": Price(10.0, 100.0)}
    control, meter = under(prices=prices)
    with meter.stage("trials"), dspy.context(lm=manage(control, lm_of(Engine()))):
        await ask_all(2)
    assert meter.total.cost_usd == pytest.approx(2 * (100 * 10 + 10 * 100) / 1e6)


def test_a_cap_that_cannot_be_kept_is_said_before_anything_is_spent():
    control, _ = under(Amount(usd=1.0))
    with pytest.raises(ConfigurationError, match="price of own/model is unknown"):
        control.check_bounds(lm_of(Engine()))
    control, _ = under(Amount(tokens=100))
    with pytest.raises(ConfigurationError, match="max_tokens="):
        control.check_bounds(dspy.LM("own/model", engine=Engine()))
    control.check_bounds(lm_of(Engine()), None)


def test_a_managed_model_stands_for_the_plain_one_and_becomes_it_again():
    plain = offline_lm(num_retries=5)
    control, _ = under()
    managed = manage(control, plain)
    assert isinstance(managed, dspy.BaseLM)
    assert (managed.model, managed.kwargs, managed.num_retries) == (plain.model, plain.kwargs, 5)
    assert managed.dump_state() == plain.dump_state()
    assert manage(control, managed) is managed
    program = dspy.Predict("question -> answer")
    program.lm = plain
    manage_program(control, program)
    copied = copy.deepcopy(program)
    assert copied.lm._control is control
    unmanaged(copied)
    assert type(copied.lm) is dspy.LM
    assert copied.lm.num_retries == 5
    assert type(plain) is dspy.LM


def test_stages_within_stages_count_once():
    meter = Meter()
    with meter.stage("trials"), dspy.context(lm=offline_lm()):
        dspy.Predict("question -> answer")(question="a")
        with meter.stage("judge"):
            dspy.Predict("question -> answer")(question="b")
        dspy.Predict("question -> answer")(question="c")
    assert {name: spend.calls for name, spend in meter.by_stage().items()} == {"trials": 2, "judge": 1}
    assert meter.total.calls == 3


async def test_a_synchronous_call_in_the_event_loop_never_waits_for_it():
    """It would wait for places and answers that only the loop could give."""
    engine = Engine(seconds=0.05, fail=[RateLimitError("slow down", status=429, retry_after=0.01)])
    control, meter = under(Amount(calls=100), concurrency=4)
    program = dspy.Predict("question -> answer")

    async def both(number):
        await program.acall(question=f"a{number}")
        return program(question=f"b{number}")

    with meter.stage("trials"), dspy.context(lm=manage(control, lm_of(engine))):
        await asyncio.wait_for(asyncio.gather(*(both(number) for number in range(12))), 30)
    assert meter.total.calls == 24
    assert control.limits["own/model"].in_flight == 0


@both_ways
async def test_a_cap_holds_for_programs_with_callbacks_of_their_own(threads):
    control, meter = under(Amount(calls=5))
    guard, engine = Guard(), Engine()
    lm = manage(control, lm_of(engine))
    inside = dspy.context(lm=lm), meter.stage("trials"), watched(control, guard)
    stopped = pytest.raises(SearchStopped)
    with inside[0], inside[1], inside[2], dspy.context(callbacks=[]), stopped:
        await ask_all(12, threads=threads)
    assert engine.calls == 5
    assert guard.stopped.reason == "call_limit"


class Silent(Engine):
    """A provider that tells no usage."""

    def end(self, request):
        answer = super().end(request)
        return Response(
            id=None, model=request.model, message=answer.message, finish_reason="stop", usage=Usage()
        )


@pytest.mark.parametrize("how", ["no usage", "no history"])
async def test_what_cannot_be_counted_counts_as_the_most_that_it_can_be(how):
    control, meter = under(Amount(tokens=3000))
    guard = Guard()
    engine = Silent() if how == "no usage" else Engine()
    off = dspy.context(disable_history=True) if how == "no history" else contextlib.nullcontext()
    lm, stopped = manage(control, lm_of(engine, max_tokens=500)), pytest.raises(SearchStopped)
    with meter.stage("trials"), watched(control, guard), dspy.context(lm=lm), off, stopped:
        await ask_all(30)
    if how == "no usage":
        assert 0 < engine.calls <= 3000 / 500
    else:  # counted all the same
        assert engine.calls == meter.total.calls > 3000 / 500
        assert meter.total.total_tokens <= 3000


def test_a_schema_and_the_models_own_settings_are_in_the_most_that_a_call_can_take():
    class Large(pydantic.BaseModel):
        value: str = pydantic.Field(description="x" * 5000)

    control, _ = under(Amount(tokens=10))
    lm = lm_of(Engine())
    plain = control.bound(lm, "hello", None, {}).tokens
    assert control.bound(lm, "hello", None, {"response_format": Large}).tokens > plain + 10_000
    lm.kwargs["tools"] = "y" * 7000
    assert control.bound(lm, "hello", None, {}).tokens > plain + 7000
    lm.kwargs["api_key"] = "k" * 7000
    assert control.bound(lm, "hello", None, {}).tokens < plain + 8000
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]
    assert control.bound(lm, None, image, {}).tokens > 20_000


def test_a_provider_that_wants_to_rest_for_hours_is_asked_again_after_a_minute():
    limit = AdaptiveLimit(4)
    limit.refused(time.monotonic(), 7200.0)
    assert 55 < limit.pause() <= 60


class Legacy(dspy.BaseLM):
    """A user's own class, which retries by itself and of which DSPy caches nothing."""

    def __init__(self):
        super().__init__("own/legacy")
        self.tried = 0

    def forward(self, prompt=None, messages=None, **kwargs):
        for _ in range(self.num_retries):
            self.tried += 1
            time.sleep(0.05)
            if self.tried % 2 == 0:
                return _completion()
        raise AssertionError("all retries were used")


def _completion():
    from types import SimpleNamespace as Box

    message = Box(content="[[ ## answer ## ]]\nx", tool_calls=None)
    return Box(choices=[Box(message=message, finish_reason="stop")], usage={}, model="own/legacy")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_users_own_class_keeps_its_retries_and_is_not_held_up():
    control, _ = under(concurrency=16)
    lm = manage(control, Legacy())
    began = time.monotonic()
    with dspy.context(lm=lm):
        answers = await ask_all(8, "the same", threads=True)
    assert [item.answer for item in answers] == ["x"] * 8
    assert time.monotonic() - began < 8 * 0.1


def test_another_process_gets_the_model_without_the_control():
    import cloudpickle

    control, _ = under()
    managed = manage(control, dspy.LM("openai/gpt-4o-mini", num_retries=2))
    copied = cloudpickle.loads(cloudpickle.dumps(managed.copy()))
    assert type(copied) is dspy.LM
    assert copied.num_retries == 2
    assert copy.deepcopy(managed)._control is control


@pytest.mark.parametrize(
    ("settings", "asked", "tokens", "answers"),
    [
        ({"max_tokens": 10}, {}, 10, 1),
        ({"max_tokens": 10}, {"max_tokens": 5}, 5, 1),
        ({"max_completion_tokens": 900}, {"max_tokens": 5}, 900, 1),
        ({"max_tokens": 10, "extra_body": {"max_tokens": 700, "n": 50}}, {}, 700, 50),
        ({"max_tokens": 10, "n": 3}, {"n": 2}, 10, 2),
    ],
)
def test_the_largest_setting_bounds_a_call(settings, asked, tokens, answers):
    lm = types.SimpleNamespace(model="provider/x", kwargs=settings)
    assert max_answer_tokens(lm, asked) == tokens
    assert max_answers(lm, asked) == answers
