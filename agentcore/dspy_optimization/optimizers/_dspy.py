"""Runs DSPy's own optimizers in a thread, with the run's metric, guard, caps and concurrency limit."""

from collections.abc import Callable
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from agentcore.dspy_optimization.optimizers._demos import keep_models
from agentcore.dspy_optimization.optimizers._quiet import quiet
from agentcore.dspy_optimization.optimizers._task import REFUSALS, SearchTask

NO_END = 10**9
"""How many failures of the program DSPy tolerates: they score 0, and outages end the search elsewhere."""


def synchronous(program: dspy.Module, task: SearchTask) -> dspy.Module:
    """The program, whose class gets a `forward` if it has only `aforward`: DSPy's optimizers call programs
    synchronously, from their threads."""
    kind = type(program)
    if hasattr(kind, "forward"):
        return program

    def forward(self: Any, **inputs: Any) -> Any:
        return task.from_thread(lambda: self.aforward(**inputs))

    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "forward": forward}
    program.__class__ = type(kind.__name__, (kind,), {**named, "_asynchronous": kind})
    return program


def as_it_was(program: dspy.Module) -> dspy.Module:
    """The program with its own class, after `synchronous`."""
    program.__class__ = getattr(type(program), "_asynchronous", type(program))
    return program


async def compile_in_thread(task: SearchTask, compile_: Callable[[dspy.Module], Any]) -> Any:
    """Run DSPy's `compile`; return the best of its result and the candidates it scored on all of validation.

    DSPy scores a failed LM call 0; here, the first call that fails after its retries ends the search. If the
    model that proposes has no usable answer, the candidates so far are what there is.

    Args:
        compile_: gets a copy of the program that can be called in DSPy's threads.
    """
    watcher, usual = _Watcher(task), task.guard.outage_after
    task.guard.outage_after = 1
    student = synchronous(task.program.deepcopy(), task)
    try:
        with quiet(), dspy.context(callbacks=[*dspy.settings.callbacks, watcher], max_errors=NO_END):
            made = await task.in_thread(lambda: compile_(student))
    except REFUSALS as error:
        task.go_on_without("candidates", error)
    else:
        program = keep_models(as_it_was(made), task.program)
        await task.score(program, task.validation.examples, full=True)
    finally:
        task.guard.outage_after = usual
    assert task.best is not None
    return task.best.program


def metric_for(task: SearchTask) -> Callable[..., float]:
    """The task's metric in the form that DSPy calls, from any thread; scores are 0–1."""

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None, *_: Any) -> float:
        if prediction is None:  # the program failed
            return 0.0
        return task.from_thread(lambda: task.scored(example, prediction, trace)).value

    return metric


class _Watcher(BaseCallback):
    """Reports each candidate that DSPy evaluates on the whole validation split as a trial."""

    def __init__(self, task: SearchTask) -> None:
        self._task = task
        self._whole = {id(item.dspy) for item in task.validation}
        self._open: dict[str, Any] = {}

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        devset = inputs.get("devset") or instance.devset
        if {id(item) for item in devset} == self._whole:
            self._open[call_id] = as_it_was(inputs["program"].deepcopy())

    def on_evaluate_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        program = self._open.pop(call_id, None)
        if program is not None and exception is None and outputs is not None:
            # DSPy's own score is rounded, which would decide ties.
            scores = [float(score) for *_, score in outputs.results]
            self._task.from_thread(lambda: self._report(program, sum(scores) / len(scores)))

    async def _report(self, program: dspy.Module, score: float) -> None:
        self._task.report(program, score, len(self._task.validation), full=True)
        await self._task.durable()
