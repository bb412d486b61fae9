"""Blocking versions of the asynchronous methods: `obj.sync.method(...)`."""

import asyncio
import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []
_depth: contextvars.ContextVar[int] = contextvars.ContextVar("agentcore_sync_depth", default=0)
"""How many blocking calls this context is inside of."""


def _forget_loops() -> None:
    """In a forked child: the threads of the loops are the parent's."""
    global _lock
    _lock = threading.Lock()
    _loops.clear()


os.register_at_fork(after_in_child=_forget_loops)


def _background_loop(depth: int) -> asyncio.AbstractEventLoop:
    """The process's event loop for blocking calls at a depth, in a daemon thread, since notebooks already run
    one in theirs. A blocking call inside another (in a metric, `on_event` or `aforward`) blocks the outer
    call's loop, so it needs one of its own."""
    with _lock:
        while len(_loops) <= depth:
            loop = asyncio.new_event_loop()
            name = f"agentcore-sync-{len(_loops)}"
            threading.Thread(target=_run_always, args=(loop,), name=name, daemon=True).start()
            _loops.append(loop)
        return _loops[depth]


def _run_always(loop: asyncio.AbstractEventLoop) -> None:
    """Restart the loop when a SystemExit in a task stops it. The task's caller gets the exception; other
    callers still need the loop."""
    while True:
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


def run_blocking(work: Coroutine[Any, Any, T], context: contextvars.Context | None = None) -> T:
    """Run `work` on a background loop and wait for it; Ctrl-C cancels it and waits for it to end."""
    context = contextvars.copy_context() if context is None else context
    depth = context.run(_depth.get)
    loop = _background_loop(depth)
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
        task = loop.create_task(work, context=context)
        tasks.append(task)
        task.add_done_callback(finish)

    context.run(_depth.set, depth + 1)
    loop.call_soon_threadsafe(start, context=context)
    try:
        return result.result()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        with contextlib.suppress(FutureCancelled):
            result.result()
        raise


class SyncTwin:
    """The blocking twin of an object with asynchronous methods. Safe inside a running event loop.

    A subclass lists each method explicitly, as in `log_metrics = blocking(RunTracker.log_metrics)`, so that
    type checkers and completion see it. A test checks that the two classes match.

    Each call runs in a copy of the caller's context. The variables in `carry` are carried from call to call
    within a thread, so that a run started by `twin.start_run(...)` is the current run of `twin.log_*(...)`.
    """

    def __init__(self, target: object, carry: Sequence[contextvars.ContextVar[Any]] = ()) -> None:
        self._target = target
        self._carry = carry
        self._carried = threading.local()

    def _call(self, name: str, args: Any, kwargs: Any) -> Any:
        context, carried = contextvars.copy_context(), vars(self._carried)
        for variable in self._carry:
            if variable.name in carried:
                context.run(variable.set, carried[variable.name])
        try:
            return run_blocking(getattr(self._target, name)(*args, **kwargs), context)
        finally:
            for item in self._carry:
                if item in context:
                    carried[item.name] = context[item]
                    item.set(context[item])  # for others than this twin


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """A method of a `SyncTwin` that calls the target's `method` and blocks until it is done."""

    @functools.wraps(method)
    def call(twin: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = twin._call(method.__name__, args, kwargs)
        return result

    return cast("Callable[Concatenate[Any, P], T]", call)
