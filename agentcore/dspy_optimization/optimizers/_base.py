"""What an optimizer is given, and what it has to be."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from agentcore._threads import start_in_thread
from agentcore.data import Dataset, Example
from agentcore.errors import AgentCoreError, LMUnavailableError, MetricError, first_line
from agentcore.evaluation import EvaluationReport, ScoredMetric
from agentcore.lm import Guard, SearchStopped

T = TypeVar("T")

_GRACE_SECONDS = 1.0
"""How long a stopped thread may take to notice; it is a daemon, and the guard refuses its LM calls."""


async def _at_once() -> None:
    pass


@dataclass(frozen=True)
class Trial:
    """One scored candidate. Number 0 is the program as given."""

    number: int
    program: Any
    score: float
    """Mean score, 0–1."""
    full: bool
    """Whether all that the search validates on was scored, or a minibatch of it."""
    examples: int


@dataclass
class SearchTask:
    """Everything an optimizer may use: never the test split.

    Ownership: the task belongs to one event loop. `score`, `in_thread` and `report` are called there;
    `score_blocking` and `judge_blocking` from the thread of `in_thread` only.
    """

    program: Any
    train: Dataset
    validation: Dataset
    metric: ScoredMetric
    lm: Any
    prompt_lm: Any
    seed: int
    guard: Guard
    evaluate: Callable[[Any, Sequence[Example], int], Awaitable[EvaluationReport]]
    """Of a candidate over examples, as trial number N."""
    on_trial: Callable[[Trial], None] = lambda trial: None
    durable: Callable[[], Awaitable[None]] = _at_once
    """Waits until everything reported so far would survive the process."""
    on_step: Callable[[str, Any], None] = lambda step, value: None
    steps: Mapping[str, Any] = field(default_factory=dict)
    """Outcomes that an earlier process of the same run has left, by step."""
    on_space: Callable[[dict[str, list[str]], dict[str, int], int], None] = lambda *space: None
    """Told the instructions and the number of demo sets by predictor, and how many trials are planned."""
    best: Trial | None = None
    trials: list[Trial] = field(default_factory=list)
    _loop: asyncio.AbstractEventLoop = field(init=False, repr=False)
    _scoring: set["Future[Any]"] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def score(self, program: Any, examples: Sequence[Example], *, full: bool) -> float:
        """Score a candidate, report it as the next trial and return its mean score, 0–1.

        Args:
            full: whether `examples` are all that the search validates on, not a minibatch of them.

        Raises:
            SearchStopped: the guard was stopped, here also because the LM or the metric failed.
        """
        try:
            report = await self.evaluate(program, examples, len(self.trials))
            self.report(Trial(len(self.trials), program.deepcopy(), report.mean_score, full, len(examples)))
            await self.durable()
            return report.mean_score
        except LMUnavailableError as error:
            self.guard.stop("outage", error)
        except AgentCoreError as error:
            self.guard.stop("failed", error)
        self.guard.check()
        raise AssertionError("a stopped guard raises")

    def report(self, trial: Trial) -> None:
        """Count a trial; a full evaluation beats any minibatch, and of equals the first stays best."""
        self.trials.append(trial)
        if self.best is None or (trial.full, trial.score) > (self.best.full, self.best.score):
            self.best = trial
        self.on_trial(trial)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run DSPy's blocking code in a thread that a stop or a cancellation ends at its next LM call."""
        stopped = asyncio.Event()

        def on_stop(_: SearchStopped) -> None:
            self._loop.call_soon_threadsafe(stopped.set)

        self.guard.on_stop(on_stop)
        future = start_in_thread(work, name="agentcore-optimizer")
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        waiter: asyncio.Future[Any] = asyncio.ensure_future(stopped.wait())
        try:
            either: set[asyncio.Future[Any]] = {future, waiter}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                self._cancel_scoring()
                await asyncio.wait({future}, timeout=_GRACE_SECONDS)
            if future.done():
                return future.result()
            self.guard.check()
            raise AssertionError("a stopped guard raises")
        except asyncio.CancelledError:
            self.guard.stop("cancelled")
            raise
        finally:
            waiter.cancel()
            self._cancel_scoring()

    def score_blocking(self, program: Any, examples: Sequence[Example], *, full: bool) -> float:
        """`score`, from the optimizer's thread."""
        return self._on_loop(lambda: self.score(program, examples, full=full))

    def step_blocking(
        self, step: str, make: Callable[[], T], dump: Callable[[T], Any], load: Callable[[Any], T]
    ) -> T:
        """What `make()` gives, made once in a run's life: a resumed run takes what the first one has left.

        From the optimizer's thread. `dump` turns the value into JSON values, `load` turns them back.
        """
        self.guard.check()
        if step in self.steps:
            return load(self.steps[step])
        value = make()
        dumped = dump(value)

        async def keep() -> None:
            self.on_step(step, dumped)
            await self.durable()

        self._on_loop(keep)
        return value

    def space_blocking(self, instructions: dict[str, list[str]], demos: dict[str, int], trials: int) -> None:
        """`on_space`, from the optimizer's thread."""
        self.guard.check()
        self._loop.call_soon_threadsafe(self.on_space, instructions, demos, trials)

    def judge_blocking(self, example: Any, prediction: Any, trace: Any = None) -> bool:
        """Whether a bootstrapped trace is good enough for a demonstration, from the optimizer's thread.

        DSPy takes any truthy score for a success; here it has to reach the success threshold.
        """
        arguments = self.metric.arguments(example, prediction, trace)
        try:
            if self.metric.is_async:
                result = self._on_loop(lambda: self.metric.metric(*arguments))
            else:
                result = self.metric.metric(*arguments)
            return self.metric.checked(result).value >= self.metric.success_threshold
        except MetricError as error:
            failure: AgentCoreError = error
        except Exception as error:  # noqa: BLE001 - DSPy would log it and go on
            failure = MetricError(f"metric {self.metric.name} raised {first_line(error)}")
        self.guard.stop("failed", failure)
        self.guard.check()
        raise failure

    def _on_loop(self, work: Callable[[], Awaitable[T]]) -> T:
        async def run() -> tuple[T | None, SearchStopped | None]:
            try:
                return await work(), None
            except SearchStopped as stopped:  # told as a value: nobody may be left to retrieve it
                return None, stopped

        self.guard.check()
        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        self._scoring.add(future)
        try:
            value, stopped = future.result()
            if stopped is not None:
                raise stopped
            return cast(T, value)
        except FutureCancelled:
            self.guard.check()
            raise SearchStopped("cancelled") from None
        finally:
            self._scoring.discard(future)

    def _cancel_scoring(self) -> None:
        for future in list(self._scoring):
            future.cancel()


@runtime_checkable
class Optimizer(Protocol):
    """An optimization algorithm.

    `optimize` reports every scored candidate through `task.score` (or `score_blocking`) and returns the
    program to keep. It makes LM calls only under `task.guard`, raises `SearchStopped` once that stops,
    and gives the same candidates for the same task and seed. One instance serves one search at a time.
    """

    name: str

    def settings(self) -> dict[str, Any]:
        """The algorithm's own settings, JSON values only, as logged with the run."""
        ...

    async def optimize(self, task: SearchTask) -> Any: ...
