"""One optimization: baseline, search, winner, comparison, in this order."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from agentcore.data import Example
from agentcore.dspy_optimization._budget import Budget
from agentcore.dspy_optimization._figures import (
    contradictions,
    improvement,
    key_improvements,
    targets_met,
    unknown_figure,
)
from agentcore.dspy_optimization._history import BASELINE, WINNER, History, state_digest
from agentcore.dspy_optimization._prepare import Job
from agentcore.dspy_optimization._progress import Progress
from agentcore.dspy_optimization._recorder import Recorder
from agentcore.dspy_optimization._resume import Unfinished
from agentcore.dspy_optimization._stage import Search
from agentcore.dspy_optimization.models import (
    OptimizationResult,
    Status,
)
from agentcore.errors import (
    AgentCoreError,
    EvaluationError,
    first_line,
    redact,
)
from agentcore.evaluation import (
    EvaluationReport,
    ExampleRecord,
    Executor,
    Limits,
    Local,
    Place,
    compare,
    evaluate,
)
from agentcore.journal import (
    BaselineMeasured,
    Event,
    EventSink,
    ExampleMeasured,
    RunFinished,
    RunResumed,
    RunStarted,
    SpendCounted,
    StageStarted,
    StepFinished,
    TrialFinished,
    WarningRaised,
    WinnerMeasured,
)
from agentcore.lm import Guard, Meter, Prices, SearchStopped, Spend, redacted_logs, unmanaged
from agentcore.tracking import MLflowTracker, program_state

_ID_SECONDS = 2.0
"""How long after its start a run may wait for MLflow's id."""

_START_SECONDS = 5.0
"""How long a cancelled run may wait for a journal that is just writing its first entries."""

_COSTLY = (BaselineMeasured, StepFinished, TrialFinished)
"""Events after which the account is written: between evaluations, when no call is in flight."""


class Run:
    """One optimization from its first event to its last."""

    def __init__(
        self,
        job: Job,
        tracker: MLflowTracker | None,
        *,
        max_concurrency: int,
        prices: Prices,
        on_event: EventSink | None,
        on_progress: Callable[[Progress], None] | None,
        executor: Executor,
        resumed: Unfinished | None = None,
    ) -> None:
        self.job = job
        self.constraints = job.request.constraints
        self.sink = on_event
        self.max_concurrency = max_concurrency
        self.gate = asyncio.Semaphore(max_concurrency)
        self.history = resumed.history if resumed else History()
        self.resumed = resumed is not None
        self.executor = executor
        self.place: Place = Local()
        self.progress = Progress(meter=Meter(prices))
        self.progress.meter.start_from(self.history.spend)
        self.budget = Budget(self.constraints, self.progress.meter, max_concurrency, len(job.splits.test))
        control = self.budget.control
        own = (predictor.lm for predictor in job.program.predictors())
        control.check_bounds(job.lm, job.prompt_lm, *own)
        self.job = job = replace(
            job,
            lm=control.manage(job.lm),
            prompt_lm=control.manage(job.prompt_lm),
            program=control.manage_program(job.program.deepcopy()),
        )
        self.warnings: list[str] = []
        self.recorder = Recorder(tracker, job, resumed.lease if resumed else None, self.warn)
        self.search = Search(
            job,
            self.progress,
            self.history,
            tracker.entries if tracker else None,
            self.measure_all,
            self.budget,
            self.emit,
            self.recorder.durable,
            self.warn,
            self.gate,
            max_concurrency,
            lambda: self.place,
        )
        self.began = time.monotonic()
        if on_progress:
            on_progress(self.progress)

    @property
    def seconds(self) -> float:
        """How long the run took so far, in earlier processes too."""
        return self.history.seconds + time.monotonic() - self.began

    async def execute(self) -> OptimizationResult:
        job = self.job
        try:
            with redacted_logs(job.secrets):
                started = self.started()
                await self.start(started)
                self.tell(started)
                for message in job.warnings:
                    self.warn(message)
                async with self.executor.open(self.max_concurrency) as self.place:
                    measured = await self.steps()
                return await self.log(*measured)
        except asyncio.CancelledError:
            if self.recorder.ended:
                raise
            end = self.event(RunFinished, status="cancelled")
            await self.recorder.cancelled(self.search.best, [self.account(), end])
            self.tell(end)
            raise
        except BaseException as error:
            known = isinstance(error, AgentCoreError)
            message = redact(str(error) if known else first_line(error), job.secrets)
            end = self.event(RunFinished, status="failed", error=message)
            await self.recorder.failed(message, [self.account(), end])
            self.tell(end)
            raise

    async def start(self, started: Event) -> None:
        """Begin the run in the journal, to its end also where it is cancelled meanwhile."""
        starting = asyncio.ensure_future(self.recorder.start(started, self.history))
        starting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            done, _ = await asyncio.wait({starting}, timeout=_START_SECONDS)
            if not done:
                starting.add_done_callback(lambda _: self.recorder.abandon())
            raise

    def started(self) -> Event:
        if self.resumed:
            return self.event(RunResumed, trials=len(self.history.trials), examples=self.history.examples)
        return self.event(
            RunStarted,
            run_id=self.recorder.local_id,
            target_type=self.job.request.target.type,
            target_id=self.job.request.target.id,
            seed=self.job.seed,
            split_sizes=self.job.splits.sizes,
        )

    async def steps(self) -> tuple[OptimizationResult, EvaluationReport, EvaluationReport]:
        """The result, with all examples of the baseline and of the winner."""
        self.budget.check_baseline()
        baseline = await self.measure(BASELINE, self.job.program)
        self.check_objectives(baseline)
        self.emit(BaselineMeasured, known=self.history.has_baseline, metrics=baseline.metrics.model_dump())
        judged = self.history.judged_baseline or self.progress.meter.by_stage().get("judge", Spend())
        begun = bool(self.history.steps or self.history.trials)
        self.budget.begin_search(baseline.records, judged, begun=begun)
        self.stage("search")
        program, status = await self.search.run()
        self.budget.begin_winner()
        if program_state(program) == program_state(self.job.program):
            # Measured again, the same program would differ by noise, or by the cache's answers.
            self.warn("no candidate was better on the validation split: the program is kept as given")
            optimized = baseline
        else:
            optimized = await self.measure(WINNER, program)
            if len(optimized.records) < len(baseline.records):
                status, baseline = "budget_exhausted", _same_examples(baseline, optimized)
                if not optimized.records:
                    program, optimized = self.job.program, baseline
        result = self.result(program, status, baseline, optimized)
        return result, baseline, optimized

    async def log(
        self, result: OptimizationResult, baseline: EvaluationReport, optimized: EvaluationReport
    ) -> OptimizationResult:
        measured = self.event(
            WinnerMeasured,
            metrics=optimized.metrics.model_dump(),
            improvement=result.improvement_percentage,
            p_value=result.statistical_significance,
        )
        self.tell(measured)
        self.stage("logging")
        end = self.event(
            RunFinished, status=result.status, summary={"improvement": result.improvement_percentage}
        )
        await self.recorder.durable()
        await self.recorder.result(
            result, self.search.points, baseline, optimized, [measured, self.account(), end]
        )
        self.tell(end)
        # A run shorter than MLflow's own import may still wait for its id; no other waits.
        run_id = await self.recorder.run_id(max(0.0, _ID_SECONDS - (time.monotonic() - self.began)))
        if problem := self.recorder.problem():
            self.warnings.append(f"{problem}. Nothing is lost: what waits is delivered by agentcore sync")
        return result.model_copy(update={"warnings": list(self.warnings), "run_id": run_id})

    async def measure(self, stage: str, program: Any) -> EvaluationReport:
        """Evaluate a program on the test split: of the winner as much of it as the caps allow."""
        test, measured = self.job.splits.test, dict[int, ExampleRecord]()
        # The guard stops the threads of synchronous programs, which a cancellation can't.
        guard = Guard(self.budget.control.reserve_unmanaged, outage_after=None)
        self.stage(stage, len(test))
        candidate = state_digest(program)
        known = self.history.records(stage, candidate, test.examples)
        try:
            with self.job.context(), self.progress.meter.stage(stage), guard.watching():
                return await self.measure_all(stage, candidate, program, test, known, measured=measured)
        except SearchStopped as stopped:
            if stage == BASELINE:
                raise self.budget.too_little(
                    f"the baseline took more than that on {len(test)} examples"
                ) from None
            records = sorted({**known, **measured}.values(), key=lambda record: record.index)
            kept = "its figures are of them" if records else "the program is kept as given"
            self.warn(
                f"{self.budget.limit(stopped.reason)} was reached when {len(records)} of {len(test)} test "
                f"examples had been measured with the winner: {kept}"
            )
            return EvaluationReport(tuple(records), self.job.metric.success_threshold)
        finally:
            guard.stop("cancelled")

    async def measure_all(
        self,
        evaluation: str,
        candidate: str,
        program: Any,
        examples: Sequence[Example],
        known: Mapping[int, ExampleRecord],
        *,
        tolerated: int | None = None,
        measured: dict[int, ExampleRecord] | None = None,
    ) -> EvaluationReport:
        """Measure what is not known; each example is in the journal as soon as it is measured.

        Args:
            tolerated: of a candidate, how many examples the LM may fail on.
            measured: gets each record by its index, also where the evaluation is stopped.
        """
        self.progress.done += len(known)

        def count(record: ExampleRecord) -> None:
            self.progress.done += 1
            if measured is not None:
                measured[record.index] = record
            if evaluation not in (BASELINE, WINNER):
                self.budget.learn(candidate, record)
            self.emit(
                ExampleMeasured,
                evaluation=evaluation,
                candidate=candidate,
                record=record.as_dict(),
                account=self.by_stage(),
            )

        limits = Limits(
            max_concurrency=self.max_concurrency,
            max_error_rate=self.constraints.max_error_rate,
            only_lm_failures=tolerated is not None,
            tolerated=tolerated,
            gate=self.gate,
        )
        report = await evaluate(
            program,
            examples,
            self.job.metric,
            lm=self.job.lm,
            limits=limits,
            on_record=count,
            known=known,
            judging=lambda: self.progress.meter.stage("judge"),
            place=self.place,
        )
        await self.recorder.durable()
        return report

    def check_objectives(self, baseline: EvaluationReport) -> None:
        """Refuse an objective that can't be measured before the search spends anything on it."""
        metrics = baseline.metrics
        for objective in self.job.request.objectives:
            if getattr(metrics, objective.metric) is None:
                raise EvaluationError(unknown_figure(objective.metric))
        if self.job.given_baseline is not None:
            for message in contradictions(self.job.given_baseline, metrics, len(baseline.records)):
                self.warn(message)

    def result(
        self,
        program: Any,
        status: Status,
        baseline: EvaluationReport,
        optimized: EvaluationReport,
    ) -> OptimizationResult:
        job, objectives = self.job, self.job.request.objectives
        comparison = compare(baseline, optimized, seed=job.seed)
        before, after = baseline.metrics, optimized.metrics
        gain = improvement(before, after, objectives)
        return OptimizationResult(
            optimization_id=job.optimization_id,
            run_id=self.recorder.local_id,
            status=status,
            baseline_performance=job.given_baseline or before,
            measured_baseline=before,
            optimized_performance=after,
            improvement_percentage=gain,
            statistical_significance=comparison.p_value,
            interval=comparison.interval,
            smallest_detectable_gain=comparison.smallest_detectable_gain,
            comparison=comparison,
            meets_threshold=gain >= self.constraints.min_improvement_threshold,
            targets_met=targets_met(after, objectives),
            optimization_details={
                "algorithm": job.optimizer.name,
                "parameters": {**job.optimizer.settings(), "seed": job.seed},
                "iterations": len(self.search.points),
                "duration_seconds": self.seconds,
                "key_improvements": key_improvements(before, after, comparison, job.program, program),
                "trials": [point.model_dump() for point in self.search.points],
                **self.search.details,
            },
            spend=self.progress.meter.total,
            spend_by_stage=self.progress.meter.by_stage(),
            warnings=list(self.warnings),
            program=unmanaged(program.deepcopy()),
        )

    def stage(self, name: str, total: int = 0) -> None:
        self.progress.begin(name, total)
        self.emit(StageStarted, stage=name)

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            self.emit(WarningRaised, known=message in self.history.warnings, message=message)

    def event(self, kind: Any, **values: Any) -> Event:
        made: Event = kind(optimization_id=self.job.optimization_id, **values)
        return made

    def emit(self, kind: Any, tell: Sequence[Event] = (), *, known: bool = False, **values: Any) -> None:
        """Make an event, write it unless an earlier process did, and hand it to the listener."""
        event = self.event(kind, **values)
        if not known:
            self.recorder.write(event, tell)
            if kind in _COSTLY:
                self.recorder.write(self.account())
        self.tell(event)

    def account(self) -> Event:
        return self.event(
            SpendCounted,
            by_stage=self.by_stage(),
            seconds=self.seconds,
            search_seconds=self.search.seconds,
        )

    def by_stage(self) -> dict[str, dict[str, Any]]:
        return {name: asdict(part) for name, part in self.progress.meter.by_stage().items()}

    def tell(self, event: Event) -> None:
        if self.sink is None:
            return
        try:
            self.sink(event)
        except Exception as error:  # noqa: BLE001 - the caller's; a broken listener must not cost the run
            self.sink = None
            self.warn(f"on_event raised {first_line(error)}: it is not called any more")


def _same_examples(baseline: EvaluationReport, optimized: EvaluationReport) -> EvaluationReport:
    """The baseline on those examples that the winner could be measured on; all of it where there is none."""
    measured = {record.index for record in optimized.records}
    records = tuple(record for record in baseline.records if not measured or record.index in measured)
    return EvaluationReport(records, baseline.success_threshold)
