"""Runs an optimizer under a guard, and picks the program to keep, however the search ends."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from agentcore._redaction import first_line
from agentcore.dspy_optimization._budget import Budget
from agentcore.dspy_optimization._evaluator import SEARCH, CandidateEvaluator, Deadline, Evaluator
from agentcore.dspy_optimization._events import StepFinished, TrialFinished
from agentcore.dspy_optimization._history import state_digest
from agentcore.dspy_optimization._job import Job
from agentcore.dspy_optimization._log import RunLog
from agentcore.dspy_optimization._plots import TrialPoint
from agentcore.dspy_optimization.models import Status
from agentcore.dspy_optimization.optimizers import SearchTask, Trial
from agentcore.errors import AgentCoreError, EvaluationError, LMUnavailableError
from agentcore.evaluation import ExampleRecord, first_error
from agentcore.lm import LIMITS, Guard, SearchStopped, described, is_lm_failure
from agentcore.tracking import program_state

_ENDED = "search"
"""Name of the step that ends a search."""


class Search:
    """The search of one run, on its train and validation splits.

    Attributes:
        best: the best trial so far.
        points: the trials, for plotting.
        details: what the optimizer reported about its search.
        results: validation results of the original program and of the one to keep: by digest of the program's
            state, then by example.
    """

    def __init__(self, job: Job, evaluator: Evaluator, budget: Budget, log: RunLog) -> None:
        self.job = job
        self.evaluator = evaluator
        self.budget = budget
        self.log = log
        self.points: list[TrialPoint] = []
        self.details: dict[str, Any] = {}
        self.results: dict[str, dict[str, ExampleRecord]] = {}
        self._task: SearchTask | None = None
        self._best: Trial | None = None

    @property
    def best(self) -> Trial | None:
        return self._task.best if self._task is not None else self._best

    async def run(self) -> tuple[Any, Status]:
        """Return the program to keep and how the search ended, possibly in an earlier process.

        Raises:
            LMUnavailableError: the model failed.
            AgentCoreError: the metric or the optimizer failed.
        """
        ended = self.log.history.steps.get(_ENDED)
        if ended is not None:
            program, status = self._known(ended)
            self._keep_results(program, self.log.history.measured)
            return program, status
        self.log.clock.start_search()
        program, status = await self._search()
        self.log.clock.stop_search()
        assert self._task is not None
        evaluator = self._task.evaluator
        self._keep_results(program, lambda _, candidate: evaluator.results(candidate))
        value = {"status": status, "state": program_state(program), "details": self.details}
        self.log.emit(StepFinished, step=_ENDED, value=value)
        await self.log.durable()
        return program, status

    def _keep_results(self, program: Any, measured: Callable[[str, str], dict[str, ExampleRecord]]) -> None:
        for digest in (state_digest(self.job.program), state_digest(program)):
            self.results[digest] = measured(SEARCH, digest)

    def _known(self, outcome: dict[str, Any]) -> tuple[Any, Status]:
        """The outcome of the search in an earlier process of this run."""
        program = self.job.program.deepcopy()
        lms = [predictor.lm for predictor in program.predictors()]
        program.load_state(outcome["state"])
        for predictor, lm in zip(program.predictors(), lms, strict=True):
            predictor.lm = lm
        self.points = [_point(trial) for trial in self.log.history.trials.values()]
        if self.points:
            last = self.points[-1]
            self._best = Trial(last.trial, program, last.best, True, 0)
            self.log.progress.best_score = last.best
        self.details = outcome["details"]
        return program, outcome["status"]

    async def _search(self) -> tuple[Any, Status]:
        job = self.job
        guard = Guard()
        limit = job.request.constraints.max_optimization_time
        deadline = Deadline(guard, max(0.0, limit - self.log.history.search_seconds))
        task = self._task = self._new_task(guard, deadline)
        self.points = task.points
        if not self.log.history.trials:
            deadline.start()
        stopped: SearchStopped | None = None
        program = None
        try:
            with job.context(), task.stage("trials"), guard.watching():
                program = await _guarded(job.optimizer.optimize(task), guard)
        except SearchStopped as stop:
            stopped = stop
        except AgentCoreError:
            raise
        except Exception as error:  # noqa: BLE001 - an optimizer may raise anything
            raise self._optimizer_failure(error) from None if is_lm_failure(error) else error
        finally:
            self.details = task.details
            deadline.cancel()
        if stopped is None:
            return program, "completed"
        if stopped.reason in LIMITS:
            return self._best_so_far(task, stopped), "budget_exhausted"
        cause = stopped.error
        raise cause if isinstance(cause, AgentCoreError) else self._optimizer_failure(cause)

    def _new_task(self, guard: Guard, deadline: Deadline) -> SearchTask:
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
            evaluator=CandidateEvaluator(self.evaluator, deadline, len(job.splits.validation)),
            log=self.log,
            frozen=job.frozen,
        )

    def _best_so_far(self, task: SearchTask, stopped: SearchStopped) -> Any:
        """The program to keep after a limit was reached."""
        limit = self.budget.limit(stopped.reason, searching=True)
        lead = task.leads[-1]() if task.leads else None
        if lead is not None and (task.best is None or not task.best.full or lead.over >= task.best.score):
            self.log.warn(
                f"{limit} was reached: kept the candidate that was ahead by {lead.gain:.3f} on "
                f"{lead.examples} validation examples"
            )
            return lead.program
        if task.best is None:
            self.log.warn(f"{limit} was reached before any candidate was scored: kept the original program")
            return self.job.program.deepcopy()
        count = len(task.trials)
        trials = "1 trial" if count == 1 else f"{count} trials"
        self.log.warn(f"{limit} was reached after {trials}: kept the best so far")
        return task.best.program

    def _optimizer_failure(self, error: BaseException | None) -> AgentCoreError:
        cause = first_line(error, secrets=self.job.secrets) if error else "no reason given"
        if is_lm_failure(error):
            return LMUnavailableError(
                f"the language model failed during the search ({described(self.job.lm)}): {cause}. "
                "Nothing was scored 0 because of it"
            )
        return EvaluationError(f"optimizer {self.job.optimizer.name} failed: {cause}")


async def _guarded(optimizing: Coroutine[Any, Any, Any], guard: Guard) -> Any:
    """Await an optimizer, and cancel it when the guard stops: no LM call outlasts the limit."""
    loop = asyncio.get_running_loop()
    work = loop.create_task(optimizing)

    def on_stop(_: SearchStopped) -> None:
        loop.call_soon_threadsafe(work.cancel)

    guard.on_stop(on_stop)
    try:
        return await asyncio.shield(work)
    except BaseExceptionGroup as errors:
        failed = first_error(errors)
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if guard.stopped is not None and not (current and current.cancelling()):
            guard.check()  # the search was stopped, not this run
        guard.stop("cancelled")
        await asyncio.wait({work})
        if not work.cancelled():
            work.exception()
        raise
    raise failed


def _point(trial: TrialFinished) -> TrialPoint:
    return TrialPoint(trial=trial.trial, score=trial.score, best=trial.best_score, full=trial.full)
