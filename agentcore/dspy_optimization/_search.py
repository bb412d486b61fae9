"""Runs an optimizer under a guard, and says what is kept when it ends, however it ends."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agentcore.data import Example
from agentcore.dspy_optimization._prepare import Job
from agentcore.dspy_optimization._progress import Progress
from agentcore.dspy_optimization._recorder import Recorder
from agentcore.dspy_optimization.models import Status
from agentcore.dspy_optimization.optimizers import SearchTask, Trial
from agentcore.errors import AgentCoreError, EvaluationError, LMUnavailableError, first_line
from agentcore.evaluation import EvaluationReport
from agentcore.journal import CandidateProposed, TrialFinished
from agentcore.lm import Guard, SearchStopped, is_lm_failure


class Search:
    """The search of one run, on its train and validation split."""

    def __init__(
        self,
        job: Job,
        progress: Progress,
        recorder: Recorder,
        evaluate: Callable[..., Awaitable[EvaluationReport]],
        emit: Callable[..., None],
        warn: Callable[[str], None],
    ) -> None:
        self.job = job
        self.constraints = job.request.constraints
        self.progress = progress
        self.recorder = recorder
        self.evaluate = evaluate
        self.emit = emit
        self.warn = warn
        self.best: Trial | None = None

    async def run(self, max_calls: int | None) -> tuple[Any, Status]:
        """The program to keep, and how the search ended.

        Args:
            max_calls: LM calls that it may make; None for no limit.

        Raises:
            LMUnavailableError: the model failed.
            AgentCoreError: the metric or the optimizer failed.
        """
        job, loop = self.job, asyncio.get_running_loop()
        guard = Guard(max_calls)
        task = self.task(guard)
        timer = loop.call_later(self.constraints.max_optimization_time, guard.stop, "time_limit")
        stopped: SearchStopped | None = None
        program = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.recorder.follow_trials())
                with job.context(), self.progress.meter.stage("search"), guard.watching():
                    try:
                        program = await job.optimizer.optimize(task)
                    except SearchStopped as stop:
                        stopped = stop
                    except AgentCoreError:
                        raise
                    except Exception as error:  # noqa: BLE001 - an optimizer may raise anything
                        raise self.optimizer_failure(error) from None if is_lm_failure(error) else error
                    finally:
                        self.recorder.no_more_trials()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            timer.cancel()
        if stopped is None:
            return program, "completed"
        if stopped.reason in ("time_limit", "call_limit"):
            return self.kept(task, stopped), "budget_exhausted"
        raise self.failure(stopped)

    def task(self, guard: Guard) -> SearchTask:
        job = self.job

        async def score(program: Any, examples: Sequence[Example]) -> EvaluationReport:
            self.progress.done, self.progress.total = 0, len(examples)
            return await self.evaluate(
                program, examples, max_error_rate=self.constraints.max_error_rate, only_lm_failures=True
            )

        def on_trial(trial: Trial) -> None:
            self.best = task.best
            best = self.best.score if self.best else trial.score
            self.progress.trial, self.progress.best_score = trial.number, best
            self.recorder.trial(trial, best)
            self.emit(
                TrialFinished,
                trial=trial.number,
                score=trial.score,
                best_score=best,
                full=trial.full,
                examples=trial.examples,
            )

        def on_space(instructions: dict[str, list[str]], demo_sets: dict[str, int], trials: int) -> None:
            self.progress.trials = trials
            self.emit(CandidateProposed, instructions=instructions, demo_sets=demo_sets)

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
