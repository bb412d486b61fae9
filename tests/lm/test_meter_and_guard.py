import asyncio
import concurrent.futures
import contextvars
import threading

import dspy
import pytest

from agentcore.errors import ConfigurationError
from agentcore.lm import (
    Amount,
    Control,
    Guard,
    Ledger,
    Meter,
    SearchStopped,
    collect_spend,
    is_lm_failure,
    manage,
    offline_lm,
    resolve_lm,
)
from agentcore.lm._guard import OUTAGE_AFTER
from tests.support import watched


def free() -> Control:
    """Without caps."""
    return Control(Ledger(Meter(), Amount()), 16, {})


def ask(count: int = 1) -> None:
    program = dspy.Predict("question -> answer")
    for index in range(count):
        program(question=f"{threading.get_ident()} {index}")


def in_threads(work, count: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        contexts = [contextvars.copy_context() for _ in range(count)]
        for future in [pool.submit(context.run, work) for context in contexts]:
            future.result()


def test_the_meter_counts_every_thread_and_copy_by_stage():
    meter, lm = Meter(), offline_lm()
    with meter.stage("baseline"), dspy.context(lm=lm):
        in_threads(lambda: ask(5), 4)
    with meter.stage("search"), dspy.context(lm=lm.copy(temperature=1.0)):
        ask(3)
    assert {name: spend.calls for name, spend in meter.by_stage().items()} == {"baseline": 20, "search": 3}
    assert meter.total.calls == lm.engine.calls == 23
    assert meter.total.total_tokens > 23 * 50
    assert meter.total.cost_usd == 0.0


def test_the_meter_counts_where_histories_are_off():
    off = dspy.context(disable_history=True, max_history_size=0)
    with off, collect_spend() as sink, dspy.context(lm=offline_lm()):
        ask(2)
    assert sink.spend.calls == 2


def test_a_cache_hit_costs_nothing_and_is_counted_apart(tmp_path):
    from dspy.clients import Cache

    old = dspy.cache
    dspy.cache = Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=str(tmp_path))
    try:
        with collect_spend() as sink, dspy.context(lm=offline_lm(cache=True)):
            for _ in range(3):
                dspy.Predict("question -> answer")(question="the same")
    finally:
        dspy.cache = old
    assert (sink.spend.calls, sink.spend.cache_hits) == (1, 2)
    assert sink.spend.cost_usd == 0.0


def test_an_unknown_price_is_unknown_not_zero():
    from dspy.lm15 import Message, Response, Usage

    class Engine:
        def complete(self, request):
            return Response(
                id=None,
                model=request.model,
                message=Message.assistant("[[ ## answer ## ]]\nx"),
                finish_reason="stop",
                usage=Usage(input_tokens=3, output_tokens=1),
            )

    with collect_spend() as sink, dspy.context(lm=dspy.LM("own/model", engine=Engine(), cache=False)):
        ask()
    assert sink.spend.calls == 1
    assert sink.spend.cost_usd is None


@pytest.mark.parametrize("managed", [True, False])
def test_calls_stop_at_exactly_the_cap_over_threads(managed):
    """Also those of a model that a program made for itself, and nobody could put under control."""
    meter, lm = Meter(), offline_lm()
    control = Control(Ledger(meter, Amount(calls=10)), 4, {})
    guard = Guard()
    asked = manage(control, lm) if managed else lm

    def work() -> None:
        with pytest.raises(SearchStopped):
            ask(50)

    with watched(control, guard), meter.stage("trials"), dspy.context(lm=asked):
        in_threads(work, 4)
    assert lm.engine.calls == 10
    assert guard.stopped is not None
    assert guard.stopped.reason == "call_limit"


async def test_the_guard_stops_asynchronous_calls():
    guard, lm = Guard(), offline_lm()
    guard.stop("cancelled")
    with watched(free(), guard), dspy.context(lm=lm), pytest.raises(SearchStopped, match="cancelled"):
        await dspy.Predict("question -> answer").acall(question="x")
    assert lm.engine.calls == 0


def test_listeners_hear_of_the_first_reason_once():
    guard, heard = Guard(), []
    guard.on_stop(lambda stopped: heard.append(stopped.reason))
    guard.stop("time_limit")
    guard.stop("outage")
    guard.on_stop(lambda stopped: heard.append(stopped.reason))
    assert heard == ["time_limit", "time_limit"]


def test_failures_in_a_row_are_an_outage():
    guard, lm = Guard(), offline_lm(error_rate=1.0, num_retries=0)
    program = dspy.Predict("question -> answer")
    with watched(free(), guard), dspy.context(lm=lm):
        for _ in range(OUTAGE_AFTER):
            with pytest.raises(dspy.LMServerError):
                program(question="x")
        with pytest.raises(SearchStopped):
            program(question="x")
    assert lm.engine.calls == OUTAGE_AFTER
    assert guard.stopped.reason == "outage"
    assert isinstance(guard.stopped.error, dspy.LMServerError)


def test_single_failures_are_no_outage():
    guard = Guard()
    with watched(free(), guard), dspy.context(lm=offline_lm(error_rate=0.3, num_retries=0, seed=3)):
        for index in range(40):
            try:
                dspy.Predict("question -> answer")(question=str(index))
            except dspy.LMServerError:
                continue
    assert guard.stopped is None


def test_a_refused_key_stops_at_once():
    guard = Guard()
    guard.ended(dspy.LMAuthError("no"))
    assert guard.stopped.reason == "outage"


def test_what_counts_as_the_models_failure():
    assert is_lm_failure(dspy.LMTimeoutError("x"))
    assert is_lm_failure(dspy.LMUnsupportedModelError("x"))
    assert not is_lm_failure(dspy.LMInvalidRequestError("x"))
    assert not is_lm_failure(ValueError("x"))
    assert not is_lm_failure(None)


def test_lm_by_argument_environment_and_settings(monkeypatch):
    lm = offline_lm()
    assert resolve_lm(lm) is lm
    assert resolve_lm("offline/knn").engine.calls == 0
    assert resolve_lm("openai/gpt-4o-mini").model == "openai/gpt-4o-mini"
    with dspy.context(lm=lm):
        assert resolve_lm() is lm
        monkeypatch.setenv("AGENTCORE_LM", "offline/knn")
        assert resolve_lm() is not lm


def test_no_lm_names_all_three_ways():
    with pytest.raises(ConfigurationError, match=r"lm=.*AGENTCORE_LM.*dspy\.context"):
        resolve_lm()


@pytest.mark.parametrize("name", ["gpt", "openai/", "/x", "offline/gpt", 3])
def test_wrong_lm_names(name):
    with pytest.raises(ConfigurationError):
        resolve_lm(name)


def test_concurrent_collections_do_not_mix():
    async def one(count: int) -> int:
        with collect_spend() as sink, dspy.context(lm=offline_lm(latency=0.001)):
            for index in range(count):
                await dspy.Predict("question -> answer").acall(question=str(index))
        return sink.spend.calls

    async def both() -> list[int]:
        return list(await asyncio.gather(one(3), one(7)))

    assert asyncio.run(both()) == [3, 7]
