"""Runs an optimizer under a guard, and says what is kept when it ends, however it ends."""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from agentcore._threads import run_in_thread
from agentcore.data import Example
from agentcore.dspy_optimization._budget import Budget
from agentcore.dspy_optimization._history import History, state_digest
from agentcore.dspy_optimization._prepare import Job
from agentcore.dspy_optimization._progress import Progress
from agentcore.dspy_optimization.models import Status
from agentcore.dspy_optimization.optimizers import SEARCH, SearchTask, Trial
from agentcore.errors import AgentCoreError, EvaluationError, LMUnavailableError, first_line
from agentcore.evaluation import EvaluationReport, ExampleRecord, Place, first_error
from agentcore.journal import CandidateProposed, StepFinished, TrialFinished, TrialPoint
from agentcore.lm import LIMITS, Guard, SearchStopped, is_lm_failure
from agentcore.tracking import Entries, program_state

_ENDED = "search"


class Search:
    """The search of one run, on its train and validation split."""

    def __init__(
        self,
        job: Job,
        progress: Progress,
        history: History,
        entries: Entries | None,
        evaluate: Callable[..., Awaitable[EvaluationReport]],
        budget: Budget,
        emit: Callable[..., None],
        durable: Callable[[], Awaitable[None]],
        warn: Callable[[str], None],
        gate: asyncio.Semaphore,
        max_concurrency: int,
        place: Callable[[], Place],
    ) -> None:
        self.job = job
        self.constraints = job.request.constraints
        self.progress = progress
        self.history = history
        self.entries = entries
        self.measure = evaluate
        self.budget = budget
        self.emit = emit
        self.write_all = durable
        self.warn = warn
        self.gate = gate
        self.max_concurrency = max_concurrency
        self.place = place
        self.steps = history.steps
        self.details: dict[str, Any] = {}
        self.best: Trial | None = None
        self.points: list[TrialPoint] = []
        self.start_clock: Callable[[], None] = lambda: None
        self._results: defaultdict[tuple[str, str], dict[str, ExampleRecord]] = defaultdict(dict)
        """By evaluation and candidate, then by example."""
        self._task: SearchTask | None = None
        self._began: float | None = None
        self._before = history.search_seconds

    @property
    def seconds(self) -> float:
        """How long the search took so far, in earlier processes too."""
        return self._before + (time.monotonic() - self._began if self._began is not None else 0.0)

    async def run(self) -> tuple[Any, Status]:
        """The program to keep, and how the search ended; an earlier process may have ended it.

        Raises:
            LMUnavailableError: the model failed.
            AgentCoreError: the metric or the optimizer failed.
        """
        if _ENDED in self.history.steps:
            return self.ended(self.history.steps[_ENDED])
        self._began = time.monotonic()
        program, status = await self.search()
        self._before, self._began = self.seconds, None
        self.emit(
            StepFinished,
            step=_ENDED,
            value={"status": status, "state": program_state(program), "details": self.details},
        )
        await self.durable()
        return program, status

    def ended(self, outcome: dict[str, Any]) -> tuple[Any, Status]:
        """What an earlier process of this run found."""
        program = self.job.program.deepcopy()
        lms = [predictor.lm for predictor in program.predictors()]
        program.load_state(outcome["state"])
        for predictor, lm in zip(program.predictors(), lms, strict=True):
            predictor.lm = lm
        for trial in self.history.trials.values():
            self.points.append(_point(trial))
        if self.points:
            last = self.points[-1]
            self.best = Trial(last.trial, program, last.best, True, 0)
            self.progress.best_score = last.best
        self.details = outcome["details"]
        return program, outcome["status"]

    async def search(self) -> tuple[Any, Status]:
        job, loop = self.job, asyncio.get_running_loop()
        guard = Guard(self.budget.control.reserve_unmanaged)
        task = self._task = self.task(guard)
        left = max(0.0, self.constraints.max_optimization_time - self._before)
        # Trials that the journal answers take no time of the search's.
        timers: list[asyncio.TimerHandle] = []

        def start_clock() -> None:
            if not timers:
                timers.append(loop.call_later(left, guard.stop, "time_limit"))

        self.start_clock = start_clock
        if not self.history.trials:
            start_clock()
        stopped: SearchStopped | None = None
        program = None
        try:
            with job.context(), self.stage("trials"), guard.watching():
                program = await self.guarded(job.optimizer.optimize(task), guard)
        except SearchStopped as stop:
            stopped = stop
        except AgentCoreError:
            raise
        except Exception as error:  # noqa: BLE001 - an optimizer may raise anything
            raise self.optimizer_failure(error) from None if is_lm_failure(error) else error
        finally:
            self.details = task.details
            for timer in timers:
                timer.cancel()
        if stopped is None:
            return program, "completed"
        if stopped.reason in LIMITS:
            return self.kept(task, stopped), "budget_exhausted"
        raise self.failure(stopped)

    async def guarded(self, optimizing: Coroutine[Any, Any, Any], guard: Guard) -> Any:
        """Await an optimizer, which a stop of the guard cancels: no LM call outlasts the limit."""
        loop = asyncio.get_running_loop()
        work = loop.create_task(optimizing)

        def on_stop(_: SearchStopped) -> None:
            loop.call_soon_threadsafe(work.cancel)

        guard.on_stop(on_stop)
        try:
            return await asyncio.shield(work)
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if guard.stopped is not None and not (own and own.cancelling()):
                guard.check()  # the search was stopped, not this run
            guard.stop("cancelled")
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()
            raise

    def task(self, guard: Guard) -> SearchTask:
        job = self.job
        return SearchTask(
            program=job.program.deepcopy(),
            train=job.splits.train,
            validation=job.splits.validation,
            metric=job.metric,
            lm=job.lm,
            prompt_lm=job.prompt_lm,
            seed=job.seed,
            guard=guard,
            host=self,
            gate=self.gate,
            max_concurrency=self.max_concurrency,
            place=self.place(),
            frozen=job.frozen,
        )

    # What optimizers tell, and ask for: their `Host`

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Within it LM calls are on the account as `bootstrap`, `proposals`, `trials` or `judge`."""
        return self.progress.meter.stage(name)

    async def evaluate(
        self, program: Any, examples: Sequence[Example], evaluation: str = SEARCH
    ) -> EvaluationReport:
        candidate = await run_in_thread(lambda: state_digest(program))
        known = self.history.records(evaluation, candidate, examples)
        results = self._results[evaluation, candidate]
        for index, item in enumerate(examples):
            record = results.get(item.digest)
            if record is not None:
                known[index] = replace(record, index=index)
        if len(known) < len(examples):
            self.start_clock()
        if self.progress.done >= self.progress.total:
            self.progress.done = self.progress.total = 0
        self.progress.total += len(examples)
        failed = sum(record.failed == "lm" for record in results.values())
        allowed = math.floor(self.constraints.max_error_rate * len(self.job.splits.validation) + 1e-9)
        report = await self.measure(
            evaluation, candidate, program, examples, known, tolerated=max(0, allowed - failed)
        )
        results.update((record.digest, record) for record in report.records)
        return report

    async def durable(self) -> None:
        await self.write_all()

    def on_trial(self, trial: Trial) -> None:
        assert self._task is not None
        self.best = self._task.best
        best = self.best.score if self.best else trial.score
        self.progress.trial, self.progress.best_score = trial.number, best
        self.points.append(TrialPoint(trial=trial.number, score=trial.score, best=best, full=trial.full))
        earlier = self.history.trials.get(trial.number)
        known = earlier is not None and (earlier.score, earlier.examples) == (trial.score, trial.examples)
        tell = self.entries.trial(trial.number, trial.score, best) if self.entries else []
        self.emit(
            TrialFinished,
            tell,
            known=known,
            trial=trial.number,
            score=trial.score,
            best_score=best,
            full=trial.full,
            examples=trial.examples,
            candidate=state_digest(trial.program),
            stopped=trial.stopped,
        )

    def on_space(self, instructions: dict[str, list[str]], demo_sets: dict[str, int], trials: int) -> None:
        self.progress.trials = trials
        known = self.history.has_candidates
        self.emit(CandidateProposed, known=known, instructions=instructions, demo_sets=demo_sets)

    def on_step(self, step: str, value: Any) -> None:
        self.emit(StepFinished, step=step, value=value)

    # How it ended

    def kept(self, task: SearchTask, stopped: SearchStopped) -> Any:
        reason = self.budget.limit(stopped.reason)
        lead = task.leads[-1]() if task.leads else None
        if lead is not None and (task.best is None or not task.best.full or lead.over >= task.best.score):
            self.warn(
                f"{reason} was reached: the candidate that was ahead by {lead.gain:.3f} on {lead.examples} "
                "validation examples is kept"
            )
            return lead.program
        if task.best is None:
            self.warn(f"{reason} was reached before any candidate was scored: the program is kept as given")
            return self.job.program.deepcopy()
        self.warn(f"{reason} was reached after {len(task.trials)} trials: the best so far is kept")
        return task.best.program

    def failure(self, stopped: SearchStopped) -> AgentCoreError:
        error = stopped.error
        return error if isinstance(error, AgentCoreError) else self.optimizer_failure(error)

    def optimizer_failure(self, error: BaseException | None) -> AgentCoreError:
        cause = first_line(error, secrets=self.job.secrets) if error else "it gave no reason"
        if is_lm_failure(error):
            return LMUnavailableError(
                f"the language model failed during the search: {cause}. "
                "No score was made up; run again once it answers"
            )
        return EvaluationError(f"optimizer {self.job.optimizer.name} failed: {cause}")


def _point(trial: TrialFinished) -> TrialPoint:
    return TrialPoint(trial=trial.trial, score=trial.score, best=trial.best_score, full=trial.full)
