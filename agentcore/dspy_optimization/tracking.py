"""`MLflowTracker`: logs optimizations to MLflow. Importing this module loads neither MLflow nor DSPy."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agentcore._sync import blocking
from agentcore.data import Dataset, Splits
from agentcore.dspy_optimization._entries import TEST_EXAMPLES, OptimizationEntries, trial_metrics
from agentcore.dspy_optimization._plots import TrialPoint
from agentcore.errors import ConfigurationError
from agentcore.settings import MLflowConfig
from agentcore.tracking import (
    Archive,
    RunTracker,
    SyncRunTracker,
    archive,
    best_proven,
    newest_proven,
    plan_archive,
    user_name,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from agentcore.dspy_optimization.models import OptimizationResult
    from agentcore.evaluation import Comparison, EvaluationReport, PerformanceMetrics

__all__ = ["MLflowConfig", "MLflowTracker", "SyncMLflowTracker", "TrialPoint"]


REVEALED_TAG = "agentcore.test_revealed"


class MLflowTracker(RunTracker):
    """Logs an optimization to MLflow, under the names in docs/reference.md.

    No method blocks the event loop. See `RunTracker` for the arguments and exceptions.
    """

    _entries = OptimizationEntries
    entries: OptimizationEntries

    @cached_property
    def sync(self) -> "SyncMLflowTracker":
        """The blocking version of this tracker; each thread has its own current run."""
        return SyncMLflowTracker(self, carry=[self._current])

    # Metrics

    async def log_baseline_metrics(
        self, metrics: "PerformanceMetrics", *, measured: bool = False, run_id: str | None = None
    ) -> None:
        """`baseline_*`, or `measured_baseline_*` if `measured`, next to figures that the caller passed."""
        prefix = "measured_baseline_" if measured else "baseline_"
        await self._log(self._run(run_id), self.entries.performance(prefix, metrics))

    async def log_optimized_metrics(
        self, metrics: "PerformanceMetrics", *, run_id: str | None = None
    ) -> None:
        """Log the optimized program's metrics as `optimized_…`."""
        await self._log(self._run(run_id), self.entries.performance("optimized_", metrics))

    async def log_improvement_metrics(
        self,
        baseline: "PerformanceMetrics",
        optimized: "PerformanceMetrics",
        *,
        improvement_percentage: float,
        statistical_significance: float,
        run_id: str | None = None,
    ) -> None:
        """Improvements, positive if better: cost in USD, latency in ms, the rest as fractions.

        A difference is omitted if either value is unknown.

        Args:
            improvement_percentage: a fraction: 0.25 means 25%.
            statistical_significance: a p-value.
        """
        drafts = self.entries.improvement(
            baseline, optimized, improvement_percentage, statistical_significance
        )
        await self._log(self._run(run_id), drafts)

    async def log_trial(self, trial: int, score: float, best: float, *, run_id: str | None = None) -> None:
        """`validation_score` and `best_validation_score` at step `trial`."""
        await self._log(self._run(run_id), [trial_metrics(trial, score, best)])

    # Data, details, results

    async def log_training_data(
        self, data: Dataset, splits: Splits | None = None, *, run_id: str | None = None
    ) -> None:
        """`training_data.json`, and the data (or each split) as a run input with its digest."""
        await self._log(self._run(run_id), lambda: self.entries.training_data(data, splits))

    async def log_optimization_details(
        self, details: Mapping[str, Any], *, run_id: str | None = None
    ) -> None:
        """`algorithm_parameters.json`, `key_improvements.txt`, `iterations`, `duration_seconds`.

        Args:
            details: `algorithm` (str), `parameters` (dict), `key_improvements` (list of str),
                `iterations` (int), `duration_seconds` (float); each optional.
        """
        await self._log(self._run(run_id), lambda: self.entries.details(details))

    async def log_evaluation(
        self,
        test: Dataset,
        baseline: "EvaluationReport",
        optimized: "EvaluationReport",
        *,
        run_id: str | None = None,
    ) -> None:
        """`test_examples.json`: every test example with both predictions and scores, and which flipped."""
        await self._log(self._run(run_id), lambda: self.entries.evaluation(test, baseline, optimized))

    async def log_result(self, result: "OptimizationResult", *, run_id: str | None = None) -> None:
        """All metrics of a result, its details, and the result itself as `result.json`."""
        await self._log(self._run(run_id), lambda: self.entries.result(result))

    async def log_plots(
        self,
        trials: Sequence[TrialPoint],
        baseline: float,
        optimized: float,
        comparison: "Comparison",
        *,
        run_id: str | None = None,
    ) -> None:
        """`plots/trials.png` and `plots/comparison.png`, rendered on delivery."""
        await self._log(self._run(run_id), self.entries.plots(trials, baseline, optimized, comparison))

    # Search

    async def reveal_test(self, run_id: str) -> dict[str, Any]:
        """The content of a run's `test_examples.json`. The run's tag `agentcore.test_revealed` then says when
        and by whom: whoever builds on single test examples has no unseen test any more.

        Raises:
            ArtifactError: the run has none; it failed or was stopped.
        """
        run = await self.get_run(run_id)
        content: dict[str, Any] = await self.read_json(run_id, TEST_EXAMPLES)
        earlier = run.data.tags.get(REVEALED_TAG)
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC by {user_name()}"
        await self.set_tags({REVEALED_TAG: f"{earlier}; {now}" if earlier else now}, run_id=run_id)
        return content

    async def get_best_run(
        self,
        metric: str | None = None,
        order_by: str = "DESC",
        *,
        tags: Mapping[str, str] | None = None,
        target_id: str | None = None,
    ) -> "Run | None":
        """The best FINISHED run, ordered by the server; None if there is none.

        Without a `metric`: among the runs with a proven gain in quality (`improvement_low` above 0) that have
        the target and the test examples of the newest of them, the one with the best lower bound of its
        quality (`optimized_quality_low`). A large gain over a bad baseline doesn't win.

        Args:
            metric: rank by this metric instead, among the runs that have a finite one.
            order_by: DESC or ASC.
            tags: only consider runs with these tags.
            target_id: only consider runs of this target.
        """
        wanted = {**(tags or {}), **({} if target_id is None else {"target_id": target_id})}
        if metric is not None:
            return await super().get_best_run(metric, order_by, tags=wanted)
        if order_by.upper() != "DESC":
            raise ConfigurationError(f"order_by={order_by!r} needs a metric: pass metric= as well")
        newest = await self._first(newest_proven(wanted))
        if newest is None:
            return None
        tags, digest = newest.data.tags, newest.data.params.get("test_digest")
        same = {name: tags[name] for name in ("target_type", "target_id") if name in tags}
        return await self._first(best_proven({**wanted, **same}, digest))

    async def archive_runs(
        self,
        older_than: timedelta,
        *,
        keep_best: int = 10,
        metric: str = "optimized_quality_score",
        keep_registered: bool = True,
        with_models: bool = False,
        dry_run: bool = True,
    ) -> Archive:
        """Delete old runs of the experiment in MLflow, which can restore them until `mlflow gc`.

        Never deletes runs whose model has a registry alias, runs that have not ended, or the best runs.

        Args:
            older_than: minimum age, counted from the start of a run.
            keep_best: how many of the best runs to keep, however old.
            metric: the metric that ranks them.
            keep_registered: whether to keep all runs with a registered model, even without an alias.
            with_models: also delete their LoggedModels, which MLflow can't restore, except registered ones.
                A run's artifacts still contain the optimized program.
            dry_run: only report what would be deleted.

        Raises:
            TrackingError: MLflow can't be reached or refuses.
        """
        before_ms = int((datetime.now(UTC) - older_than).timestamp() * 1000)
        name = self.config.experiment_name

        def work(client: "MlflowClient") -> Archive:
            plan = plan_archive(client, name, before_ms, keep_best, metric, keep_registered=keep_registered)
            if not with_models:
                plan.models.clear()
            if not dry_run:
                archive(client, plan)
            return plan

        return await self.gateway.call(work)


class SyncMLflowTracker(SyncRunTracker):
    """`MLflowTracker`, blocking."""

    log_baseline_metrics = blocking(MLflowTracker.log_baseline_metrics)
    log_optimized_metrics = blocking(MLflowTracker.log_optimized_metrics)
    log_improvement_metrics = blocking(MLflowTracker.log_improvement_metrics)
    log_trial = blocking(MLflowTracker.log_trial)
    log_training_data = blocking(MLflowTracker.log_training_data)
    log_optimization_details = blocking(MLflowTracker.log_optimization_details)
    log_evaluation = blocking(MLflowTracker.log_evaluation)
    log_result = blocking(MLflowTracker.log_result)
    log_plots = blocking(MLflowTracker.log_plots)
    if TYPE_CHECKING:  # an assignment would keep the type of the base class's

        def get_best_run(
            self,
            metric: str | None = None,
            order_by: str = "DESC",
            *,
            tags: Mapping[str, str] | None = None,
            target_id: str | None = None,
        ) -> "Run | None": ...
    else:
        get_best_run = blocking(MLflowTracker.get_best_run)
    archive_runs = blocking(MLflowTracker.archive_runs)
    reveal_test = blocking(MLflowTracker.reveal_test)
