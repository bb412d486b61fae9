"""What an optimizer is given."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast

import dspy

from agentcore._threads import run_in_thread, start_in_thread
from agentcore.data import Dataset, Example
from agentcore.dspy_optimization._frozen import Frozen
from agentcore.dspy_optimization.optimizers._base import Lead, Trial
from agentcore.errors import AgentCoreError, LMUnavailableError, MetricError, first_line
from agentcore.evaluation import EvaluationReport, Local, Place, Score, ScoredMetric
from agentcore.lm import Guard, SearchStopped

T = TypeVar("T")

_GRACE_SECONDS = 1.0
"""How long a stopped thread may take to notice; it is a daemon, and the guard refuses its LM calls."""


def _as_it_is(stored: Any) -> Any:
    return stored


SEARCH = "search"
"""Names evaluations whose (candidate, example) results are kept and never asked for again."""


class Host(Protocol):
    """The run that a search belongs to."""

    @property
    def steps(self) -> Mapping[str, Any]:
        """Outcomes that an earlier process of the same run has left, by step."""
        ...

    async def evaluate(
        self, program: Any, examples: Sequence[Example], evaluation: str
    ) -> EvaluationReport: ...

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Within it LM calls are on the account as `bootstrap`, `proposals`, `trials` or `judge`."""
        ...

    async def durable(self) -> None:
        """Wait until everything told so far would survive the process."""
        ...

    def on_trial(self, trial: Trial) -> None: ...

    def on_step(self, step: str, value: Any) -> None: ...

    def on_space(self, instructions: dict[str, list[str]], demo_sets: dict[str, int], trials: int) -> None:
        """Told the instructions and the number of demo sets by predictor, and how many trials are planned."""
        ...

    def warn(self, message: str) -> None: ...


@dataclass
class SearchTask:
    """Everything an optimizer may use: never the test split.

    Ownership: the task belongs to one event loop. All but `from_thread` and `slot` is called there; these
    two from the threads of `in_thread` only.
    """

    program: Any
    train: Dataset
    validation: Dataset
    metric: ScoredMetric
    lm: Any
    prompt_lm: Any
    seed: int
    guard: Guard
    host: Host
    gate: asyncio.Semaphore
    """Held while a program or a proposal runs: the run's limit of what is in flight."""
    max_concurrency: int
    place: Place = field(default_factory=Local)
    """Where candidates run; what an optimizer of DSPy's runs by itself runs in this process."""
    frozen: Frozen = field(default_factory=Frozen)
    """What must stay as it is in `program`."""
    prefix: str = ""
    """Keeps apart the steps of several optimizers in one search."""
    trials: list[Trial] = field(default_factory=list)
    leads: list[Callable[[], Lead | None]] = field(default_factory=list)
    """Of optimizers that can tell who is ahead before anything is fully scored."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else the optimizer has to tell of its search, JSON values only."""
    _loop: asyncio.AbstractEventLoop = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    @property
    def best(self) -> Trial | None:
        """A full evaluation beats any part of one, what racing stopped beats nothing else, and of equals the
        first is best."""
        return max(
            self.trials,
            key=lambda trial: (trial.full, not trial.stopped, trial.score, -trial.number),
            default=None,
        )

    def part(self, name: str) -> "SearchTask":
        """This search for one of several optimizers; trials and results are shared."""
        details = self.details.setdefault(name, {})
        return replace(self, prefix=f"{name}-", details=details)

    def restored(self, program: Any) -> Any:
        """A candidate with what is frozen as it was given."""
        return self.frozen.restore(program, self.program) if self.frozen else program

    # Measuring

    async def measure(
        self, program: Any, examples: Sequence[Example], evaluation: str = SEARCH
    ) -> EvaluationReport:
        """Score a candidate over examples, without reporting a trial.

        Raises:
            SearchStopped: the guard was stopped, here also because the LM or the metric failed.
        """
        self.guard.check()
        with self._failing():
            return await self.host.evaluate(program, examples, evaluation)

    def report(
        self, program: Any, score: float, examples: int, *, full: bool, stopped: bool = False
    ) -> Trial:
        """Count a trial. Beside other optimizers only what all of them are scored on is full."""
        full = full and (not self.prefix or examples == len(self.validation))
        trial = Trial(len(self.trials), program.deepcopy(), score, full, examples, stopped)
        self.trials.append(trial)
        self.host.on_trial(trial)
        return trial

    async def score(
        self, program: Any, examples: Sequence[Example], *, full: bool, again: bool = False
    ) -> float:
        """Score a candidate, report it as the next trial and return its mean score, 0–1.

        Args:
            full: whether `examples` are all that the search validates on, not a minibatch of them.
            again: ask again for what was measured of the candidate before.
        """
        number = len(self.trials)
        report = await self.measure(program, examples, f"trial-{number}" if again else SEARCH)
        self.report(program, report.mean_score, len(examples), full=full)
        await self.durable()
        return report.mean_score

    async def trace(self, program: Any, example: Example) -> tuple[Any, list[Any]]:
        """Run a program on one example: its prediction, and DSPy's trace of (predictor, inputs, outputs)."""
        trace: list[Any] = []
        async with self.gate:
            self.guard.check()
            with self.host.stage("bootstrap"), dspy.context(lm=self.lm):
                run = await self.place.prepare(program)
                return (await run(example.inputs, trace=trace)).prediction, trace

    async def scored(self, example: Any, prediction: Any, *more: Any) -> Score:
        """The metric's checked score of a prediction; `more` is DSPy's trace, GEPA's predictor and its trace.

        Raises:
            SearchStopped: the metric failed; the run fails with its error.
        """
        arguments = self.metric.arguments(example, prediction, *more)
        with self._failing(), self.host.stage("judge"):
            try:
                if self.metric.is_async:
                    result = await self.metric.metric(*arguments)
                else:  # may compute for long, or ask a judge
                    result = await run_in_thread(lambda: self.metric.metric(*arguments))
            except Exception as error:  # noqa: BLE001 - a user's metric may raise anything
                raise MetricError(f"metric {self.metric.name} raised {first_line(error)}") from None
            return self.metric.checked(result)

    async def judge(self, example: Any, prediction: Any, trace: Any = None) -> bool:
        """Whether a prediction is good enough for a demonstration: its score reaches the success threshold
        (DSPy takes any truthy score for a success)."""
        return (await self.scored(example, prediction, trace)).value >= self.metric.success_threshold

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """An LM's or a metric's failure stops the whole search, whatever an optimizer does with errors."""
        try:
            yield
        except LMUnavailableError as error:
            self.guard.stop("outage", error)
        except AgentCoreError as error:
            self.guard.stop("failed", error)
        else:
            return
        self.guard.check()

    # Telling

    async def durable(self) -> None:
        await self.host.durable()

    async def step(
        self,
        name: str,
        make: Callable[[], Awaitable[T]],
        dump: Callable[[T], Any] = lambda value: value,
        load: Callable[[Any], T] = _as_it_is,
    ) -> T:
        """What `make()` gives, made once in a run's life: a resumed run takes what the first one has left.

        `dump` turns the value into JSON values, `load` turns them back.
        """
        self.guard.check()
        name = self.prefix + name
        if name in self.host.steps:
            return load(self.host.steps[name])
        value = await make()
        self.host.on_step(name, dump(value))
        await self.durable()
        return value

    def space(self, instructions: dict[str, list[str]], demo_sets: dict[str, int], trials: int) -> None:
        self.host.on_space(instructions, demo_sets, trials)

    # Blocking code

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run DSPy's blocking code in a thread that a stop or a cancellation ends at its next LM call."""
        waiting: set[Future[Any]] = set()
        # DSPy's own workers get its settings, and no context variable.
        with dspy.context(agentcore_waiting=waiting):
            future = start_in_thread(work, name="agentcore-optimizer")
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        stopped = asyncio.Event()

        def on_stop(_: SearchStopped) -> None:
            self._loop.call_soon_threadsafe(stopped.set)

        self.guard.on_stop(on_stop)
        waiter: asyncio.Future[Any] = asyncio.ensure_future(stopped.wait())
        try:
            either: set[asyncio.Future[Any]] = {future, waiter}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                _cancel(waiting)
                await asyncio.wait({future}, timeout=_GRACE_SECONDS)
            if future.done():
                return future.result()
            self.guard.check()
            raise AssertionError("a stopped guard raises")
        finally:
            waiter.cancel()
            _cancel(waiting)

    def from_thread(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work()` in the event loop, from a thread of `in_thread`, which waits for it."""

        async def run() -> tuple[T | None, SearchStopped | None]:
            try:
                return await work(), None
            except SearchStopped as stopped:  # told as a value: nobody may be left to retrieve it
                return None, stopped

        self.guard.check()
        waiting: set[Future[Any]] = dspy.settings.agentcore_waiting
        running = run()
        future: Future[Any] | None = None
        try:
            future = asyncio.run_coroutine_threadsafe(running, self._loop)
            waiting.add(future)
            value, stopped = future.result()
            if stopped is not None:
                raise stopped
            return cast(T, value)
        except FutureCancelled:
            self.guard.check()
            raise SearchStopped("cancelled") from None
        finally:
            if future is not None:
                waiting.discard(future)
            if self._loop.is_closed():  # before it began
                running.close()

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """`gate`, from a thread of `in_thread`."""
        self.from_thread(self.gate.acquire)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self.gate.release)


def _cancel(waiting: set["Future[Any]"]) -> None:
    for future in list(waiting):
        future.cancel()
