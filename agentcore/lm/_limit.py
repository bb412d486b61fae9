"""How many calls of one model are in flight: as many as its provider bears."""

import threading
import time
from collections import deque
from concurrent.futures import Future

LONGEST_PAUSE = 60.0
"""Seconds: a provider that asks for more is asked again after that, and refuses again or doesn't."""


class AdaptiveLimit:
    """Additive increase, multiplicative decrease (Chiu & Jain 1989). Thread-safe.

    A refusal for the rate, or a time-out, halves the limit, once for all calls that were under way with the
    refused one; each answer raises it by one call per round of answers, up to `most`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self.in_flight = 0
        self._lowered_at = 0.0
        self._paused_until = 0.0
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    def enter(self, *, wait: bool = True) -> "Future[None]":
        """A future that is done once the call may be made; every one of them is left by `leave`.

        Args:
            wait: False for a caller that can't: it enters over the limit.
        """
        future: Future[None] = Future()
        if not wait:
            with self._lock:
                self.in_flight += 1
            future.set_result(None)
            return future
        with self._lock:
            self._waiting.append(future)
        self._admit()
        return future

    def pause(self) -> float:
        """Seconds for which the provider asked not to be called."""
        with self._lock:
            return max(0.0, self._paused_until - time.monotonic())

    def leave(self, *, answered: bool = False) -> None:
        with self._lock:
            self.in_flight -= 1
            if answered:
                self.limit = min(float(self.most), self.limit + 1 / self.limit)
        self._admit()

    def withdraw(self, future: "Future[None]") -> None:
        """Leave, or don't enter at all: whoever waited doesn't any more."""
        if not future.cancel():
            self.leave()

    def refused(self, began: float, retry_after: float | None) -> None:
        """The provider is overloaded, says a call that began at `time.monotonic()`."""
        with self._lock:
            now = time.monotonic()
            if began >= self._lowered_at:
                self.limit = max(1.0, self.limit / 2)
                self._lowered_at = now
            if retry_after:
                self._paused_until = max(self._paused_until, now + min(retry_after, LONGEST_PAUSE))

    def _admit(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self.in_flight >= int(self.limit):
                    return
                future = self._waiting.popleft()
                self.in_flight += 1
            if not future.set_running_or_notify_cancel():
                with self._lock:
                    self.in_flight -= 1
                continue
            future.set_result(None)
