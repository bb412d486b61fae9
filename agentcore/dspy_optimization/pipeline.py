"""The order of the steps: baseline, search, winner, comparison."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from agentcore._sync import SyncTwin
from agentcore._threads import run_in_thread
from agentcore.data import Example
from agentcore.dspy_optimization._figures import (
    contradictions,
    improvement,
    key_improvements,
    targets_met,
    unknown_figure,
)
from agentcore.dspy_optimization._history import BASELINE, WINNER, History, state_digest
from agentcore.dspy_optimization._prepare import Job, prepare
from agentcore.dspy_optimization._progress import Progress
from agentcore.dspy_optimization._recorder import Recorder
from agentcore.dspy_optimization._resume import Unfinished, check_same, find_unfinished, take_over
from agentcore.dspy_optimization._search import Search
from agentcore.dspy_optimization.models import (
    OptimizationRequest,
    OptimizationResult,
    PerformanceMetrics,
    Status,
)
from agentcore.errors import (
    AgentCoreError,
    ConfigurationError,
    EvaluationError,
    first_line,
    redact,
)
from agentcore.evaluation import EvaluationReport, ExampleRecord, Limits, Metric, compare, evaluate
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
from agentcore.lm import Guard, SearchStopped, redacted_logs
from agentcore.settings import MLflowConfig
from agentcore.tracking import MLflowTracker, destination_of, program_state

_ID_SECONDS = 2.0
"""How long after its start a run may wait for MLflow's id."""

_START_SECONDS = 5.0
"""How long a cancelled run may wait for a journal that is just writing its first entries."""

_COSTLY = (BaselineMeasured, StepFinished, TrialFinished)
"""Events after which the account is written: between evaluations, when no call is in flight."""


class OptimizationPipeline:
    """Optimizes a DSPy program and measures the gain on examples that no optimizer saw.

    One pipeline may run several optimizations at once, each with its own run, LMs and account.
    `pipeline.sync.run_optimization(...)` is the blocking twin.

    Args:
        program: a `dspy.Module`, `"package.module:object"`, or a signature `"question -> answer"`;
            None builds one from the data's fields.
        metric: a function (see `agentcore.evaluation.Metric`), `"package.module:function"` or
            `"exact_match"`; None means exact match on the output fields.
        lm: a `dspy.LM` or its name; None takes AGENTCORE_LM, then `dspy.settings.lm`.
        prompt_lm: proposes instructions; None takes AGENTCORE_PROMPT_LM, then `lm`.
        mlflow_config: where to track; None reads the environment.
        enable_tracking: False logs nothing anywhere, and keeps nothing that could be resumed.
        max_concurrency: examples in flight at once, all evaluations of one run together.
        on_event: called in the event loop with every journal event.
        on_progress: called once with the `Progress` of a run that starts, which may be read at any time.
        seed: of splits, search and resampling.
        program_path: `package.module:object`, where `program` can be imported from when its model is
            loaded.
    """

    def __init__(
        self,
        program: Any = None,
        metric: Metric | str | None = None,
        lm: Any = None,
        *,
        prompt_lm: Any = None,
        mlflow_config: MLflowConfig | None = None,
        enable_tracking: bool = True,
        max_concurrency: int = 16,
        on_event: EventSink | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        seed: int = 0,
        program_path: str | None = None,
    ) -> None:
        if max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency must be at least 1, not {max_concurrency}")
        if seed < 0:
            raise ConfigurationError(f"seed must be 0 or more, not {seed}")
        self.program = program
        self.metric = metric
        self.lm = lm
        self.prompt_lm = prompt_lm
        self.mlflow_config = mlflow_config or (MLflowConfig() if enable_tracking else None)
        self.enable_tracking = enable_tracking
        self.max_concurrency = max_concurrency
        self.on_event = on_event
        self.on_progress = on_progress
        self.seed = seed
        self.program_path = program_path

    @property
    def sync(self) -> Any:
        """The blocking twin of this pipeline."""
        return SyncTwin(self)

    async def run_optimization(
        self,
        request: OptimizationRequest | Mapping[str, Any],
        baseline_metrics: PerformanceMetrics | Mapping[str, float] | None = None,
        training_data: Any = None,
        *,
        validation_data: Any = None,
        test_data: Any = None,
    ) -> OptimizationResult:
        """Run one optimization.

        One list of examples is split 30/30/40 into train, validation and test. Cancelling stops the search
        at its next LM call, keeps the best candidate so far and marks the run KILLED.

        Args:
            request: what to optimize, for what, within which bounds.
            baseline_metrics: the caller's own figures, logged as `baseline_*`; the baseline is measured
                all the same.
            training_data: anything `load_dataset` takes.
            validation_data, test_data: splits of the caller's own; both or neither.

        Raises:
            ConfigurationError, DataError, MetricError: a mistake of the caller's; the message says where.
            JournalError: the journal can't be written; the run can be resumed once it can.
            LMUnavailableError: the LM failed; the run is FAILED, nothing is scored 0.
            EvaluationError: too many examples failed, or an objective can't be measured.
        """
        job = prepare(
            request,
            program=self.program,
            program_path=self.program_path,
            metric=self.metric,
            lm=self.lm,
            prompt_lm=self.prompt_lm,
            seed=self.seed,
            training_data=training_data,
            validation_data=validation_data,
            test_data=test_data,
            baseline_metrics=baseline_metrics,
        )
        tracker = MLflowTracker(self.mlflow_config) if self.enable_tracking else None
        return await _Run(self, job, tracker).execute()

    async def resume(self, run_id: str) -> OptimizationResult:
        """Go on with an optimization whose process died, that failed, or that was stopped.

        Baseline results, candidates, finished trials and spend are taken from the journal and not paid for
        again; the same MLflow run continues. The pipeline must be made as it was for the run: program,
        metric, models and seed are compared; the examples are in the journal.

        Args:
            run_id: MLflow's id, the local one, or the optimization's.

        Raises:
            ConfigurationError: no such run, it has finished, another process is working on it, or this
                pipeline differs from the one that started it.
            and what `run_optimization` raises.
        """
        if self.mlflow_config is None:
            raise ConfigurationError("a pipeline without tracking keeps no run that could be resumed")
        tracker = MLflowTracker(self.mlflow_config)
        run = await run_in_thread(lambda: take_over(run_id))
        try:
            destination = destination_of(self.mlflow_config)
            if run.stream.destination != destination:
                raise ConfigurationError(
                    f"run {run_id} is tracked at {run.stream.destination}, this pipeline tracks at "
                    f"{destination}: set MLFLOW_TRACKING_URI"
                )
            job = prepare(
                run.spec["request"],
                program=self.program,
                program_path=self.program_path,
                metric=self.metric,
                lm=self.lm,
                prompt_lm=self.prompt_lm,
                seed=run.spec["seed"],
                training_data=run.data,
                validation_data=None,
                test_data=None,
                baseline_metrics=run.spec["baseline"],
                optimization_id=run.stream.id,
                splits=run.splits,
            )
            check_same(job, run.spec, run_id)
        except BaseException:
            (await tracker.opened())[0].release(run.lease)
            raise
        return await _Run(self, job, tracker, run).execute()

    @classmethod
    def from_journal(cls, run_id: str, *, lm: Any = None, **arguments: Any) -> "OptimizationPipeline":
        """The pipeline that started a run, made of what the journal says, to `resume` the run. Blocking.

        Args:
            lm: the model, where the run was given an object.
            arguments: of the pipeline, but for program, metric, models and seed.

        Raises:
            ConfigurationError: no such run, or it had a program or metric that can't be imported.
        """
        _, _, history = find_unfinished(run_id)
        assert history.job is not None  # a run without one is not found
        spec, source = history.job.spec, history.job.spec["source"]
        by_hand = "Resume it from the script that started it, with pipeline.resume(run_id)"
        if source["program"] is None and not source["from_data"]:
            raise ConfigurationError(
                f"the program of run {run_id} ({spec['program']['class']}) can't be imported. {by_hand}"
            )
        if source["metric"] is None and spec["metric"] != "exact_match":
            raise ConfigurationError(
                f"the metric of run {run_id} ({spec['metric']}) can't be imported. {by_hand}"
            )
        return cls(
            source["program"],
            source["metric"],
            lm or spec["lm"]["model"],
            prompt_lm=None if spec["prompt_lm"] == spec["lm"] else spec["prompt_lm"]["model"],
            seed=spec["seed"],
            **arguments,
        )

    async def tracking_id(self, run_id: str | None) -> str | None:
        """MLflow's id of a run; the local one while MLflow doesn't have it."""
        if run_id is None or self.mlflow_config is None:
            return run_id
        return await MLflowTracker(self.mlflow_config).tracking_id(run_id) or run_id

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until MLflow has all that this process logged to it; see `MLflowTracker.flush`."""
        if self.mlflow_config is not None:
            await MLflowTracker(self.mlflow_config).flush(timeout)


class _Run:
    """One optimization from its first event to its last."""

    def __init__(
        self,
        pipeline: OptimizationPipeline,
        job: Job,
        tracker: MLflowTracker | None,
        resumed: Unfinished | None = None,
    ) -> None:
        self.job = job
        self.constraints = job.request.constraints
        self.sink = pipeline.on_event
        self.max_concurrency = pipeline.max_concurrency
        self.gate = asyncio.Semaphore(pipeline.max_concurrency)
        self.history = resumed.history if resumed else History()
        self.resumed = resumed is not None
        self.progress = Progress()
        self.progress.meter.start_from(self.history.spend)
        self.warnings: list[str] = []
        self.recorder = Recorder(tracker, job, resumed.lease if resumed else None, self.warn)
        self.search = Search(
            job,
            self.progress,
            self.history,
            tracker.entries if tracker else None,
            self.evaluate,
            self.emit,
            self.recorder.durable,
            self.warn,
        )
        self.began = time.monotonic()
        if pipeline.on_progress:
            pipeline.on_progress(self.progress)

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
                return await self.steps()
        except asyncio.CancelledError:
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
            await asyncio.wait({starting}, timeout=_START_SECONDS)
            raise

    def started(self) -> Event:
        if self.resumed:
            return self.event(RunResumed)
        return self.event(
            RunStarted,
            run_id=self.recorder.local_id,
            target_type=self.job.request.target.type,
            target_id=self.job.request.target.id,
            seed=self.job.seed,
            split_sizes=self.job.splits.sizes,
        )

    async def steps(self) -> OptimizationResult:
        baseline, reserve = await self.measure(BASELINE, self.job.program)
        self.check_objectives(baseline)
        self.emit(BaselineMeasured, known=self.history.has_baseline, metrics=baseline.metrics.model_dump())
        self.stage("search")
        program, status = await self.search.run(self.call_limit(reserve))
        if program_state(program) == program_state(self.job.program):
            # Measured again, the same program would differ by noise, or by the cache's answers.
            self.warn("no candidate was better on the validation split: the program is kept as given")
            optimized = baseline
        else:
            optimized, _ = await self.measure(WINNER, program)
        result = self.result(program, status, baseline, optimized)
        measured = self.event(
            WinnerMeasured,
            metrics=optimized.metrics.model_dump(),
            improvement=result.improvement_percentage,
            p_value=result.statistical_significance,
        )
        self.tell(measured)
        self.stage("logging")
        end = self.event(RunFinished, status=status, summary={"improvement": result.improvement_percentage})
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

    async def measure(self, stage: str, program: Any) -> tuple[EvaluationReport, int]:
        """Evaluate a program on the test split; the report, and how many LM calls it took."""
        test, limit = self.job.splits.test, self.constraints.max_lm_calls
        if limit is not None and limit <= 2 * len(test):
            raise self.too_few_calls(len(test))
        before = self.history.calls(stage)
        # The guard stops the threads of synchronous programs, which a cancellation can't.
        own = None if limit is None or stage != BASELINE else max(0, limit - before)
        guard = Guard(own, outage_after=None)
        self.stage(stage, len(test))
        try:
            with self.job.context(), self.progress.meter.stage(stage), guard.watching():
                report = await self.evaluate(stage, program, test)
        except SearchStopped:
            raise self.too_few_calls(guard.calls) from None
        finally:
            guard.stop("cancelled")
        return report, before + guard.calls

    def call_limit(self, reserve: int) -> int | None:
        limit = self.constraints.max_lm_calls
        if limit is None:
            return None
        if limit <= 2 * reserve:
            raise self.too_few_calls(reserve)
        return limit - 2 * reserve

    def too_few_calls(self, each: int) -> ConfigurationError:
        return ConfigurationError(
            f"max_lm_calls={self.constraints.max_lm_calls} leaves nothing for the search: "
            f"baseline and winner take at least {each} each"
        )

    async def evaluate(
        self,
        evaluation: str,
        program: Any,
        examples: Sequence[Example],
        *,
        only_lm_failures: bool = False,
    ) -> EvaluationReport:
        """Measure what is not in the journal yet; each example is, as soon as it is measured."""
        candidate = state_digest(program)
        known = self.history.records(evaluation, candidate, examples)
        self.progress.done += len(known)

        def count(record: ExampleRecord) -> None:
            self.progress.done += 1
            self.emit(ExampleMeasured, evaluation=evaluation, candidate=candidate, record=record.as_dict())

        limits = Limits(self.max_concurrency, self.constraints.max_error_rate, only_lm_failures, self.gate)
        report = await evaluate(
            program,
            examples,
            self.job.metric,
            lm=self.job.lm,
            limits=limits,
            on_record=count,
            known=known,
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
            },
            spend=self.progress.meter.total,
            spend_by_stage=self.progress.meter.by_stage(),
            warnings=list(self.warnings),
            program=program,
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
        spend = self.progress.meter.by_stage()
        return self.event(
            SpendCounted,
            by_stage={name: asdict(part) for name, part in spend.items()},
            seconds=self.seconds,
            search_seconds=self.search.seconds,
        )

    def tell(self, event: Event) -> None:
        if self.sink is None:
            return
        try:
            self.sink(event)
        except Exception as error:  # noqa: BLE001 - the caller's; a broken listener must not cost the run
            self.sink = None
            self.warn(f"on_event raised {first_line(error)}: it is not called any more")
