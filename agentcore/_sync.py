"""The synchronous twin of every async entry, by one mechanism: `obj.sync.method(...)`."""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine, Sequence
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
            threading.Thread(target=_run_always, args=(loop,), name="agentcore-sync", daemon=True).start()
            _loop = loop
        return _loop


def _run_always(loop: asyncio.AbstractEventLoop) -> None:
    """A SystemExit in a task stops its loop; the task's caller gets it, and others still need the loop."""
    while True:
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


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
        task = loop.create_task(work, context=contextvars.copy_context() if context is None else context)
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

    Each call runs in a copy of the caller's context. The variables named in `carry` go on from call to
    call within a thread, so that a run started by `twin.start_run(...)` is the current run of
    `twin.log_*(...)`.
    """

    def __init__(self, target: object, carry: Sequence[contextvars.ContextVar[Any]] = ()) -> None:
        self._target = target
        self._carry = carry
        self._carried = threading.local()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if name.startswith("_") or not inspect.iscoroutinefunction(value):
            return value
        return self._blocking(value)

    def _blocking(self, method: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> T:
            context, carried = contextvars.copy_context(), vars(self._carried)
            for variable in self._carry:
                if variable.name in carried:
                    context.run(variable.set, carried[variable.name])
            try:
                return run_blocking(method(*args, **kwargs), context)
            finally:
                carried.update({item.name: context[item] for item in self._carry if item in context})

        return call
