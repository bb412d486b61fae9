"""One optimization: baseline, search, winner, comparison, in this order."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from agentcore._json import jsonable
from agentcore._naming import short_id
from agentcore._redaction import Redactor, first_line
from agentcore.dspy_optimization._budget import Budget, charge_reserved
from agentcore.dspy_optimization._evaluator import Evaluator
from agentcore.dspy_optimization._events import (
    BaselineMeasured,
    RunFinished,
    RunResumed,
    RunStarted,
    WinnerMeasured,
)
from agentcore.dspy_optimization._figures import (
    contradictions,
    improvement,
    key_improvements,
    targets_met,
    unknown_figure,
)
from agentcore.dspy_optimization._history import History
from agentcore.dspy_optimization._inputs import RunOptions
from agentcore.dspy_optimization._job import Job
from agentcore.dspy_optimization._log import Progress, RunLog
from agentcore.dspy_optimization._measure import TestMeasurement
from agentcore.dspy_optimization._printer import Printer
from agentcore.dspy_optimization._record import RunRecord
from agentcore.dspy_optimization._resume import Unfinished
from agentcore.dspy_optimization._search import Search
from agentcore.dspy_optimization.models import OptimizationResult, Status
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import (
    AgentCoreError,
    ConfigurationError,
    DataError,
    EvaluationError,
    LMUnavailableError,
)
from agentcore.evaluation import (
    EvaluationLimits,
    EvaluationReport,
    claims,
    compare,
    paired,
    score_interval,
    verdict_of,
)
from agentcore.journal import Event, EventSink
from agentcore.lm import Meter, Spend, manage, manage_program, of_run, redacted_logs, unmanaged
from agentcore.tracking import program_state

if TYPE_CHECKING:
    import dspy

_START_SECONDS = 5.0
"""How long a cancelled run waits for its first journal entries to be written."""


def _listener(options: RunOptions, progress: Progress) -> EventSink | None:
    """The caller's listener, and what prints the progress."""
    if not options.progress:
        return options.on_event
    printer, own = Printer(), options.on_event
    printer.started(progress)

    def both(event: Event) -> None:
        printer.event(event)
        if own is not None:
            own(event)

    return both


class Run:
    """One optimization from its first event to its last."""

    def __init__(
        self,
        job: Job,
        options: RunOptions,
        tracker: MLflowTracker | None,
        resumed: Unfinished | None = None,
    ) -> None:
        history = resumed.history if resumed else History()
        self.executor = options.executor
        self.max_concurrency = options.max_concurrency
        self.resumed = resumed is not None
        progress = Progress(meter=Meter(options.prices))
        progress.meter.start_from(history.spend)
        self.uncertain = charge_reserved(progress.meter, history.reserved)
        constraints = job.request.constraints
        self.budget = Budget(
            constraints,
            progress.meter,
            self.max_concurrency,
            len(job.splits.test),
            repeats=job.repeats,
            sides=2 if job.interleaved else 1,
        )
        control = progress.control = self.budget.control
        self.models = [job.lm, job.prompt_lm, *(item.lm for item in job.program.predictors())]
        control.check_bounds(*self.models)
        self.job = job = replace(
            job,
            lm=manage(control, job.lm),
            prompt_lm=manage(control, job.prompt_lm),
            program=manage_program(control, job.program.deepcopy()),
        )
        self.log = RunLog(job.optimization_id, history, progress, _listener(options, progress))
        self.log.is_settled = self.budget.ledger.is_settled
        limits = EvaluationLimits(self.max_concurrency, constraints.max_error_rate)
        self.evaluator = Evaluator(job.metric, job.lm, limits, self.budget, self.log)
        self.test = TestMeasurement(job, self.evaluator, self.budget, self.log)
        self.search = Search(job, self.evaluator, self.budget, self.log)
        self.record = RunRecord(job, tracker, self.log, resumed.lease if resumed else None)
        if options.on_progress:
            options.on_progress(progress)

    async def execute(self) -> OptimizationResult:
        job, log = self.job, self.log
        redactor = Redactor(job.secrets)
        try:
            with redacted_logs(redactor):
                started = self._started()
                await self._start(started)
                self.budget.ledger.announce = self.record.announcer()
                log.tell(started)
                for message in job.warnings:
                    log.warn(message)
                if self.uncertain:
                    log.warn(
                        f"{self.uncertain} LM calls that the earlier process had reserved when it died count "
                        "as spent"
                    )
                async with self.executor.open(self.max_concurrency) as self.evaluator.place:
                    with of_run(self.budget.control, *self.models):
                        measured = await self._steps()
                self._tell_of_calls()
                return await self._finish(*measured)
        except asyncio.CancelledError:
            if self.record.ended:
                raise
            end = log.event(RunFinished, status="cancelled")
            await self.record.cancelled(self.search.best, [log.account(), end])
            log.tell(end)
            raise
        except BaseException as error:
            known = isinstance(error, AgentCoreError)
            message = redactor.text(str(error) if known else first_line(error, secrets=job.secrets))
            clean = message == str(error)
            if isinstance(error, LMUnavailableError) and self.record.tracker is not None:
                short = short_id(job.optimization_id)
                how = f"agentcore resume {short}" if job.importable else f"pipeline.resume({short!r})"
                message += f". Once the model is available, resume the run: {how}"
                error.args = (message,)
            if known and not clean:
                # The user's own exception, which it was raised from, has the secret too.
                error.args = (message, *error.args[1:])
                error.__cause__, error.__context__ = None, None
            lasting = isinstance(error, (ConfigurationError, DataError))
            end = log.event(RunFinished, status="failed", error=message, resumable=not lasting)
            await self.record.failed(message, [log.account(), end])
            log.tell(end)
            raise

    def _tell_of_calls(self) -> None:
        control = self.budget.control
        if control.no_answers:
            self.log.warn(
                f"{control.no_answers} answers were empty or filtered, or only reported an outage: the calls "
                "were retried"
            )
        if control.escapes:
            self.log.warn(
                f"{control.escapes} LM calls were made in threads without the run's context and are not in "
                "its spend. Start such threads with contextvars.copy_context().run"
            )

    async def _start(self, started: Event) -> None:
        """Create the run in the journal, completely, even if cancelled meanwhile."""
        starting = asyncio.ensure_future(self.record.start(started))
        starting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            done, _ = await asyncio.wait({starting}, timeout=_START_SECONDS)
            if not done:
                starting.add_done_callback(lambda _: self.record.abandon())
            raise

    def _started(self) -> Event:
        history, job = self.log.history, self.job
        if self.resumed:
            return self.log.event(RunResumed, trials=len(history.trials), examples=history.examples)
        return self.log.event(
            RunStarted,
            run_id=self.record.local_id,
            target_type=job.request.target.type,
            target_id=job.request.target.id,
            seed=job.seed,
            split_sizes=job.splits.sizes,
        )

    async def _steps(self) -> tuple[OptimizationResult, EvaluationReport, EvaluationReport]:
        """Run all stages; return the result, and the reports of the baseline and the winner."""
        log, job, history = self.log, self.job, self.log.history
        self.budget.check_baseline()
        baseline = await self.test.baseline()
        self._check_objectives(baseline)
        log.emit(BaselineMeasured, known=history.has_baseline, metrics=baseline.metrics.model_dump())
        judged = history.judged_baseline or log.progress.meter.by_stage().get("judge", Spend())
        begun = bool(history.steps or history.trials)
        self.budget.begin_search(baseline.records, judged, begun=begun)
        log.stage("search")
        program, status = await self.search.run()
        self.budget.begin_winner()
        if program_state(program) == program_state(job.program):
            # Measuring the same program again would only add noise, or read the cache.
            log.warn("kept the original program: no candidate scored higher on validation")
            optimized = baseline
        else:
            before, optimized, whole = await self.test.winner(program, baseline)
            if not whole:
                status = "budget_exhausted"
            if optimized.records:
                baseline = before
            else:
                program, optimized = job.program, baseline
        left_out = len(baseline.records)
        baseline, optimized, _ = paired(baseline, optimized)
        if left_out := left_out - len(baseline.records):
            log.warn(
                f"the language model failed on {left_out} test examples: they are left out of both programs' "
                "figures"
            )
        return self._result(program, status, baseline, optimized), baseline, optimized

    async def _finish(
        self, result: OptimizationResult, baseline: EvaluationReport, optimized: EvaluationReport
    ) -> OptimizationResult:
        """Log the result; nothing after this can fail the run."""
        log, record = self.log, self.record
        measured = log.event(
            WinnerMeasured,
            metrics=optimized.metrics.model_dump(),
            improvement=result.improvement_percentage,
            p_value=result.statistical_significance,
            verdict=result.verdict,
        )
        log.tell(measured)
        log.stage("logging")
        summary = {"improvement": result.improvement_percentage, "verdict": result.verdict}
        end = log.event(RunFinished, status=result.status, summary=summary)
        await log.durable()
        last = [measured, log.account(), end]
        await record.result(result, baseline, optimized, self.search, last)
        log.tell(end)
        # Only a run shorter than MLflow's import still has to wait for its id.
        run_id = await record.run_id(max(0.0, record.patience - log.clock.in_this_process))
        if problem := record.problem():
            log.warnings.append(f"{problem}. Nothing is lost: agentcore sync delivers the rest")
        return result.model_copy(update={"warnings": list(log.warnings), "run_id": run_id})

    def _check_objectives(self, baseline: EvaluationReport) -> None:
        """Reject objectives that can't be measured, before the search spends anything."""
        metrics = baseline.metrics
        for objective in self.job.request.objectives:
            if getattr(metrics, objective.metric) is None:
                raise EvaluationError(unknown_figure(objective.metric))
        if self.job.given_baseline is not None:
            for message in contradictions(self.job.given_baseline, metrics, len(baseline.records)):
                self.log.warn(message)

    def _result(
        self, program: "dspy.Module", status: Status, baseline: EvaluationReport, optimized: EvaluationReport
    ) -> OptimizationResult:
        job, search, meter = self.job, self.search, self.log.progress.meter
        objectives, constraints = job.request.objectives, job.request.constraints
        clusters = self._clusters(baseline)
        comparison = compare(baseline, optimized, clusters=clusters)
        figures = [item.metric for item in objectives]
        claimed = claims(baseline, optimized, figures, clusters=clusters)
        verdict = verdict_of(claimed, figures)
        before, after = baseline.metrics, optimized.metrics
        gain = improvement(before, after, objectives)
        return OptimizationResult(
            optimization_id=job.optimization_id,
            run_id=self.record.local_id,
            status=status,
            verdict=verdict,
            claims=claimed,
            baseline_performance=job.given_baseline or before,
            measured_baseline=before,
            optimized_performance=after,
            quality_interval=score_interval(optimized, clusters),
            improvement_percentage=gain,
            statistical_significance=comparison.p_value,
            interval=comparison.interval,
            smallest_detectable_gain=comparison.smallest_detectable_gain,
            comparison=comparison,
            winning_optimizer=self._winner(program),
            meets_threshold=verdict == "better" and gain >= constraints.min_improvement_threshold,
            targets_met=targets_met(after, objectives),
            # An optimizer may report anything: what can't be stored must not cost a paid-for result.
            optimization_details=jsonable(
                {
                    "algorithm": job.optimizer.name,
                    "parameters": {**job.optimizer.settings(), "seed": job.seed},
                    "iterations": len(search.points),
                    "duration_seconds": self.log.clock.seconds,
                    "key_improvements": key_improvements(before, after, comparison, job.program, program),
                    "trials": [point.model_dump() for point in search.points],
                    **search.details,
                }
            ),
            spend=meter.total,
            spend_by_stage=meter.by_stage(),
            warnings=list(self.log.warnings),
            program=unmanaged(program.deepcopy()),
        )

    def _winner(self, program: "dspy.Module") -> str | None:
        if program_state(program) == program_state(self.job.program):
            return None
        found = self.search.details.get("winner", self.job.optimizer.name)
        return str(found)

    def _clusters(self, report: EvaluationReport) -> list[str] | None:
        """The cluster of each example of a report on the test split."""
        clusters = self.job.splits.test.clusters
        return None if clusters is None else [clusters[record.index] for record in report.records]
