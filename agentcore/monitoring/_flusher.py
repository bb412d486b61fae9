"""One thread a process that writes what collectors and trackers have gathered, window by window."""

import atexit
import logging
import os
import threading
import time
import weakref
from typing import Protocol

from agentcore._redaction import first_line
from agentcore.errors import AgentCoreError
from agentcore.tracking import finish_deliveries

_logger = logging.getLogger("agentcore")


class Gatherer(Protocol):
    """Something that gathers and has to be flushed."""

    window: float
    """Seconds between flushes."""

    def flush_window(self) -> None:
        """Write what was gathered; raises if it can't, and keeps it."""

    def forget(self) -> None:
        """Drop what was gathered: it is the parent process's."""


class _Flusher:
    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Gatherer, float] = weakref.WeakKeyDictionary()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._told: set[str] = set()

    def add(self, item: Gatherer) -> None:
        """Flush an object every window, and at exit."""
        with self._wake:
            self._known[item] = time.monotonic() + item.window
            self._start()
            self._wake.notify()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="agentcore-windows", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._wake:
                due = min(self._known.values(), default=None)
                self._wake.wait(None if due is None else max(0.0, due - time.monotonic()))
                now = time.monotonic()
                items = [item for item, at in self._known.items() if at <= now]
                for item in items:
                    self._known[item] = now + item.window
            for item in items:
                self.flush(item)
            del items

    def flush(self, item: Gatherer) -> None:
        """Flush one object; a failure is logged once, and what was gathered waits for the next window."""
        try:
            item.flush_window()
        except AgentCoreError as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                _logger.warning("metrics wait in memory: %s", first_line(error))

    def flush_all(self) -> None:
        """Flush everything."""
        for item in list(self._known):
            self.flush(item)

    def after_fork(self) -> None:
        """In a child process: start again with nothing gathered."""
        known = list(self._known)
        self.__init__()  # type: ignore[misc]
        for item in known:
            item.forget()
            self._known[item] = time.monotonic() + item.window
        if known:
            self._start()


flusher = _Flusher()


def at_exit() -> None:
    """Write the last window, and deliver it here: an exit handler registered this late would not run."""
    flusher.flush_all()
    finish_deliveries()


atexit.register(at_exit)
os.register_at_fork(after_in_child=flusher.after_fork)
