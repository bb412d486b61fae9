"""Puts every call of a model under the caps of the run that makes it, whoever made the model.

A program may create models in its `forward`, disable DSPy's history or replace its callbacks, so calls are
caught where all of them pass: in DSPy's `execute` and `aexecute`. A call without DSPy's context, in a thread
that a program started, can't be told from one of another part of the process. With caps it is refused if its
model is one of the run's, by name; a call of another model is not counted."""

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import dspy
from dspy.clients import execution
from dspy.dsp.utils.settings import main_thread_config

from agentcore.lm._call import Call, TaskWaiting, ThreadWaiting, run_in_one_step
from agentcore.lm._control import Control
from agentcore.lm._endpoint import of_one_server
from agentcore.lm._meter import asking, count

_execute, _aexecute = execution.execute, execution.aexecute
_lock = threading.Lock()
_running: dict[int, tuple[Control, tuple[Any, ...]]] = {}
"""The runs of this process: their control, and the user's own models."""


@contextlib.contextmanager
def of_run(control: Control, *models: Any) -> Iterator[None]:
    """Within the block, models called in this context are under `control`, and calls of the user's `models`
    from outside of it are noticed."""
    with _lock:
        _running[id(control)] = (control, tuple(item for item in models if item is not None))
    try:
        with dspy.context(agentcore_control=control):
            yield
    finally:
        with _lock:
            _running.pop(id(control), None)


@contextlib.contextmanager
def outside_runs() -> Iterator[None]:
    """Within the block, calls belong to no run, such as those of a server in the same process."""
    with dspy.context(agentcore_control=None, agentcore_outside=True):
        yield


def execute(lm: dspy.BaseLM, call: Any) -> Any:
    """DSPy's `execute`, under the control of the run, if it is called in one."""
    control, managed = _control_of(lm)
    if control is None:
        return _execute(lm, call)
    if managed:
        return _counted(lm, _execute(lm, _fresh(lm, call)))
    made, bare = _call(control, lm, call)
    run_in_one_step(made.run(ThreadWaiting(lambda: _kept(made, bare, _execute(bare, _fresh(bare, call))))))
    return made.result


async def aexecute(lm: dspy.BaseLM, call: Any) -> Any:
    """DSPy's `aexecute`, likewise."""
    control, managed = _control_of(lm)
    if control is None:
        return await _aexecute(lm, call)
    if managed:
        return _counted(lm, await _aexecute(lm, _fresh(lm, call)))
    made, bare = _call(control, lm, call)

    async def ask() -> Any:
        return _kept(made, bare, await _aexecute(bare, _fresh(bare, call)))

    await made.run(TaskWaiting(ask))
    return made.result


def _control_of(lm: dspy.BaseLM) -> tuple[Control | None, bool]:
    """The control of the run that makes this call, and whether the call is under it already.

    Raises:
        ConfigurationError: the call is made outside of a run whose caps it would escape.
    """
    made = asking.get()
    if made is not None and made.lm is lm:
        return made.control, True
    control: Control | None = dspy.settings.get("agentcore_control")
    if control is None and not dspy.settings.get("agentcore_outside"):
        _refuse_if_escaped(lm)
    return control, False


def _refuse_if_escaped(lm: dspy.BaseLM) -> None:
    with _lock:
        running = list(_running.values())
    configured = main_thread_config.get("lm") if running else None
    for control, models in running:
        # By name: the program may have copied the model.
        if any(item is not None and lm.model == item.model for item in (configured, *models)):
            control.escaped(lm)


def _call(control: Control, lm: dspy.BaseLM, call: Any) -> tuple[Call, dspy.BaseLM]:
    """A managed call of an unmanaged model, and a copy of the model that doesn't retry by itself."""
    bare = copy.copy(lm)
    retries = int(getattr(lm, "num_retries", 0) or 0) if call.managed else 0
    if call.managed:
        bare.num_retries = 0
    asked = call.prompt if call.request is None else call.request
    return Call(control, bare, retries, call.cache, asked, call.messages, call.kwargs), bare


def _fresh(lm: dspy.BaseLM, call: Any) -> Any:
    """The call, without the cache if an earlier attempt got no answer: the cache would repeat it."""
    call = of_one_server(lm, call)
    made = asking.get()
    if made is not None and made.attempt and call.cache:
        return dataclasses.replace(call, cache=False)
    if dspy.settings.get("agentcore_uncached") and call.cache:
        return dataclasses.replace(call, cache=False)
    return call


def _kept(made: Call, lm: dspy.BaseLM, result: Any) -> Any:
    made.result = _counted(lm, result)
    return made.result.outputs


def _counted(lm: dspy.BaseLM, result: Any) -> Any:
    record = count(str(lm.model), result)
    if (made := asking.get()) is not None:
        made.record = record
    return result


def install() -> None:
    """Put `execute` and `aexecute` in the place of DSPy's. Remove once DSPy has a hook around every call."""
    execution.execute, execution.aexecute = execute, aexecute
