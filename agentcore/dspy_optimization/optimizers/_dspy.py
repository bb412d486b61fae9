"""DSPy's own optimizers in a thread: under the run's guard, caps and limit, with its metric."""

from collections.abc import Callable
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from agentcore.dspy_optimization.optimizers._task import SearchTask


async def compile_in_thread(task: SearchTask, compile_: Callable[[], Any]) -> Any:
    """The best of what DSPy's `compile` scores on the whole validation split and what it returns.

    DSPy scores a failed LM call 0: here the first that stays failed after its retries ends the search.
    """
    task.guard.outage_after = 1
    watcher = _Watcher(task)
    with dspy.context(callbacks=[*dspy.settings.callbacks, watcher]):
        program = await task.in_thread(compile_)
    await task.score(program, task.validation.examples, full=True)
    assert task.best is not None
    return task.best.program


def metric_for(task: SearchTask) -> Callable[..., float]:
    """The task's metric as DSPy calls it, from any thread of its own: a score of 0–1."""

    def metric(example: Any, prediction: Any, trace: Any = None, *_: Any) -> float:
        return task.from_thread(lambda: task.scored(example, prediction, trace)).value

    return metric


class _Watcher(BaseCallback):
    """Reports each candidate that DSPy evaluates on all of the validation split as a trial."""

    def __init__(self, task: SearchTask) -> None:
        self._task = task
        self._open: dict[str, tuple[Any, int]] = {}

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        devset = inputs.get("devset") or instance.devset
        self._open[call_id] = inputs["program"].deepcopy(), len(devset)

    def on_evaluate_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        program, size = self._open.pop(call_id)
        if exception is None and outputs is not None and size == len(self._task.validation):
            self._task.from_thread(lambda: self._told(program, outputs.score / 100, size))

    async def _told(self, program: Any, score: float, size: int) -> None:
        self._task.report(program, score, size, full=True)
        await self._task.durable()
