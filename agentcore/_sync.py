"""The synchronous twin of every async entry, by one mechanism: `obj.sync.method(...)`."""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _background_loop() -> asyncio.AbstractEventLoop:
    """One event loop in a daemon thread for the whole process: notebooks already run one in theirs."""
    global _loop
    with _lock:
        if _loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="agentcore-sync", daemon=True).start()
            _loop = loop
        return _loop


def run_blocking(work: Coroutine[Any, Any, T], context: contextvars.Context | None = None) -> T:
    """Run `work` on the background loop and wait for it; Ctrl-C cancels it and waits for it to end."""
    loop = _background_loop()
    result: Future[T] = Future()
    tasks: list[asyncio.Task[T]] = []

    def finish(task: asyncio.Task[T]) -> None:
        if task.cancelled():
            result.cancel()
            result.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            result.set_exception(error)
        else:
            result.set_result(task.result())

    def start() -> None:
        task = loop.create_task(work, context=context or contextvars.copy_context())
        tasks.append(task)
        task.add_done_callback(finish)

    loop.call_soon_threadsafe(start, context=context)
    try:
        return result.result()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        with contextlib.suppress(FutureCancelled):
            result.result()
        raise


class SyncTwin:
    """Every public coroutine method of `target`, made blocking. Safe inside a running event loop.

    All calls through one twin share one context, so a run started by `twin.start_run(...)` is the
    current run of `twin.log_*(...)`.
    """

    def __init__(self, target: object) -> None:
        self._target = target
        self._context = contextvars.copy_context()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if name.startswith("_") or not inspect.iscoroutinefunction(value):
            return value
        return self._blocking(value)

    def _blocking(self, method: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> T:
            return run_blocking(method(*args, **kwargs), self._context)

        return call
