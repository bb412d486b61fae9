"""Runs an optimizer under a guard, and says what is kept when it ends, however it ends."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agentcore.data import Example
from agentcore.dspy_optimization._history import History, trial_key
from agentcore.dspy_optimization._prepare import Job
from agentcore.dspy_optimization._progress import Progress
from agentcore.dspy_optimization.models import Status
from agentcore.dspy_optimization.optimizers import SearchTask, Trial
from agentcore.errors import AgentCoreError, EvaluationError, LMUnavailableError, first_line
from agentcore.evaluation import EvaluationReport
from agentcore.journal import CandidateProposed, StepFinished, TrialFinished, TrialPoint
from agentcore.lm import Guard, SearchStopped, is_lm_failure
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
        emit: Callable[..., None],
        durable: Callable[[], Awaitable[None]],
        warn: Callable[[str], None],
    ) -> None:
        self.job = job
        self.constraints = job.request.constraints
        self.progress = progress
        self.history = history
        self.entries = entries
        self.evaluate = evaluate
        self.emit = emit
        self.durable = durable
        self.warn = warn
        self.best: Trial | None = None
        self.points: list[TrialPoint] = []
        self.start_clock: Callable[[], None] = lambda: None
        self._began: float | None = None
        self._before = history.search_seconds

    @property
    def seconds(self) -> float:
        """How long the search took so far, in earlier processes too."""
        return self._before + (time.monotonic() - self._began if self._began is not None else 0.0)

    async def run(self, max_calls: int | None) -> tuple[Any, Status]:
        """The program to keep, and how the search ended; an earlier process may have ended it.

        Args:
            max_calls: LM calls that it may make; None for no limit.

        Raises:
            LMUnavailableError: the model failed.
            AgentCoreError: the metric or the optimizer failed.
        """
        if _ENDED in self.history.steps:
            return self.ended(self.history.steps[_ENDED])
        self._began = time.monotonic()
        program, status = await self.search(max_calls)
        self._before, self._began = self.seconds, None
        self.emit(StepFinished, step=_ENDED, value={"status": status, "state": program_state(program)})
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
        return program, outcome["status"]

    async def search(self, max_calls: int | None) -> tuple[Any, Status]:
        job, loop = self.job, asyncio.get_running_loop()
        guard = Guard(None if max_calls is None else max(0, max_calls - self.history.calls("search")))
        task = self.task(guard)
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
            with job.context(), self.progress.meter.stage("search"), guard.watching():
                program = await job.optimizer.optimize(task)
        except SearchStopped as stop:
            stopped = stop
        except AgentCoreError:
            raise
        except Exception as error:  # noqa: BLE001 - an optimizer may raise anything
            raise self.optimizer_failure(error) from None if is_lm_failure(error) else error
        finally:
            for timer in timers:
                timer.cancel()
        if stopped is None:
            return program, "completed"
        if stopped.reason in ("time_limit", "call_limit"):
            return self.kept(task, stopped), "budget_exhausted"
        raise self.failure(stopped)

    def task(self, guard: Guard) -> SearchTask:
        job = self.job

        async def score(program: Any, examples: Sequence[Example], number: int) -> EvaluationReport:
            self.progress.done, self.progress.total = 0, len(examples)
            if number not in self.history.trials:
                self.start_clock()
            return await self.evaluate(trial_key(number), program, examples, only_lm_failures=True)

        def on_trial(trial: Trial) -> None:
            self.best = task.best
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
            )

        def on_space(instructions: dict[str, list[str]], demo_sets: dict[str, int], trials: int) -> None:
            self.progress.trials = trials
            known = self.history.has_candidates
            self.emit(CandidateProposed, known=known, instructions=instructions, demo_sets=demo_sets)

        def on_step(step: str, value: Any) -> None:
            self.emit(StepFinished, step=step, value=value)

        task = SearchTask(
            program=job.program.deepcopy(),
            train=job.splits.train,
            validation=job.splits.validation,
            metric=job.metric,
            lm=job.lm,
            prompt_lm=job.prompt_lm,
            seed=job.seed,
            guard=guard,
            evaluate=score,
            on_trial=on_trial,
            durable=self.durable,
            on_step=on_step,
            steps=self.history.steps,
            on_space=on_space,
        )
        return task

    def kept(self, task: SearchTask, stopped: SearchStopped) -> Any:
        reason = {
            "time_limit": f"max_optimization_time ({self.constraints.max_optimization_time:g} s)",
            "call_limit": f"max_lm_calls ({self.constraints.max_lm_calls})",
        }[stopped.reason]
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
