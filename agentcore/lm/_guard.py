"""Stops DSPy code running in a thread: every LM call checks the guard first."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import dspy

StopReason = Literal["cancelled", "time_limit", "call_limit", "token_limit", "cost_limit", "outage", "failed"]
LIMITS: tuple[StopReason, ...] = ("time_limit", "call_limit", "token_limit", "cost_limit")
"""Reasons after which the best candidate so far is kept."""

OUTAGE_AFTER = 5
"""How many consecutive LM calls must fail, each after its retries, to count as an outage."""

_NEVER_RECOVERS = (
    dspy.LMAuthError,
    dspy.LMBillingError,
    dspy.LMNotConfiguredError,
    dspy.LMUnsupportedModelError,
)


class SearchStopped(BaseException):
    """Raised instead of an LM call once the guard is stopped.

    A BaseException, because DSPy turns an `Exception` into a score of 0 and continues.
    """

    def __init__(self, reason: StopReason, error: BaseException | None = None) -> None:
        super().__init__(reason)
        self.reason: StopReason = reason
        self.error = error


def current_guard() -> "Guard | None":
    """The innermost active guard in the current context."""
    found: Guard | None = dspy.settings.get("agentcore_guard")
    return found


class Guard:
    """Refuses LM calls once it has been stopped by a caller, a cap or an outage. Thread-safe.

    Args:
        outage_after: consecutive failed LM calls that stop the guard; None if failures are counted elsewhere.
    """

    def __init__(self, *, outage_after: int | None = OUTAGE_AFTER) -> None:
        self.outage_after = outage_after
        self.stopped: SearchStopped | None = None
        self._listeners: list[Callable[[SearchStopped], None]] = []
        self._failures = 0
        self._lock = threading.Lock()

    def stop(self, reason: StopReason, error: BaseException | None = None) -> None:
        """Make every further LM call raise. Later calls don't change the reason."""
        with self._lock:
            if self.stopped is not None:
                return
            self.stopped = SearchStopped(reason, error)
            listeners = list(self._listeners)
        for listener in listeners:
            listener(self.stopped)

    def on_stop(self, listener: Callable[[SearchStopped], None]) -> None:
        """Call `listener` once when the guard stops, in the thread that stopped it."""
        with self._lock:
            self._listeners.append(listener)
            stopped = self.stopped
        if stopped is not None:
            listener(stopped)

    def check(self) -> None:
        """Raise `SearchStopped` if the guard is stopped."""
        if self.stopped is not None:
            raise SearchStopped(self.stopped.reason, self.stopped.error)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, and in threads that copied its context, LM calls check this guard."""
        with dspy.context(agentcore_guard=self):
            yield

    def ended(self, exception: BaseException | None) -> None:
        """Record that an LM call has ended, after its retries."""
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
    """Whether the model failed, not the program: an outage, a refusal, a time-out, a rate limit.

    A request that the provider rejects as invalid (e.g. a prompt that is too long) is the program's failure.
    """
    if isinstance(error, dspy.LMInvalidRequestError):
        return isinstance(error, dspy.LMUnsupportedModelError)
    return isinstance(error, dspy.LMError)
