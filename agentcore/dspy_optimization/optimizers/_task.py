"""`SearchTask`: what an optimizer works with."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import dspy
from dspy.utils.exceptions import AdapterParseError

from agentcore._redaction import first_line
from agentcore._threads import run_in_thread, start_in_thread
from agentcore.data import Dataset, Example
from agentcore.dspy_optimization._entries import trial_metrics
from agentcore.dspy_optimization._evaluator import SEARCH, CandidateEvaluator
from agentcore.dspy_optimization._events import CandidateProposed, StepFinished, TrialFinished
from agentcore.dspy_optimization._frozen import Frozen
from agentcore.dspy_optimization._history import state_digest
from agentcore.dspy_optimization._log import RunLog
from agentcore.dspy_optimization._plots import TrialPoint
from agentcore.errors import AgentCoreError, LMUnavailableError, MetricError
from agentcore.evaluation import EvaluationReport, Score, ScoredMetric
from agentcore.lm import Guard, SearchStopped, is_lm_failure
from agentcore.tracking import load_demos

T = TypeVar("T")

_GRACE_SECONDS = 1.0
"""How long to wait for a stopped thread. It is a daemon, and the guard rejects its LM calls."""


REFUSALS = (AdapterParseError, dspy.LMInvalidRequestError)
"""Answers that can't be used: they can't be parsed, or the prompt is too long for the model. What was asked
for is left out, whereas an outage ends the search."""


def _as_it_is(stored: Any) -> Any:
    return stored


@dataclass(frozen=True)
class Trial:
    """One scored candidate. Number 0 is the original program."""

    number: int
    program: dspy.Module
    score: float
    """Mean score, 0–1."""
    full: bool
    """Whether it was scored on everything the search validates on, not a minibatch."""
    examples: int
    stopped: bool = False
    """Whether racing stopped it before the end of its minibatch because it could no longer win."""


@dataclass(frozen=True)
class Lead:
    """A candidate that was ahead of the most fully scored one when a limit was reached."""

    program: dspy.Module
    gain: float
    """In mean score, on the examples that both have answered."""
    examples: int
    over: float
    """Mean score of the most fully scored candidate on all examples it has answered."""


@dataclass
class SearchTask:
    """Everything an optimizer may use; never the test split.

    The task belongs to one event loop. Call everything from that loop, except `from_thread` and `slot`,
    which are only for threads started by `in_thread`.
    """

    program: dspy.Module
    train: Dataset
    validation: Dataset
    metric: ScoredMetric
    lm: dspy.BaseLM
    prompt_lm: dspy.BaseLM
    seed: int
    guard: Guard
    evaluator: CandidateEvaluator
    log: RunLog
    frozen: Frozen = field(default_factory=Frozen)
    """What must not change in `program`."""
    prefix: str = ""
    """Separates the steps of several optimizers in one search."""
    trials: list[Trial] = field(default_factory=list)
    points: list[TrialPoint] = field(default_factory=list)
    """The trials, for plotting."""
    leads: list[Callable[[], Lead | None]] = field(default_factory=list)
    """Added by optimizers that know which candidate leads before any is fully scored."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further details of the search to report, JSON values only."""
    _loop: asyncio.AbstractEventLoop = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    @property
    def max_concurrency(self) -> int:
        return self.evaluator.max_concurrency

    @property
    def gate(self) -> asyncio.Semaphore:
        """The run's concurrency limit, held while a program or a proposal runs."""
        return self.evaluator.gate

    @property
    def steps(self) -> Mapping[str, Any]:
        """Outcomes saved by earlier processes of the same run, by step."""
        return self.log.history.steps

    @property
    def best(self) -> Trial | None:
        """The best trial: a full evaluation beats a partial one, a trial stopped by racing beats no other,
        and the first of equals wins."""
        return max(
            self.trials,
            key=lambda trial: (trial.full, not trial.stopped, trial.score, -trial.number),
            default=None,
        )

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Charge LM calls within it to `bootstrap`, `proposals`, `trials` or `judge`."""
        return self.log.progress.meter.stage(name)

    def part(self, name: str) -> "SearchTask":
        """This search for one of several optimizers; trials and results are shared."""
        details = self.details.setdefault(name, {})
        return replace(self, prefix=f"{name}-", details=details)

    def demos(self, stored: Mapping[str, Any]) -> list[Any]:
        """The demonstrations of a step, as `dump_demos` wrote them."""
        kind = type(self.program)
        return load_demos(stored, f"{kind.__module__}:{kind.__qualname__}")

    def restored(self, program: dspy.Module) -> dspy.Module:
        """A candidate with the frozen parts of the original program."""
        return self.frozen.restore(program, self.program) if self.frozen else program

    # Measuring

    async def measure(
        self, program: dspy.Module, examples: Sequence[Example], evaluation: str = SEARCH
    ) -> EvaluationReport:
        """Score a candidate over examples, without reporting a trial.

        Raises:
            SearchStopped: the guard was stopped, possibly because the LM or the metric failed here.
        """
        self.guard.check()
        with self._failing():
            return await self.evaluator.evaluate(program, examples, evaluation)

    def report(
        self, program: dspy.Module, score: float, examples: int, *, full: bool, stopped: bool = False
    ) -> Trial:
        """Report a trial. With several optimizers, only the whole validation split counts as full."""
        full = full and (not self.prefix or examples == len(self.validation))
        trial = Trial(len(self.trials), program.deepcopy(), score, full, examples, stopped)
        self.trials.append(trial)
        assert self.best is not None
        best = self.best.score
        self.points.append(TrialPoint(trial=trial.number, score=score, best=best, full=full))
        self.log.progress.trial, self.log.progress.best_score = trial.number, best
        earlier = self.log.history.trials.get(trial.number)
        self.log.emit(
            TrialFinished,
            trial_metrics(trial.number, score, best),
            known=earlier is not None and (earlier.score, earlier.examples) == (score, examples),
            trial=trial.number,
            score=score,
            best_score=best,
            full=full,
            examples=examples,
            candidate=state_digest(trial.program),
            stopped=stopped,
        )
        return trial

    async def score(
        self, program: dspy.Module, examples: Sequence[Example], *, full: bool, again: bool = False
    ) -> float:
        """Score a candidate, report it as the next trial and return its mean score, 0–1.

        Args:
            full: whether `examples` is everything that the search validates on, not a minibatch.
            again: re-evaluate examples whose results are known.
        """
        number = len(self.trials)
        report = await self.measure(program, examples, f"trial-{number}" if again else SEARCH)
        self.report(program, report.mean_score, len(examples), full=full)
        await self.durable()
        return report.mean_score

    async def trace(self, program: dspy.Module, example: Example) -> tuple[Any, list[Any]]:
        """Run a program on one example; returns its prediction and DSPy's trace of (predictor, inputs,
        outputs)."""
        trace: list[Any] = []
        async with self.gate:
            self.guard.check()
            with self.stage("bootstrap"), dspy.context(lm=self.lm):
                run = await self.evaluator.place.prepare(program)
                return (await run(example.inputs, trace=trace)).prediction, trace

    async def scored(self, example: dspy.Example, prediction: dspy.Prediction, *more: Any) -> Score:
        """The metric's checked score of a prediction; `more` is DSPy's trace, GEPA's predictor and its trace.

        Raises:
            SearchStopped: the metric failed; the run fails with its error.
        """
        arguments = self.metric.arguments(example, prediction, *more)
        with self._failing(), self.stage("judge"):
            try:
                if self.metric.is_async:
                    result = await self.metric.metric(*arguments)
                else:  # may be slow, or call a judge
                    result = await run_in_thread(lambda: self.metric.metric(*arguments))
            except Exception as error:  # noqa: BLE001 - a user's metric may raise anything
                raise MetricError(f"metric {self.metric.name} raised {first_line(error)}") from None
            return self.metric.checked(result)

    async def judge(self, example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        """Whether a prediction is good enough for a demonstration: its score reaches the success threshold
        (DSPy accepts any truthy score)."""
        return (await self.scored(example, prediction, trace)).value >= self.metric.success_threshold

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """A failure of an LM or a metric stops the whole search, whatever an optimizer does with errors."""
        try:
            yield
        except LMUnavailableError as error:
            self.guard.stop("outage", error)
        except AgentCoreError as error:
            self.guard.stop("failed", error)
        else:
            return
        self.guard.check()

    # Reporting

    async def durable(self) -> None:
        """Wait until everything reported so far is in the journal."""
        await self.log.durable()

    async def step(
        self,
        name: str,
        make: Callable[[], Awaitable[T]],
        dump: Callable[[T], Any] = lambda value: value,
        load: Callable[[Any], T] = _as_it_is,
    ) -> T:
        """Run `make()` once per run and save its outcome; a resumed run reads it from the journal.

        `dump` turns the value into JSON values, `load` turns them back.
        """
        self.guard.check()
        name = self.prefix + name
        if name in self.steps:
            return load(self.steps[name])
        value = await make()
        self.log.emit(StepFinished, step=name, value=dump(value))
        await self.durable()
        return value

    def go_on_without(self, what: str, error: Exception) -> None:
        """Warn, from any thread, that the model had no usable answer, which `error` (one of `REFUSALS`)
        tells; raises it if there is no such model."""
        if is_lm_failure(error):
            raise error
        message = (
            f"the model gave no usable answer when asked for {what} ({first_line(error, 120)}): the search "
            "continues without it. To get more proposals, use a more capable prompt_lm (--prompt-lm)"
        )
        self._loop.call_soon_threadsafe(self.log.warn, message)

    def space(self, instructions: dict[str, list[str]], demo_sets: dict[str, int], trials: int) -> None:
        """Report the search space: the instructions and the number of demo sets by predictor, and how many
        trials are planned."""
        self.log.progress.trials = trials
        known = self.log.history.has_candidates
        self.log.emit(CandidateProposed, known=known, instructions=instructions, demo_sets=demo_sets)

    # Blocking code

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run DSPy's blocking code in a thread, which a stop or a cancellation ends at its next LM call."""
        waiting: set[Future[Any]] = set()
        # DSPy's worker threads inherit its settings, but not context variables.
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
            except SearchStopped as stopped:  # returned as a value: nobody may be left to retrieve it
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
        """Hold `gate` from a thread of `in_thread`."""
        self.from_thread(self.gate.acquire)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self.gate.release)


def _cancel(waiting: set["Future[Any]"]) -> None:
    for future in list(waiting):
        future.cancel()
