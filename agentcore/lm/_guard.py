"""Stops DSPy code that runs in a thread: every LM call asks the guard first."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import dspy
from dspy.utils.callback import BaseCallback

from agentcore.lm._ledger import CapReached

StopReason = Literal["cancelled", "time_limit", "call_limit", "token_limit", "cost_limit", "outage", "failed"]
LIMITS: tuple[StopReason, ...] = ("time_limit", "call_limit", "token_limit", "cost_limit")
"""Reasons for which the best so far is kept."""

OUTAGE_AFTER = 5
"""LM calls failing in a row, each after its own retries, that count as an outage."""

_NEVER_RECOVERS = (
    dspy.LMAuthError,
    dspy.LMBillingError,
    dspy.LMNotConfiguredError,
    dspy.LMUnsupportedModelError,
)


class SearchStopped(BaseException):
    """Raised instead of an LM call after the guard was stopped.

    A BaseException, since DSPy turns an `Exception` into a score of 0 and goes on.
    """

    def __init__(self, reason: StopReason, error: BaseException | None = None) -> None:
        super().__init__(reason)
        self.reason: StopReason = reason
        self.error = error


def current_guard() -> "Guard | None":
    """The innermost guard that watches here."""
    found: Guard | None = dspy.settings.get("agentcore_guard")
    return found


Reserve = Callable[[Any, dict[str, Any]], Callable[[], None]]


def _nothing() -> None:
    pass


class Guard(BaseCallback):
    """Refuses LM calls once stopped, whether by a caller, a cap or an outage. Thread-safe.

    Args:
        reserve: called before each call of an LM that doesn't reserve itself, with the LM and its inputs;
            raises where a cap could be exceeded, else gives what is called once the call has ended.
        outage_after: LM calls failing in a row that stop it; None where failures are counted elsewhere.
    """

    def __init__(self, reserve: Reserve | None = None, *, outage_after: int | None = OUTAGE_AFTER) -> None:
        self.outage_after = outage_after
        self._reserve = reserve
        self._reserved: dict[str, Callable[[], None]] = {}
        self._managed: set[str] = set()
        self.stopped: SearchStopped | None = None
        self._listeners: list[Callable[[SearchStopped], None]] = []
        self._failures = 0
        self._lock = threading.Lock()

    def stop(self, reason: StopReason, error: BaseException | None = None) -> None:
        """From now on every LM call raises. The first reason stays."""
        with self._lock:
            if self.stopped is not None:
                return
            self.stopped = SearchStopped(reason, error)
            listeners = list(self._listeners)
        for listener in listeners:
            listener(self.stopped)

    def on_stop(self, listener: Callable[[SearchStopped], None]) -> None:
        """Call `listener` once when the guard stops, from whichever thread stopped it."""
        with self._lock:
            self._listeners.append(listener)
            stopped = self.stopped
        if stopped is not None:
            listener(stopped)

    def check(self) -> None:
        """Raise `SearchStopped` if the guard was stopped."""
        if self.stopped is not None:
            raise SearchStopped(self.stopped.reason, self.stopped.error)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, and in threads that copied its context, LM calls ask this guard."""
        # A program may set callbacks of its own: managed models find the guard by its own key.
        with dspy.context(callbacks=[*dspy.settings.get("callbacks", []), self], agentcore_guard=self):
            yield

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.check()
        if getattr(instance, "_control", None) is not None:
            self._managed.add(call_id)  # reserves and tells of its end by itself
            return
        if self._reserve is None:
            return
        try:
            given_back = self._reserve(instance, inputs)
        except CapReached as reached:
            self.stop(reached.limit)
            self.check()
        else:
            self._reserved[call_id] = given_back

    def on_lm_end(
        self, call_id: str, outputs: dict[str, Any] | None, exception: BaseException | None = None
    ) -> None:
        if call_id in self._managed:
            self._managed.discard(call_id)
            return
        self._reserved.pop(call_id, _nothing)()
        self.ended(exception)

    def ended(self, exception: BaseException | None) -> None:
        """An LM call has ended, after its retries."""
        if self.outage_after is None or not is_lm_failure(exception):
            if exception is None:
                with self._lock:
                    self._failures = 0
            return
        with self._lock:
            self._failures += 1
            outage = self._failures >= self.outage_after
        if outage or isinstance(exception, _NEVER_RECOVERS):
            self.stop("outage", exception)


def is_lm_failure(error: BaseException | None) -> bool:
    """Whether the model failed rather than the program: an outage, a refusal, a time-out, a rate limit.

    A request that the provider calls invalid (a prompt too long, say) is the program's failure.
    """
    if isinstance(error, dspy.LMInvalidRequestError):
        return isinstance(error, dspy.LMUnsupportedModelError)
    return isinstance(error, dspy.LMError)
