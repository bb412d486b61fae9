"""Blocking work beside the event loop, in daemon threads that keep no process from ending."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

exiting = threading.Event()
"""Set where the process is about to end without its finalization: a thread makes nothing any more that would
have to be removed."""


def start_in_thread(work: Callable[[], T], *, name: str = "agentcore-worker") -> "asyncio.Future[T]":
    """Run `work` in a new daemon thread under a copy of the caller's context (DSPy's overrides live there).

    Cancelling the future does not stop the thread: `work` has to watch a guard. An executor's threads
    would be joined at exit, so that one hung LM call kept the process alive.
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
            # A future can't hold the first, and the others would end the event loop.
            error = RuntimeError(f"{type(caught).__name__} raised in a worker thread: {caught}")
        except BaseException as caught:  # noqa: BLE001 - handed to the one who awaits
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve, value, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


async def run_in_thread(work: Callable[[], T]) -> T:
    """Await `work` run in a daemon thread; see `start_in_thread`."""
    return await start_in_thread(work)
