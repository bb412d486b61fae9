"""The order of the steps: baseline, search, winner, comparison."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentcore._sync import SyncTwin
from agentcore.data import Example
from agentcore.dspy_optimization._figures import (
    contradictions,
    improvement,
    key_improvements,
    targets_met,
    unknown_figure,
)
from agentcore.dspy_optimization._prepare import Job, prepare
from agentcore.dspy_optimization._progress import Progress
from agentcore.dspy_optimization._recorder import Recorder
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
from agentcore.evaluation import EvaluationReport, Limits, Metric, compare, evaluate
from agentcore.journal import (
    BaselineMeasured,
    EventSink,
    RunFinished,
    RunStarted,
    StageStarted,
    WarningRaised,
    WinnerMeasured,
)
from agentcore.lm import Guard, SearchStopped, redacted_logs
from agentcore.settings import MLflowConfig
from agentcore.tracking import MLflowTracker, program_state


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
        enable_tracking: False logs nothing anywhere.
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
            TrackingError: MLflow can't be reached at the start.
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


class _Run:
    """One optimization from its first event to its last."""

    def __init__(self, pipeline: OptimizationPipeline, job: Job, tracker: MLflowTracker | None) -> None:
        self.job = job
        self.constraints = job.request.constraints
        self.sink = pipeline.on_event
        self.max_concurrency = pipeline.max_concurrency
        self.gate = asyncio.Semaphore(pipeline.max_concurrency)
        self.progress = Progress()
        self.warnings: list[str] = []
        self.recorder = Recorder(tracker, job, self.warn)
        self.search = Search(job, self.progress, self.recorder, self.evaluate, self.emit, self.warn)
        if pipeline.on_progress:
            pipeline.on_progress(self.progress)

    async def execute(self) -> OptimizationResult:
        job = self.job
        try:
            with redacted_logs(job.secrets):
                await self.recorder.start()
                self.emit(
                    RunStarted,
                    run_id=self.recorder.run_id,
                    target_type=job.request.target.type,
                    target_id=job.request.target.id,
                    seed=job.seed,
                    split_sizes=job.splits.sizes,
                )
                for message in job.warnings:
                    self.warn(message)
                return await self.steps()
        except asyncio.CancelledError:
            await self.recorder.cancelled(self.search.best)
            self.emit(RunFinished, status="cancelled")
            raise
        except BaseException as error:
            known = isinstance(error, AgentCoreError)
            message = redact(str(error) if known else first_line(error), job.secrets)
            await self.recorder.failed(message)
            self.emit(RunFinished, status="failed", error=message)
            raise

    async def steps(self) -> OptimizationResult:
        started = time.monotonic()
        baseline, reserve = await self.measure("baseline", self.job.program)
        self.check_objectives(baseline)
        self.emit(BaselineMeasured, metrics=baseline.metrics.model_dump())
        self.stage("search")
        program, status = await self.search.run(self.call_limit(reserve))
        if program_state(program) == program_state(self.job.program):
            # Measured again, the same program would differ by noise, or by the cache's answers.
            self.warn("no candidate was better on the validation split: the program is kept as given")
            optimized = baseline
        else:
            optimized, _ = await self.measure("winner", program)
        result = self.result(program, status, baseline, optimized, time.monotonic() - started)
        self.emit(
            WinnerMeasured,
            metrics=optimized.metrics.model_dump(),
            improvement=result.improvement_percentage,
            p_value=result.statistical_significance,
        )
        self.stage("logging")
        await self.recorder.result(result, baseline, optimized)
        self.emit(RunFinished, status=status, summary={"run_id": self.recorder.run_id})
        return result.model_copy(update={"warnings": list(self.warnings)})

    async def measure(self, stage: str, program: Any) -> tuple[EvaluationReport, int]:
        """Evaluate a program on the test split; the report, and how many LM calls it took."""
        test, limit = self.job.splits.test, self.constraints.max_lm_calls
        if limit is not None and limit <= 2 * len(test):
            raise self.too_few_calls(len(test))
        # The guard stops the threads of synchronous programs, which a cancellation can't.
        guard = Guard(limit if stage == "baseline" else None, outage_after=None)
        self.stage(stage, len(test))
        try:
            with self.job.context(), self.progress.meter.stage(stage), guard.watching():
                report = await self.evaluate(program, test, max_error_rate=self.constraints.max_error_rate)
        except SearchStopped:
            raise self.too_few_calls(guard.calls) from None
        finally:
            guard.stop("cancelled")
        return report, guard.calls

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
        program: Any,
        examples: Sequence[Example],
        *,
        max_error_rate: float,
        only_lm_failures: bool = False,
    ) -> EvaluationReport:
        def count(_: object) -> None:
            self.progress.done += 1

        return await evaluate(
            program,
            examples,
            self.job.metric,
            lm=self.job.lm,
            limits=Limits(self.max_concurrency, max_error_rate, only_lm_failures, self.gate),
            on_record=count,
        )

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
        seconds: float,
    ) -> OptimizationResult:
        job, objectives = self.job, self.job.request.objectives
        comparison = compare(baseline, optimized, seed=job.seed)
        before, after = baseline.metrics, optimized.metrics
        gain = improvement(before, after, objectives)
        return OptimizationResult(
            optimization_id=job.optimization_id,
            run_id=self.recorder.run_id,
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
                "iterations": len(self.recorder.trials),
                "duration_seconds": seconds,
                "key_improvements": key_improvements(before, after, comparison, job.program, program),
                "trials": [point._asdict() for point in self.recorder.trials],
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
        self.warnings.append(message)
        self.emit(WarningRaised, message=message)

    def emit(self, kind: Any, **values: Any) -> None:
        if self.sink is None:
            return
        try:
            self.sink(kind(optimization_id=self.job.optimization_id, **values))
        except Exception as error:  # noqa: BLE001 - the caller's; a broken listener must not cost the run
            self.sink = None
            self.warn(f"on_event raised {first_line(error)}: it is not called any more")
