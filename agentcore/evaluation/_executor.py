"""Where programs run: in this process, or on other machines."""

import sysconfig
import time
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import dspy

from agentcore._threads import run_in_thread
from agentcore.errors import AgentCoreError, MetricError
from agentcore.lm import SearchStopped

_OTHERS = ("site-packages", str(Path(__file__).parents[1]), sysconfig.get_paths()["stdlib"], "<frozen")
"""Parts of the paths of files that are not the user's."""


class Ran(NamedTuple):
    """A program's run on one example."""

    prediction: Any
    seconds: float
    """How long the program ran, excluding the time it waited for its turn."""


class Runner(Protocol):
    """Runs one program with the DSPy settings in effect where it is called."""

    async def __call__(self, inputs: Mapping[str, Any], *, trace: list[Any] | None = None) -> Ran:
        """Run it on an example's inputs; appends DSPy's (predictor, inputs, outputs) to `trace`."""
        ...


class Place(Protocol):
    """Somewhere programs can run."""

    async def prepare(self, program: dspy.Module) -> Runner:
        """Prepare a program to run in its current state."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Opens a `Place` for the duration of a run."""

    def open(self, at_once: int) -> AbstractAsyncContextManager[Place]:
        """A place for programs, `at_once` of them running at the same time."""
        ...


class Local:
    """Runs programs here: in the event loop if they have `aforward`, else in threads. Its own `Place`."""

    @asynccontextmanager
    async def open(self, at_once: int) -> AsyncIterator["Local"]:
        """Nothing to start."""
        yield self

    async def prepare(self, program: dspy.Module) -> Runner:
        """Runs the program as it is, without a copy."""
        return partial(call_program, program)


def has_own_aforward(program: dspy.Module) -> bool:
    """Whether `aforward` is defined in the same class as `forward`, or in a subclass of it.

    A subclass that overrides only `forward` inherits an `aforward` that ignores the override.
    """
    for kind in type(program).__mro__:
        if "aforward" in vars(kind):
            return True
        if "forward" in vars(kind):
            return False
    return False


async def call_program(
    program: dspy.Module, inputs: Mapping[str, Any], *, trace: list[Any] | None = None
) -> Ran:
    """Run a program: awaited if it has an `aforward` of its own, else in a daemon thread."""
    began = time.perf_counter()
    with nullcontext() if trace is None else dspy.context(trace=trace):
        if has_own_aforward(program):
            prediction = await program.acall(**inputs)
        else:
            prediction = await run_in_thread(lambda: program(**inputs))
    return Ran(prediction, time.perf_counter() - began)


def place_of(error: BaseException) -> str:
    """The line of the user's own code at which an error arose, in parentheses; empty if there is none."""
    own = [
        item
        for item in traceback.extract_tb(error.__traceback__)
        if not any(place in item.filename for place in _OTHERS)
    ]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to report: a `SearchStopped` first, then a `MetricError`, then any other."""
    leaves = list(_leaves(errors))
    for kind in (SearchStopped, MetricError, AgentCoreError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
