"""Delays `os.fork` while another thread holds a lock that the child would inherit and never release.

This affects SQLite's mutexes and Python's import locks: a child forked while another thread holds one hangs
the first time it needs that lock.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

_PATIENCE = 30.0
"""Maximum seconds that a fork waits; importing MLflow alone can take ten."""


class _Gate:
    """A shared/exclusive lock: either any number of threads are inside, or one thread is forking."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.inside = 0
        self.forking = False
        self._thread = threading.local()

    def enter(self) -> None:
        depth: int = getattr(self._thread, "depth", 0)
        if not depth:
            with self.changed:
                self.changed.wait_for(lambda: not self.forking, _PATIENCE)
                self.inside += 1
        self._thread.depth = depth + 1

    def leave(self) -> None:
        self._thread.depth -= 1
        if not self._thread.depth:
            with self.changed:
                self.inside -= 1
                self.changed.notify_all()

    def close(self) -> None:
        self.changed.acquire()
        self.forking = True
        nested = bool(getattr(self._thread, "depth", 0))
        deadline = time.monotonic() + _PATIENCE
        while self.inside > nested and (left := deadline - time.monotonic()) > 0:
            self.changed.wait(left)

    def open(self) -> None:
        self.forking = False
        self.changed.notify_all()
        self.changed.release()


_gate = _Gate()


@contextlib.contextmanager
def not_forked() -> Iterator[None]:
    """Hold off forks while the block runs. Reentrant."""
    gate = _gate
    gate.enter()
    try:
        yield
    finally:
        gate.leave()


def _renew() -> None:
    global _gate
    _gate = _Gate()


os.register_at_fork(before=lambda: _gate.close(), after_in_parent=lambda: _gate.open(), after_in_child=_renew)
