"""One thread a process that writes what collectors and trackers have gathered, window by window."""

import atexit
import logging
import os
import threading
import time
from multiprocessing.util import Finalize, register_after_fork
from typing import Protocol

from agentcore._redaction import first_line
from agentcore.tracking import finish_deliveries

_logger = logging.getLogger("agentcore")


class Gatherer(Protocol):
    """Something that gathers and has to be flushed."""

    window: float
    """Seconds between flushes."""

    def flush_window(self) -> None:
        """Write what was gathered; raises if it can't, and keeps it."""

    def finish(self) -> None:
        """Flush for the last time."""

    def forget(self) -> None:
        """Drop what was gathered: it is the parent process's."""


class _Flusher:
    def __init__(self) -> None:
        self._due: dict[Gatherer, float] = {}
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._told: set[str] = set()

    def add(self, item: Gatherer) -> None:
        """Flush an object every window and at exit, until it is dropped."""
        with self._wake:
            if item in self._due:
                return
            self._due[item] = time.monotonic() + item.window
            self._start()
            self._wake.notify()

    def soon(self, item: Gatherer) -> None:
        """Flush an object now, in the flusher's thread."""
        with self._wake:
            self._due[item] = 0.0
            self._start()
            self._wake.notify()

    def drop(self, item: Gatherer) -> None:
        """Flush an object no more."""
        with self._wake:
            self._due.pop(item, None)

    def drop_all(self) -> None:
        """Flush nothing more."""
        with self._wake:
            self._due.clear()

    @property
    def busy(self) -> bool:
        """Whether there is anything to flush."""
        return bool(self._due)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="agentcore-windows", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._wake:
                due = min(self._due.values(), default=None)
                self._wake.wait(None if due is None else max(0.0, due - time.monotonic()))
                now = time.monotonic()
                items = [item for item, at in self._due.items() if at <= now]
                for item in items:
                    self._due[item] = now + item.window
            for item in items:
                self.flush(item)
            del items

    def flush(self, item: Gatherer, *, last: bool = False) -> None:
        """Flush one object; a failure is logged once, and what was gathered waits for the next window."""
        try:
            (item.finish if last else item.flush_window)()
        except Exception as error:  # noqa: BLE001 - one object's failure must not stop the others' windows
            if str(error) not in self._told:
                self._told.add(str(error))
                _logger.warning("metrics wait in memory: %s", first_line(error))

    def flush_all(self) -> None:
        """Flush everything, for the last time."""
        for item in list(self._due):
            self.flush(item, last=True)

    def after_fork(self) -> None:
        """In a child process: start again with nothing gathered."""
        items = list(self._due)
        self.__init__()  # type: ignore[misc]
        for item in items:
            item.forget()
        for item in items:
            self.add(item)


flusher = _Flusher()


def at_exit() -> None:
    """Write the last window, and deliver it here: an exit handler registered this late would not run."""
    flusher.flush_all()
    finish_deliveries()


def _in_worker(of: _Flusher) -> None:
    """In a child of multiprocessing, which skips the handlers of atexit."""
    if of.busy:
        Finalize(None, at_exit, exitpriority=10)


atexit.register(at_exit)
os.register_at_fork(after_in_child=flusher.after_fork)
register_after_fork(flusher, _in_worker)
