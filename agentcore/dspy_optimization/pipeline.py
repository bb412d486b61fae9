"""`OptimizationPipeline`: the entry point for optimizing a program."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agentcore._imports import import_litellm
from agentcore._sync import SyncTwin, blocking
from agentcore._threads import run_in_thread, start_in_thread
from agentcore.dspy_optimization._inputs import RunInputs, RunOptions
from agentcore.dspy_optimization._job import Job
from agentcore.dspy_optimization._log import ProgressSink
from agentcore.dspy_optimization._once import alone_under, new_id
from agentcore.dspy_optimization._plan import Estimate, estimate
from agentcore.dspy_optimization._prepare import prepare
from agentcore.dspy_optimization._results import read_result
from agentcore.dspy_optimization._resume import (
    LEASE_PATIENCE,
    PATIENCE,
    Unfinished,
    check_only_copy,
    check_same,
    check_same_job,
    check_same_request,
    check_trusted_imports,
    find_run,
    find_unfinished,
    recorded_settings,
    take_over,
)
from agentcore.dspy_optimization._run import Run
from agentcore.dspy_optimization._start import start_from as start_from_run
from agentcore.dspy_optimization.models import (
    OptimizationRequest,
    OptimizationResult,
    PerformanceMetrics,
)
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ConfigurationError
from agentcore.evaluation import Executor, Metric, resolve_executor
from agentcore.journal import EventSink
from agentcore.lm import check_stored_name, is_offline, parse_prices, recorded_model
from agentcore.settings import MLflowConfig, Settings
from agentcore.tracking import Experiments, destination_of

if TYPE_CHECKING:
    import dspy


class OptimizationPipeline:
    """Optimizes a DSPy program and measures the gain on examples that no optimizer saw.

    One pipeline may run several optimizations at once, each with its own run, LMs and spend.
    `pipeline.sync.run_optimization(...)` is the blocking version.

    Args:
        program: a `dspy.Module`, `"package.module:object"`, or a signature `"question -> answer"`;
            None builds one from the data's fields.
        metric: a function (see `agentcore.evaluation.Metric`), `"package.module:function"` or
            `"exact_match"`; None means exact match on the output fields.
        lm: a `dspy.LM` or its name; None uses AGENTCORE_LM, then `dspy.settings.lm`.
        prompt_lm: the LM that proposes instructions; None uses AGENTCORE_PROMPT_LM, then `lm`.
        mlflow_config: where to track; None reads the environment.
        enable_tracking: False logs nothing, so runs can't be resumed.
        max_concurrency: examples in flight at once, across all evaluations of a run.
        executor: where programs run: `"local"` (default), `"ray"`, or an `agentcore.evaluation.Executor`
            such as `RayExecutor(address=…)`.
        on_event: called in the event loop with every journal event.
        on_progress: called once when a run starts, with its `Progress`, which may be read at any time.
        progress: print each stage and trial to stderr, and the current figures after 15 s without a line;
            for scripts and notebooks.
        seed: for the search.
        split_seed: for the split of `training_data`, so that another `seed` is tested on the same examples.
        cluster: the field that names each example's cluster, such as a conversation or a document. Clusters
            are never divided between splits, and the paired tests take them as units.
        repeats: how often baseline and winner are run on each test example, without DSPy's cache; the means
            are compared. For programs whose answers vary.
        sealed: minimum number of examples to keep sealed: no stage of a run sees them, and the promotion gate
            needs them.
        agent: the agent to optimize: runs go to its development experiment with the standard tags, see
            `agentcore.tracking.Experiments`; None uses AGENTCORE_AGENT.
        start_from: a run whose optimized program to start from; its examples stay in their splits.
        prices: USD per million input and output tokens by model, `{"openai/x": (0.25, 2.0)}`; they override
            litellm's table.
        program_path: `package.module:object`, from which `program` is imported when its model is loaded.
    """

    def __init__(
        self,
        program: "dspy.Module | type[dspy.Module] | str | None" = None,
        metric: Metric | str | None = None,
        lm: "dspy.BaseLM | str | None" = None,
        *,
        prompt_lm: "dspy.BaseLM | str | None" = None,
        mlflow_config: MLflowConfig | None = None,
        enable_tracking: bool = True,
        max_concurrency: int = 16,
        executor: Executor | str | None = None,
        on_event: EventSink | None = None,
        on_progress: ProgressSink | None = None,
        progress: bool = False,
        seed: int = 0,
        split_seed: int = 0,
        cluster: str | None = None,
        repeats: int = 1,
        start_from: str | None = None,
        sealed: int = 0,
        agent: str | None = None,
        program_path: str | None = None,
        prices: Mapping[str, Any] | None = None,
    ) -> None:
        if max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency must be at least 1, not {max_concurrency}")
        if seed < 0:
            raise ConfigurationError(f"seed must be 0 or more, not {seed}")
        if repeats < 1:
            raise ConfigurationError(f"repeats must be at least 1, not {repeats}")
        if start_from is not None and not enable_tracking:
            raise ConfigurationError("start_from needs tracking: it loads the run's program from MLflow")
        self.mlflow_config = mlflow_config or (MLflowConfig() if enable_tracking else None)
        self.enable_tracking = enable_tracking
        tags: dict[str, str] = {}
        self.agent = agent or Settings().agent
        if self.agent is not None and self.mlflow_config is not None:
            experiments = Experiments(self.agent, self.mlflow_config)
            self.mlflow_config = experiments.stage_config("development")
            tags = experiments.tags("development", run_type="optimization", dataset_type="evaluation")
        self.options = RunOptions(
            program=program,
            metric=metric,
            lm=lm,
            prompt_lm=prompt_lm,
            program_path=program_path,
            seed=seed,
            split_seed=split_seed,
            cluster=cluster,
            repeats=repeats,
            start_from=start_from,
            sealed=sealed,
            tags=tags,
            max_concurrency=max_concurrency,
            executor=resolve_executor(executor),
            on_event=on_event,
            on_progress=on_progress,
            progress=progress,
            prices=parse_prices(prices or {}),
        )

    @cached_property
    def sync(self) -> "SyncPipeline":
        """The blocking version of this pipeline."""
        return SyncPipeline(self)

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

        A single data set is split into train, validation and test (see `Dataset.split`). Cancelling stops
        the search at its next LM call, keeps the best candidate so far and marks the run KILLED.

        Args:
            request: what to optimize, for which objectives, within which limits.
            baseline_metrics: the caller's own figures, logged as `baseline_*`; the baseline is measured all
                the same.
            training_data: anything `load_dataset` accepts.
            validation_data, test_data: the caller's own splits; pass both or neither.
            once: an idempotency key, such as a Job's uid: an unfinished run of this name in the journal is
                resumed. The journal keeps a run for 7 days after MLflow has it.

        Raises:
            ConfigurationError, DataError, MetricError: invalid input; the message says where.
            RunFinishedError: the run named by `once` has already finished.
            ConfigurationError: it was started with different arguments, or another process is working on it.
            JournalError: the journal can't be written; the run can be resumed once it can.
            LMUnavailableError: the LM failed; the run is FAILED, nothing is scored 0.
            EvaluationError: too many examples failed, or an objective can't be measured.
        """
        inputs = RunInputs(request, training_data, validation_data, test_data, baseline_metrics)
        if once is not None:
            return await self._run_once(once, inputs)
        job = await self._prepared(inputs)
        tracker = MLflowTracker(self.mlflow_config) if self.enable_tracking else None
        return await Run(job, self.options, tracker).execute()

    async def _prepared(self, inputs: RunInputs, optimization_id: str | None = None) -> Job:
        """Resolve and check a request in a thread: that reads files and imports the user's code."""
        options, start = self.options, None
        if options.start_from is not None:
            tracker = MLflowTracker(self._config("start from a run"))
            start = await start_from_run(tracker, options.start_from, options.program, options.program_path)

        def make() -> Job:
            job = prepare(inputs, options, optimization_id=optimization_id, start=start)
            if not is_offline(job.lm) or not is_offline(job.prompt_lm):
                import_litellm()  # before threads need it
            return job

        return await run_in_thread(make)

    async def _run_once(self, name: str, inputs: RunInputs) -> OptimizationResult:
        if not self.enable_tracking:
            raise ConfigurationError("once needs tracking: it looks up the run in the journal")
        tracker = MLflowTracker(self.mlflow_config)
        journal, _ = await tracker.opened()
        async with alone_under(name, journal, LEASE_PATIENCE) as stream:
            key = new_id(name) if stream is None else stream.id
            job = await self._prepared(inputs, key)
            if stream is None:
                return await Run(job, self.options, tracker).execute()
            _, _, recorded = await run_in_thread(lambda: find_run(key))
            check_same_job(job, recorded.spec, name)
            check_same_request(job, recorded.spec, name)
            return await self._resume(key, LEASE_PATIENCE)

    async def plan(
        self,
        request: OptimizationRequest | Mapping[str, Any],
        training_data: Any = None,
        *,
        validation_data: Any = None,
        test_data: Any = None,
        latency: float | None = None,
    ) -> Estimate:
        """Estimate what `run_optimization` would take (calls, tokens, cost, time) and the smallest gain that
        the test split can show. Makes no LM call.

        Args:
            latency: seconds per LM call; None assumes 1.5 (for the offline engine, its own).

        Raises:
            ConfigurationError, DataError: invalid input, as for `run_optimization`.
        """
        inputs = RunInputs(request, training_data, validation_data, test_data)

        job = await self._prepared(inputs)
        options = self.options
        return await run_in_thread(lambda: estimate(job, options.prices, options.max_concurrency, latency))

    async def resume(self, run_id: str) -> OptimizationResult:
        """Resume an optimization that failed, was stopped, or whose process died.

        Baseline results, candidates, finished trials and spend are taken from the journal and not paid for
        again; the same MLflow run continues. The pipeline must match the original one: program, metric,
        models and seed are compared. The examples come from the journal.

        Args:
            run_id: the run's MLflow id, its local id, or the optimization's id.

        Raises:
            ConfigurationError: no such run, another process is working on it, or this pipeline differs from
                the one that started it.
            RunFinishedError: it has already finished.
            and what `run_optimization` raises.
        """
        return await self._resume(run_id, PATIENCE)

    async def _resume(self, run_id: str, patience: float) -> OptimizationResult:
        config = self._config("resume a run")
        tracker = MLflowTracker(config)
        journal, _ = await tracker.opened()
        run = await _taken_over(run_id, patience, journal.abandon)
        try:
            destination = destination_of(config)
            if run.stream.destination != destination:
                raise ConfigurationError(
                    f"run {run_id} is tracked at {run.stream.destination}, but this pipeline tracks at "
                    f"{destination}: set MLFLOW_TRACKING_URI"
                )
            await check_only_copy(tracker, run)
            # With the settings in effect then: a later version may have other defaults.
            request = {**run.spec["request"], "optimizer_settings": recorded_settings(run.spec)}
            inputs = RunInputs(request, run.data, baseline_metrics=run.spec["baseline"])
            options = replace(self.options, seed=run.spec["seed"])
            start = None
            if options.start_from is not None:
                start = await start_from_run(
                    tracker, options.start_from, options.program, options.program_path
                )
            key = run.stream.id
            job = await run_in_thread(
                lambda: prepare(inputs, options, optimization_id=key, splits=run.splits, start=start)
            )
            check_same(job, run.spec, run_id)
            resumed = Run(job, self.options, tracker, run)
        except BaseException:
            journal.abandon(run.lease)
            raise
        return await resumed.execute()

    @classmethod
    def from_journal(
        cls,
        run_id: str,
        *,
        lm: "dspy.BaseLM | str | None" = None,
        prompt_lm: "dspy.BaseLM | str | None" = None,
        **arguments: Any,
    ) -> "OptimizationPipeline":
        """Rebuild the pipeline that started a run from the journal, to `resume` the run. Blocking.

        Args:
            lm: the model, if it needs more than the name, the address and the generation settings that the
                run recorded, such as headers.
            prompt_lm: the model that proposes instructions, likewise.
            arguments: further arguments of the pipeline, except program, metric, models and seed.

        In a journal that others may write to (Postgres), the program and the metric are imported only from
        the packages in `AGENTCORE_TRUSTED_MODULES`.

        Raises:
            ConfigurationError: no such run, or its program or metric can't be imported, or may not be.
            RunFinishedError: it has already finished.
        """
        journal, _, job = find_unfinished(run_id)
        spec, source = job.spec, job.spec["source"]
        by_hand = "Resume it from the script that started it, with pipeline.resume(run_id)"
        if source["program"] is None and not source["from_data"] and not source.get("start_from"):
            raise ConfigurationError(
                f"the program of run {run_id} ({spec['program']['class']}) can't be imported. {by_hand}"
            )
        if source["metric"] is None and spec["metric"] != "exact_match":
            raise ConfigurationError(
                f"the metric of run {run_id} ({spec['metric']}) can't be imported. {by_hand}"
            )
        if journal.shared:
            check_trusted_imports(source["program"], source["metric"])
            if source["program"] is None and source.get("start_from"):
                raise ConfigurationError(
                    f"the journal says to load the program of run {source['start_from']}, and others may "
                    f"write to it. {by_hand}"
                )
        own = spec["prompt_lm"] != spec["lm"]
        stored = [] if lm else [spec["lm"]]
        if own and not prompt_lm:
            stored.append(spec["prompt_lm"])
        for item in stored if journal.shared else ():
            check_stored_name(item["model"])
        if journal.shared:  # others may write to it: they must not choose where calls go
            model, proposer = spec["lm"]["model"], spec["prompt_lm"]["model"]
        else:
            model, proposer = recorded_model(spec["lm"]), recorded_model(spec["prompt_lm"])
        return cls(
            source["program"],
            source["metric"],
            lm or model,
            prompt_lm=prompt_lm or (proposer if own else None),
            seed=spec["seed"],
            repeats=spec.get("repeats", 1),
            cluster=spec.get("cluster"),
            start_from=source.get("start_from"),
            **arguments,
        )

    async def result(self, run_id: str) -> OptimizationResult:
        """The result of a finished run, from the journal or from MLflow; its `program` is None.

        `MLflowTracker.load_model_artifact` loads the program.

        Raises:
            ConfigurationError: no such run, or it has no result: it did not finish.
            ArtifactError: MLflow's copy is missing or was changed.
            TrackingError: the journal no longer has the run, and MLflow can't be reached.
        """
        return await read_result(MLflowTracker(self._config("read a result")), run_id)

    async def tracking_id(self, run_id: str | None) -> str | None:
        """A run's MLflow id, or its local id until MLflow has the run."""
        if run_id is None or self.mlflow_config is None:
            return run_id
        return await MLflowTracker(self.mlflow_config).tracking_id(run_id) or run_id

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until MLflow has everything that this process logged to it; see `MLflowTracker.flush`."""
        if self.mlflow_config is not None:
            await MLflowTracker(self.mlflow_config).flush(timeout)

    def _config(self, purpose: str) -> MLflowConfig:
        if self.mlflow_config is None:
            raise ConfigurationError(f"a pipeline without tracking can't {purpose}: nothing is stored")
        return self.mlflow_config


class SyncPipeline(SyncTwin):
    """`OptimizationPipeline`, blocking."""

    run_optimization = blocking(OptimizationPipeline.run_optimization)
    plan = blocking(OptimizationPipeline.plan)
    resume = blocking(OptimizationPipeline.resume)
    result = blocking(OptimizationPipeline.result)
    tracking_id = blocking(OptimizationPipeline.tracking_id)
    flush = blocking(OptimizationPipeline.flush)


async def _taken_over(run_id: str, patience: float, abandon: Callable[[Any], Any]) -> Unfinished:
    taking = start_in_thread(lambda: take_over(run_id, patience))
    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        # The thread keeps running, and nobody else would release its lease.
        def give_up(done: asyncio.Future[Unfinished]) -> None:
            if not done.cancelled() and done.exception() is None:
                abandon(done.result().lease)

        taking.add_done_callback(give_up)
        raise
