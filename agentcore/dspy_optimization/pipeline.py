"""`OptimizationPipeline`: the entry to optimizing a program."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from agentcore._sync import SyncTwin
from agentcore._threads import run_in_thread, start_in_thread
from agentcore.dspy_optimization._once import alone_under, new_id
from agentcore.dspy_optimization._plan import Estimate, estimate
from agentcore.dspy_optimization._prepare import Job, prepare
from agentcore.dspy_optimization._progress import Progress
from agentcore.dspy_optimization._resume import (
    LEASE_PATIENCE,
    PATIENCE,
    Unfinished,
    check_same,
    check_same_request,
    find_run,
    find_unfinished,
    take_over,
)
from agentcore.dspy_optimization._run import Run
from agentcore.dspy_optimization.models import (
    OptimizationRequest,
    OptimizationResult,
    PerformanceMetrics,
)
from agentcore.errors import ConfigurationError
from agentcore.evaluation import Executor, Metric, resolve_executor
from agentcore.journal import EventSink
from agentcore.lm import parse_prices
from agentcore.settings import MLflowConfig
from agentcore.tracking import MLflowTracker, destination_of


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
        executor: where programs run: `"local"` (default), `"ray"`, or an `agentcore.evaluation.Executor`
            such as `RayExecutor(address=…)`.
        on_event: called in the event loop with every journal event.
        on_progress: called once with the `Progress` of a run that starts, which may be read at any time.
        seed: of splits, search and resampling.
        prices: USD per million input and output tokens by model, `{"openai/x": (0.25, 2.0)}`; they come
            before litellm's own table.
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
        executor: Executor | str | None = None,
        on_event: EventSink | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        seed: int = 0,
        program_path: str | None = None,
        prices: Mapping[str, Any] | None = None,
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
        self.executor = resolve_executor(executor)
        self.on_event = on_event
        self.on_progress = on_progress
        self.seed = seed
        self.program_path = program_path
        self.prices = parse_prices(prices or {})

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
        once: str | None = None,
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
            once: a name that makes the call safe to repeat, such as a Job's uid: an unfinished run of this
                name in the journal goes on. The journal keeps a run for 7 days after MLflow has it.

        Raises:
            ConfigurationError, DataError, MetricError: a mistake of the caller's; the message says where.
            RunFinishedError: the run of the name `once` has finished.
            ConfigurationError: it was begun with other arguments, or another process is working on it.
            JournalError: the journal can't be written; the run can be resumed once it can.
            LMUnavailableError: the LM failed; the run is FAILED, nothing is scored 0.
            EvaluationError: too many examples failed, or an objective can't be measured.
        """

        def prepared(key: str | None) -> Job:
            return self._prepared(request, training_data, validation_data, test_data, baseline_metrics, key)

        if once is not None:
            return await self._run_once(once, prepared)
        job = prepared(None)
        tracker = MLflowTracker(self.mlflow_config) if self.enable_tracking else None
        return await self._run(job, tracker).execute()

    async def _run_once(self, name: str, prepared: Callable[[str], Job]) -> OptimizationResult:
        if not self.enable_tracking:
            raise ConfigurationError("once needs tracking: the run is found again by its journal")
        tracker = MLflowTracker(self.mlflow_config)
        journal, _ = await tracker.opened()
        async with alone_under(name, journal, LEASE_PATIENCE) as stream:
            job = prepared(new_id(name) if stream is None else stream.id)
            if stream is None:
                return await self._run(job, tracker).execute()
            _, _, _, recorded = await run_in_thread(lambda: find_run(job.optimization_id))
            check_same(job, recorded.spec, f"named {name!r}")
            check_same_request(job, recorded.spec, name)
            return await self._resume(stream.id, LEASE_PATIENCE)

    async def plan(
        self,
        request: OptimizationRequest | Mapping[str, Any],
        training_data: Any = None,
        *,
        validation_data: Any = None,
        test_data: Any = None,
        latency: float | None = None,
    ) -> Estimate:
        """About what `run_optimization` would take: calls, tokens, cost, time; and the smallest gain that the
        test split can show. Makes no LM call.

        Args:
            latency: seconds of an LM call; None assumes 1.5 (for the offline engine, its own).

        Raises:
            ConfigurationError, DataError: a mistake of the caller's, as `run_optimization` would find it.
        """

        def make() -> Estimate:
            job = self._prepared(request, training_data, validation_data, test_data)
            return estimate(job, self.prices, self.max_concurrency, latency)

        return await run_in_thread(make)

    async def resume(self, run_id: str) -> OptimizationResult:
        """Go on with an optimization whose process died, that failed, or that was stopped.

        Baseline results, candidates, finished trials and spend are taken from the journal and not paid for
        again; the same MLflow run continues. The pipeline must be made as it was for the run: program,
        metric, models and seed are compared; the examples are in the journal.

        Args:
            run_id: MLflow's id, the local one, or the optimization's.

        Raises:
            ConfigurationError: no such run, another process is working on it, or this pipeline differs from
                the one that started it.
            RunFinishedError: it has finished.
            and what `run_optimization` raises.
        """
        return await self._resume(run_id, PATIENCE)

    async def _resume(self, run_id: str, patience: float) -> OptimizationResult:
        if self.mlflow_config is None:
            raise ConfigurationError("a pipeline without tracking keeps no run that could be resumed")
        tracker = MLflowTracker(self.mlflow_config)
        journal, _ = await tracker.opened()
        taking = start_in_thread(lambda: take_over(run_id, patience))
        try:
            run = await asyncio.shield(taking)
        except asyncio.CancelledError:
            # Its thread goes on, and nobody would release what it gets.
            def give_up(done: asyncio.Future[Unfinished]) -> None:
                if not done.cancelled() and done.exception() is None:
                    journal.abandon(done.result().lease)

            taking.add_done_callback(give_up)
            raise
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
            journal.abandon(run.lease)
            raise
        return await self._run(job, tracker, run).execute()

    @classmethod
    def from_journal(cls, run_id: str, *, lm: Any = None, **arguments: Any) -> "OptimizationPipeline":
        """The pipeline that started a run, made of what the journal says, to `resume` the run. Blocking.

        Args:
            lm: the model, where the run was given an object.
            arguments: of the pipeline, but for program, metric, models and seed.

        Raises:
            ConfigurationError: no such run, or it had a program or metric that can't be imported.
        """
        _, _, job = find_unfinished(run_id)
        spec, source = job.spec, job.spec["source"]
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

    def _prepared(
        self,
        request: Any,
        training: Any,
        validation: Any,
        test: Any,
        baseline: Any = None,
        key: str | None = None,
    ) -> Job:
        return prepare(
            request,
            program=self.program,
            program_path=self.program_path,
            metric=self.metric,
            lm=self.lm,
            prompt_lm=self.prompt_lm,
            seed=self.seed,
            training_data=training,
            validation_data=validation,
            test_data=test,
            baseline_metrics=baseline,
            optimization_id=key,
        )

    def _run(self, job: Job, tracker: MLflowTracker | None, resumed: Unfinished | None = None) -> Run:
        return Run(
            job,
            tracker,
            max_concurrency=self.max_concurrency,
            prices=self.prices,
            on_event=self.on_event,
            on_progress=self.on_progress,
            executor=self.executor,
            resumed=resumed,
        )
