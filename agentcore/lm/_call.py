"""One call of a managed model: reservation, rate limit, retries, and deduplication of identical calls.

The same coroutine serves async and sync callers. A task awaits it; a thread passes `Waiting` methods that
block instead of suspending, so that it runs to completion in one step."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import dspy
from dspy.utils.exceptions import is_retryable_lm_error

from agentcore.errors import AgentCoreError, ConfigurationError
from agentcore.lm._answers import NoAnswerError, may_have_been_answered, no_answer
from agentcore.lm._control import Control
from agentcore.lm._guard import current_guard
from agentcore.lm._ledger import Amount, CapReached, CapsRefused, Reservation
from agentcore.lm._limit import LONGEST_PAUSE
from agentcore.lm._meter import CallRecord, asking

T = TypeVar("T")

_RATE_RETRIES = 6
"""Minimum number of retries after a rate-limit error, if the LM is configured with fewer."""
_SLICE = 0.5
"""How often, in seconds, a sleeping thread checks its guard."""
_OVERLOADED = (dspy.LMRateLimitError, dspy.LMTimeoutError)


class Waiting(Protocol):
    """How a call waits: as a task of an event loop, or as a thread."""

    name: str
    """Keeps identical calls from tasks and from threads apart, as DSPy's cache does."""
    may_wait: bool

    async def until(self, future: "Future[Any]") -> None:
        """Wait until a future is done, whatever its outcome."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def answer(self) -> Awaitable[Any]:
        """Ask the model."""
        ...


class TaskWaiting:
    name = "task"
    may_wait = True

    def __init__(self, ask: Callable[[], Awaitable[Any]]) -> None:
        self.answer = ask

    async def until(self, future: "Future[Any]") -> None:
        if not future.done():
            await asyncio.wrap_future(_shared(future))

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)


class ThreadWaiting:
    """Blocks instead of suspending. In an event loop's own thread it doesn't wait at all: only the loop could
    end that wait."""

    name = "thread"

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self.may_wait = asyncio._get_running_loop() is None

    async def until(self, future: "Future[Any]") -> None:
        _shared(future).result()

    async def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE))  # noqa: ASYNC251 - in a thread, driven by `run_in_one_step`
            check_guard()

    async def answer(self) -> Any:
        return self._ask()


def run_in_one_step(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise AssertionError("a blocking call suspended")


class Call:
    """One call of an LM, with its retries.

    Args:
        lm: the user's model.
        retries: how many; 0 for a model that does its own retries.
        cached: whether DSPy keeps this model's answers in its cache.
    """

    def __init__(
        self,
        control: Control,
        lm: dspy.BaseLM,
        retries: int,
        cached: bool,
        prompt: Any,
        messages: Any,
        kwargs: Any,
    ) -> None:
        self.control = control
        self.lm = lm
        self.retries = retries
        self.limit = control.limit_of(lm)
        try:
            self.bound = control.bound(lm, prompt, messages, kwargs)
        except ConfigurationError as error:
            refused(error)
            raise
        self.asked = messages or [{"content": prompt}]
        self.attempt = 0
        self.record: CallRecord | None = None
        """The meter's record of the answer."""
        self.result: Any = None
        """DSPy's `CallResult`, for a call that was not made through a `ManagedLM`."""
        self.key: str | None = None
        # Identical calls may share an answer only if the model is cached.
        if cached and kwargs.get("cache", lm.cache) and _dspy_caches():
            asked = [str(lm.model), prompt, messages, {**lm.kwargs, **kwargs}]
            self.key = json.dumps(asked, sort_keys=True, default=str)

    async def run(self, waiting: Waiting) -> Any:
        """The model's answer, or its last error."""
        key = f"{waiting.name} {self.key}" if self.key is not None and waiting.may_wait else None
        while key is not None and (first := self.control.first_to_ask(key)) is not None:
            await waiting.until(first)
            if first.result():
                key = None  # the answer is in the cache now
        answered = False
        try:
            answer = await self._attempts(waiting)
            answered = True
            return answer
        finally:
            if key is not None:
                self.control.answered(key, answered)

    async def _attempts(self, waiting: Waiting) -> Any:
        while True:
            reservation = self._reserved(wait=waiting.may_wait)
            while isinstance(reservation, Future):
                await waiting.until(reservation)
                reservation = self._reserved()
            place = self.limit.enter(wait=waiting.may_wait)
            began: float | None = None
            try:
                await self._announced(reservation, waiting)
                await waiting.until(place)
                if waiting.may_wait:
                    await waiting.sleep(self.limit.pause())
                check_guard()
                began = time.monotonic()
                token = asking.set(self)
                try:
                    answer = await waiting.answer()
                finally:
                    asking.reset(token)
            except BaseException as error:
                pause = self._failed(error, place, reservation, began)
                if pause is None:
                    raise
                check_guard()
                await waiting.sleep(pause)
                continue
            problem = self._problem(answer)
            self._answered(reservation, problem)
            if problem is None:
                return answer
            self.control.no_answers += 1
            if self.attempt >= self.retries:
                self._tell_guard(problem)
                raise problem
            self.attempt += 1
            check_guard()
            await waiting.sleep(float(min(2 ** (self.attempt - 1), LONGEST_PAUSE)))

    async def _announced(self, reservation: Reservation, waiting: Waiting) -> None:
        """Wait until the reservation is in the journal; raises `JournalError`."""
        if reservation.announced is not None and waiting.may_wait:
            await waiting.until(reservation.announced)
            reservation.announced.result()

    def _problem(self, answer: Any) -> dspy.LMError | None:
        """Why an answer is none: an error would have been retried, and not scored."""
        reason = no_answer(answer, self.asked)
        if reason is None:
            return None
        return NoAnswerError(f"{self.lm.model} answered with {reason}", model=str(self.lm.model))

    def _reserved(self, *, wait: bool = True) -> "Reservation | Future[None]":
        try:
            return self.control.ledger.try_reserve(self.bound, wait=wait)
        except (CapReached, CapsRefused) as reached:
            guard = current_guard()
            if guard is None:
                raise
            if isinstance(reached, CapsRefused):
                guard.stop("failed", reached.error)
            else:
                guard.stop(reached.limit)
            guard.check()
            raise AssertionError("a stopped guard raises") from None

    def _answered(self, reservation: Reservation, problem: Exception | None) -> None:
        if self.control.ledger.caps:
            self._charge_what_is_unknown()
        reservation.give_back()
        if problem is None:
            self._tell_guard(None)
        self.limit.leave(answered=True)

    def _charge_what_is_unknown(self) -> None:
        """If the provider reports no usage, charge the full reservation, so that caps still hold."""
        record, bound = self.record, self.bound
        if record is None:  # a model that bypasses DSPy's execution and history
            self.control.ledger.assume(bound)
        elif not record.cache_hit:
            tokens = 0 if record.input_tokens or record.output_tokens else bound.tokens
            usd = bound.usd if record.cost_usd is None or tokens else 0.0
            self.control.ledger.assume(Amount(0, tokens, usd))

    def _charged(self) -> Amount:
        """The bound, whose tokens and USD count only where there are caps on them."""
        caps = self.control.ledger.caps
        return Amount(
            self.bound.calls,
            0 if caps.tokens is None and caps.usd is None else self.bound.tokens,
            0.0 if caps.usd is None else self.bound.usd,
        )

    def _tell_guard(self, error: BaseException | None) -> None:
        guard = current_guard()
        if guard is not None and (error is None or isinstance(error, Exception)):
            guard.ended(error)

    def _failed(
        self, error: BaseException, place: "Future[None]", reservation: Reservation, began: float | None
    ) -> float | None:
        """Seconds until the next attempt; None to give up."""
        if began is not None and may_have_been_answered(error):
            self.control.ledger.assume(self._charged())
        reservation.give_back()
        if began is not None and isinstance(error, Exception):
            self.control.failed(self.lm, error)
        overloaded = isinstance(error, _OVERLOADED)
        hint = getattr(error, "retry_after", None)
        if overloaded and began is not None:
            self.limit.refused(began, hint if isinstance(hint, (int, float)) else None)
        self.limit.withdraw(place)
        allowed = max(self.retries, _RATE_RETRIES) if overloaded and self.retries else self.retries
        if not isinstance(error, Exception) or not is_retryable_lm_error(error) or self.attempt >= allowed:
            self._tell_guard(error)
            return None
        self.attempt += 1
        if isinstance(hint, (int, float)):
            return float(min(max(hint, 0.0), LONGEST_PAUSE))
        return float(min(2 ** (self.attempt - 1), LONGEST_PAUSE))


def refused(error: AgentCoreError) -> None:
    """Fail the run whose guard is current: DSPy would turn the error into a score of 0."""
    guard = current_guard()
    if guard is not None:
        guard.stop("failed", error)
        guard.check()


def check_guard() -> None:
    """Raise `SearchStopped` if the current guard was stopped."""
    guard = current_guard()
    if guard is not None:
        guard.check()


def _dspy_caches() -> bool:
    return bool(dspy.cache.enable_memory_cache or dspy.cache.enable_disk_cache)


def _shared(future: "Future[Any]") -> "Future[None]":
    """A future that follows a shared one: cancelling it doesn't cancel the shared one for other waiters."""
    follower: Future[None] = Future()

    def pass_on(_: "Future[Any]") -> None:
        if follower.set_running_or_notify_cancel():
            follower.set_result(None)

    future.add_done_callback(pass_on)
    return follower
