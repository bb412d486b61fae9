"""One call of a managed model: reserved, admitted, retried, and asked once for all who ask the same."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import dspy
from dspy.utils.exceptions import is_retryable_lm_error

from agentcore.lm._guard import current_guard
from agentcore.lm._ledger import Amount, CapReached, Reservation
from agentcore.lm._limit import LONGEST_PAUSE
from agentcore.lm._meter import CallRecord

if TYPE_CHECKING:
    from agentcore.lm._control import Control

T = TypeVar("T")

_RATE_RETRIES = 6
"""Retries of a call that was refused for the rate, where the LM itself asks for fewer."""
_SLICE = 0.5
_OVERLOADED = (dspy.LMRateLimitError, dspy.LMTimeoutError)

asking: ContextVar["Call"] = ContextVar("agentcore_asking")


class Call:
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
                    if not place.done():
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
        token = asking.set(self)
        try:
            yield
        finally:
            asking.reset(token)

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
        if began is not None and not isinstance(error, Exception):
            self.control.ledger.assume(self.most)  # cancelled in flight: the provider may bill it
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


def _cached() -> bool:
    return bool(dspy.cache.enable_memory_cache or dspy.cache.enable_disk_cache)


def _shared(future: "Future[Any]") -> "Future[None]":
    """Stands for a future that others wait for too: whoever is cancelled must not cancel it for them."""
    own: Future[None] = Future()

    def pass_on(_: "Future[Any]") -> None:
        if own.set_running_or_notify_cancel():
            own.set_result(None)

    future.add_done_callback(pass_on)
    return own
