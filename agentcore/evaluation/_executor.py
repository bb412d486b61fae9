"""Where programs run: in this process, or on other machines."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import dspy

from agentcore._threads import run_in_thread


class Ran(NamedTuple):
    """A program's run on one example."""

    prediction: Any
    seconds: float
    """That the program took where it ran, without any wait for its turn."""


class Runner(Protocol):
    """Runs one program, under DSPy's settings where it is called."""

    async def __call__(self, inputs: Mapping[str, Any], *, trace: list[Any] | None = None) -> Ran:
        """Run it on an example's inputs; `trace` gets DSPy's (predictor, inputs, outputs)."""
        ...


class Place(Protocol):
    """Somewhere that programs can run."""

    async def prepare(self, program: Any) -> Runner:
        """Make a program ready to run, as it is now."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Opens a `Place` for as long as a run takes."""

    def open(self, at_once: int) -> AbstractAsyncContextManager[Place]:
        """A place for runs of programs, `at_once` of them at the same time."""
        ...


class Local:
    """This process: programs with an `aforward` in the event loop, others in threads. Also its own place."""

    @asynccontextmanager
    async def open(self, at_once: int) -> AsyncIterator["Local"]:
        yield self

    async def prepare(self, program: Any) -> Runner:
        return partial(call_program, program)


def has_own_aforward(program: Any) -> bool:
    """Whether `aforward` does what `forward` does: defined in the same class, or in one derived from it.

    A subclass that overrides `forward` alone inherits an `aforward` which knows nothing of it.
    """
    for kind in type(program).__mro__:
        if "aforward" in vars(kind):
            return True
        if "forward" in vars(kind):
            return False
    return False


async def call_program(program: Any, inputs: Mapping[str, Any], *, trace: list[Any] | None = None) -> Ran:
    """Run a program: awaited where it has an `aforward` of its own, else in a daemon thread."""
    began = time.perf_counter()
    with nullcontext() if trace is None else dspy.context(trace=trace):
        if has_own_aforward(program):
            prediction = await program.acall(**inputs)
        else:
            prediction = await run_in_thread(lambda: program(**inputs))
    return Ran(prediction, time.perf_counter() - began)
