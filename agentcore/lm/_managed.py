"""A language model under a run's control: its caps, its provider's rate limit, one call for one question."""

import asyncio
import contextlib
import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, TypeVar

import dspy
from dspy.utils.callback import with_callbacks
from dspy.utils.exceptions import is_retryable_lm_error

from agentcore.errors import ConfigurationError
from agentcore.lm._guard import current_guard
from agentcore.lm._ledger import Amount, CapReached, Ledger, Reservation
from agentcore.lm._limit import LONGEST_PAUSE, AdaptiveLimit
from agentcore.lm._meter import CallRecord, call_record
from agentcore.lm._prices import Prices, most_input_tokens, most_output_tokens, price_of

T = TypeVar("T")

_RATE_RETRIES = 6
"""Retries of a call that was refused for the rate, where the LM itself asks for fewer."""
_SLICE = 0.5
_NO_TEXT = ('"image_url"', '"input_audio"', '"file"', '"image"')
"""Parts of a message whose bytes are no bound of their tokens."""
_MOST_OF_AN_IMAGE = 20_000


def _nothing() -> None:
    pass


_OVERLOADED = (dspy.LMRateLimitError, dspy.LMTimeoutError)


class Control:
    """What all LMs of one run share.

    Args:
        ledger: the account and its caps.
        max_concurrency: calls in flight of one model, at most.
        prices: the user's own, by model.
    """

    def __init__(self, ledger: Ledger, max_concurrency: int, prices: Prices) -> None:
        self.ledger = ledger
        self.max_concurrency = max_concurrency
        self.prices = prices
        self.limits: dict[str, AdaptiveLimit] = {}
        self.flights: dict[str, Future[bool]] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Control":
        return self

    def manage(self, lm: Any) -> Any:
        """A copy of an LM under this control, of the same class to all appearances; None stays None."""
        if lm is None or isinstance(lm, _Managed):
            return lm
        managed = copy.copy(lm)
        managed.__class__ = _managed_class(type(lm))
        managed._control = self
        return managed

    def manage_program(self, program: Any) -> Any:
        """The program's own models under this control."""
        for predictor in program.predictors():
            predictor.lm = self.manage(predictor.lm)
        return program

    def check_bounds(self, *lms: Any) -> None:
        """Raise `ConfigurationError` where a cap can't be kept, since what a call can cost isn't known."""
        caps = self.ledger.caps
        for lm in lms:
            if lm is None:
                continue
            if caps.usd is not None and price_of(lm, self.prices) is None:
                raise ConfigurationError(
                    f"max_cost_usd: the price of {lm.model} is not known. Give it (prices=, or --price "
                    f"{lm.model}=INPUT,OUTPUT in USD per million tokens)"
                )
            if (caps.usd is not None or caps.tokens is not None) and most_output_tokens(lm) is None:
                name = "max_tokens" if caps.tokens is not None else "max_cost_usd"
                raise ConfigurationError(
                    f"{name}: how long an answer of {lm.model} can be is not known. Give the LM max_tokens="
                )

    def most(self, lm: Any, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> Amount:
        """What one call can cost at most."""
        caps = self.ledger.caps
        choices = int(kwargs.get("n") or lm.kwargs.get("n") or 1)
        if caps.tokens is None and caps.usd is None:
            return Amount(choices, 0, 0.0)
        merged = {name: value for name, value in {**lm.kwargs, **kwargs}.items() if "api_" not in name}
        texts = [_text_of(item) for item in (messages or [prompt])]
        texts += [_text_of(value) for value in merged.values()]
        images = sum(text.count(mark) for text in texts for mark in _NO_TEXT)
        taken = (most_input_tokens(texts) + images * _MOST_OF_AN_IMAGE) * choices
        given = (kwargs.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"))
        told = next((int(value) for value in given if value is not None), None) or most_output_tokens(lm)
        if told is None:
            raise ConfigurationError(
                f"how long an answer of {lm.model} can be is not known: {sorted(merged)}"
            )
        price = price_of(lm, self.prices)
        usd = price.of(taken, told * choices) if price is not None else 0.0
        return Amount(choices, taken + told * choices, usd)

    def reserve_unmanaged(self, lm: Any, inputs: dict[str, Any]) -> Callable[[], None]:
        """For models made inside programs and metrics, which no one could put under control.

        Raises:
            CapReached: the call could go over a cap. It can't wait until others have made room.
        """
        if isinstance(lm, _Managed):
            return _nothing
        kwargs = inputs.get("kwargs") or {}
        try:
            most = self.most(lm, inputs.get("prompt"), inputs.get("messages"), kwargs)
        except ConfigurationError:
            most = Amount(1, 0, 0.0)
        reservation = self.ledger.try_reserve(most, wait=False)
        assert isinstance(reservation, Reservation)
        return reservation.give_back

    def limit_of(self, lm: Any) -> AdaptiveLimit:
        with self._lock:
            return self.limits.setdefault(str(lm.model), AdaptiveLimit(self.max_concurrency))

    def first_to_ask(self, key: str) -> "Future[bool] | None":
        """None for the first that asks a question, else what is done once the first has its answer."""
        with self._lock:
            if key in self.flights:
                return self.flights[key]
            self.flights[key] = Future()
            return None

    def answered(self, key: str, success: bool) -> None:
        """Tell who waits whether the first had an answer."""
        with self._lock:
            future = self.flights.pop(key)
        future.set_result(success)


def unmanaged(program: Any) -> Any:
    """The program with its models as they were."""
    for predictor in program.predictors():
        if isinstance(predictor.lm, _Managed):
            predictor.lm = _plain(predictor.lm)
    return program


def _itself(value: Any) -> Any:
    return value


def _plain(managed: Any) -> Any:
    plain = copy.copy(managed)
    plain.__class__ = type(managed).plain
    del plain._control
    return plain


def _cached() -> bool:
    return bool(dspy.cache.enable_memory_cache or dspy.cache.enable_disk_cache)


def _text_of(value: Any) -> str:
    """What a provider is sent of a value, at most."""
    schema = getattr(value, "model_json_schema", None)
    if isinstance(value, type) and callable(schema):
        return 2 * json.dumps(schema(), default=str)  # strict mode adds to it
    return json.dumps(value, default=str, ensure_ascii=False)


class _Managed:
    """Mixed into an LM's class by `Control.manage`."""

    plain: type
    _control: Control

    @property
    def num_retries(self) -> int:
        """0 where DSPy would retry: retries are made here, after the limit was lowered."""
        return 0 if hasattr(self, "_engine_spec") else int(self.__dict__.get("num_retries", 0))

    @num_retries.setter
    def num_retries(self, value: int) -> None:
        self.__dict__["num_retries"] = value

    def dump_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().dump_state()  # type: ignore[misc]
        return {**state, "num_retries": self.__dict__.get("num_retries", 0)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._control.manage(copy.deepcopy(_plain(self), memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Another process gets the model without this run's control."""
        return _itself, (_plain(self),)

    def update_history(self, entry: dict[str, Any]) -> None:
        call = _asking.get(None)
        if call is not None:
            call.record = call_record(entry)
        super().update_history(entry)  # type: ignore[misc]

    @with_callbacks  # type: ignore[untyped-decorator]
    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        inner = _bare(super().__call__)  # type: ignore[misc]
        return _Call(self, prompt, messages, kwargs).run(
            lambda: inner(self, prompt, messages=messages, **kwargs)
        )

    @with_callbacks  # type: ignore[untyped-decorator]
    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        inner = _bare(super().acall)  # type: ignore[misc]
        return await _Call(self, prompt, messages, kwargs).arun(
            lambda: inner(self, prompt, messages=messages, **kwargs)
        )


def _bare(method: Any) -> Any:
    """A method without its callbacks, which are called once for all attempts."""
    function = method.__func__
    return getattr(function, "__wrapped__", function)


_classes: dict[type, type] = {}


def _managed_class(plain: type) -> type:
    if plain not in _classes:
        made = type(plain.__name__, (_Managed, plain), {"plain": plain})
        # What is saved of the LM names its class: the one that can be imported.
        made.__module__, made.__qualname__ = plain.__module__, plain.__qualname__
        _classes[plain] = made
    return _classes[plain]


_asking: ContextVar["_Call"] = ContextVar("agentcore_asking")


class _Call:
    """One call of an LM, with its retries."""

    def __init__(self, lm: Any, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> None:
        self.lm = lm
        self.control: Control = lm._control
        self.limit = self.control.limit_of(lm)
        self.most = self.control.most(lm, prompt, messages, kwargs)
        own = hasattr(lm, "_engine_spec")  # others retry by themselves, and DSPy caches nothing of theirs
        self.retries = int(lm.__dict__.get("num_retries") or 0) if own else 0
        self.attempt = 0
        self.record: CallRecord | None = None
        self.key: str | None = None
        # Only a cache gives one answer to those who ask the same.
        if own and _cached() and kwargs.get("cache", lm.cache) and getattr(lm, "_cache_responses", True):
            asked = [str(lm.model), prompt, messages, {**lm.kwargs, **kwargs}]
            self.key = json.dumps(asked, sort_keys=True, default=str)

    # The same steps twice: threads wait, tasks await.

    def run(self, ask: Callable[[], T]) -> T:
        # In an event loop's own thread nothing may be waited for that only the loop could bring about.
        waits = asyncio._get_running_loop() is None
        key = f"thread {self.key}" if waits and self.key else None  # DSPy's cache keeps the two apart
        while key is not None and (first := self.control.first_to_ask(key)) is not None:
            if first.result():
                key = None  # the cache has its answer now
        answered = False
        try:
            while True:
                reservation = self._reserved(wait=waits)
                while isinstance(reservation, Future):
                    reservation.result()
                    reservation = self._reserved()
                place = self.limit.enter(wait=waits)
                began: float | None = None
                try:
                    place.result()
                    self._sleep(self.limit.pause() if waits else 0.0)
                    began = time.monotonic()
                    with self._asked():
                        answer = ask()
                except BaseException as error:
                    waiting = self._failed(error, place, reservation, began)
                    if waiting is None:
                        raise
                    self._sleep(waiting)
                    continue
                self._answered(reservation)
                answered = True
                return answer
        finally:
            if key is not None:
                self.control.answered(key, answered)

    async def arun(self, ask: Callable[[], Any]) -> Any:
        key = None if self.key is None else f"task {self.key}"
        while key is not None and (first := self.control.first_to_ask(key)) is not None:
            await asyncio.wrap_future(_shared(first))
            if first.result():
                key = None
        answered = False
        try:
            while True:
                reservation = self._reserved()
                while isinstance(reservation, Future):
                    await asyncio.wrap_future(_shared(reservation))
                    reservation = self._reserved()
                place = self.limit.enter()
                began: float | None = None
                try:
                    await asyncio.wrap_future(_shared(place))
                    if pause := self.limit.pause():
                        await asyncio.sleep(pause)
                    self._check()
                    began = time.monotonic()
                    with self._asked():
                        answer = await ask()
                except BaseException as error:
                    waiting = self._failed(error, place, reservation, began)
                    if waiting is None:
                        raise
                    await asyncio.sleep(waiting)
                    continue
                self._answered(reservation)
                answered = True
                return answer
        finally:
            if key is not None:
                self.control.answered(key, answered)

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        token = _asking.set(self)
        try:
            yield
        finally:
            _asking.reset(token)

    def _sleep(self, seconds: float) -> None:
        """Sleep in a thread, which nothing but the guard can end."""
        until = time.monotonic() + seconds
        self._check()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE))
            self._check()

    def _reserved(self, *, wait: bool = True) -> "Reservation | Future[None]":
        try:
            return self.control.ledger.try_reserve(self.most, wait=wait)
        except CapReached as reached:
            guard = current_guard()
            if guard is None:
                raise
            guard.stop(reached.limit)
            guard.check()
            raise AssertionError("a stopped guard raises") from None

    def _check(self) -> None:
        guard = current_guard()
        if guard is not None:
            guard.check()

    def _answered(self, reservation: Reservation) -> None:
        if self.control.ledger.caps:
            self._assume_what_is_unknown()
        reservation.give_back()
        self._tell_guard(None)
        self.limit.leave(answered=True)

    def _assume_what_is_unknown(self) -> None:
        """A cap holds also where a provider tells no usage: the most that was reserved counts then."""
        record, most = self.record, self.most
        if record is None:  # a program turned the history off
            self.control.ledger.assume(most)
        elif not record.cache_hit:
            tokens = 0 if record.input_tokens or record.output_tokens else most.tokens
            usd = most.usd if record.cost_usd is None or tokens else 0.0
            self.control.ledger.assume(Amount(0, tokens, usd))

    def _tell_guard(self, error: BaseException | None) -> None:
        guard = current_guard()
        if guard is not None and (error is None or isinstance(error, Exception)):
            guard.ended(error)

    def _failed(
        self, error: BaseException, place: "Future[None]", reservation: Reservation, began: float | None
    ) -> float | None:
        """Seconds until the next attempt, None where there is none."""
        reservation.give_back()
        overloaded = isinstance(error, _OVERLOADED)
        hint = getattr(error, "retry_after", None)
        if overloaded and began is not None:
            self.limit.refused(began, hint if isinstance(hint, (int, float)) else None)
        self.limit.withdraw(place)
        most = max(self.retries, _RATE_RETRIES) if overloaded and self.retries else self.retries
        if not isinstance(error, Exception) or not is_retryable_lm_error(error) or self.attempt >= most:
            self._tell_guard(error)
            return None
        self.attempt += 1
        if isinstance(hint, (int, float)):
            return float(min(max(hint, 0.0), LONGEST_PAUSE))
        return float(min(2 ** (self.attempt - 1), LONGEST_PAUSE))


def _shared(future: "Future[Any]") -> "Future[None]":
    """Stands for a future that others wait for too: whoever is cancelled must not cancel it for them."""
    own: Future[None] = Future()

    def pass_on(_: "Future[Any]") -> None:
        if own.set_running_or_notify_cancel():
            own.set_result(None)

    future.add_done_callback(pass_on)
    return own
