"""Limits a model's calls in flight, adapting to the load its provider accepts."""

import threading
import time
from collections import deque
from concurrent.futures import Future

LONGEST_PAUSE = 60.0
"""Seconds. Longer pauses requested by a provider are shortened to this."""


class AdaptiveLimit:
    """Additive increase, multiplicative decrease (Chiu & Jain 1989). Thread-safe.

    A rate-limit error or a time-out halves the limit, once for all calls that were in flight together;
    answers raise it by one call per round of answers, up to `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self.in_flight = 0
        self._lowered_at = 0.0
        self._paused_until = 0.0
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    def enter(self, *, wait: bool = True) -> "Future[None]":
        """A future that is done once the call may be made; `leave` must follow.

        Args:
            wait: False for a caller that can't wait; it is admitted even if that exceeds the limit.
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
        """Seconds remaining of the pause requested by the provider."""
        with self._lock:
            return max(0.0, self._paused_until - time.monotonic())

    def leave(self, *, answered: bool = False) -> None:
        with self._lock:
            self.in_flight -= 1
            if answered:
                self.limit = min(float(self.most), self.limit + 1 / self.limit)
        self._admit()

    def withdraw(self, future: "Future[None]") -> None:
        """Leave, or stop waiting to enter."""
        if not future.cancel():
            self.leave()

    def refused(self, began: float, retry_after: float | None) -> None:
        """Record that a call started at `began` (`time.monotonic()`) found the provider overloaded."""
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
