"""Run blocking work off the event loop, in daemon threads that don't keep the process alive."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def start_in_thread(work: Callable[[], T], *, name: str = "agentcore-worker") -> "asyncio.Future[T]":
    """Run `work` in a new daemon thread under a copy of the caller's context (DSPy's overrides live there).

    Cancelling the future does not stop the thread; `work` has to check a guard. An executor would not do:
    its threads are joined at exit, so a single hung LM call would keep the process alive.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def resolve(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = context.run(work)
        except (StopIteration, SystemExit, KeyboardInterrupt) as caught:
            # A future can't hold a StopIteration, and the other two would stop the event loop.
            error = RuntimeError(f"{type(caught).__name__} raised in a worker thread: {caught}")
        except BaseException as caught:  # noqa: BLE001 - passed on to the awaiting caller
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve, value, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def run_to_its_end(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in an event loop of its own and block until it ends, even if this thread has a running
    loop."""
    if asyncio._get_running_loop() is None:
        return asyncio.run(make())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, lambda: asyncio.run(make())).result()


async def run_in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a daemon thread and await its result; see `start_in_thread`."""
    return await start_in_thread(work)
