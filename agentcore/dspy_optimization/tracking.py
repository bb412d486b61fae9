"""`MLflowTracker`: logs optimizations to MLflow. Importing this module loads neither MLflow nor DSPy."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agentcore._sync import blocking
from agentcore.data import Dataset, Splits
from agentcore.dspy_optimization._entries import OptimizationEntries, trial_metrics
from agentcore.dspy_optimization._plots import TrialPoint
from agentcore.settings import MLflowConfig
from agentcore.tracking import Archive, RunTracker, SyncRunTracker, archive, plan_archive

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from agentcore.dspy_optimization.models import OptimizationResult
    from agentcore.evaluation import Comparison, EvaluationReport, PerformanceMetrics

__all__ = ["MLflowConfig", "MLflowTracker", "SyncMLflowTracker", "TrialPoint"]


class MLflowTracker(RunTracker):
    """Logs an optimization to MLflow, under the names in docs/architecture.md.

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
        """`trial_score` and `best_score` at step `trial`."""
        await self._log(self._run(run_id), [trial_metrics(trial, score, best)])

    # Data, details, results

    async def log_training_data(
        self, data: Dataset, splits: Splits | None = None, *, run_id: str | None = None
    ) -> None:
        """`training_data.json`, and the data (or each split) as a run input with its digest."""
        await self._log(self._run(run_id), self.entries.training_data(data, splits))

    async def log_optimization_details(
        self, details: Mapping[str, Any], *, run_id: str | None = None
    ) -> None:
        """`algorithm_parameters.json`, `key_improvements.txt`, `iterations`, `duration_seconds`.

        Args:
            details: `algorithm` (str), `parameters` (dict), `key_improvements` (list of str),
                `iterations` (int), `duration_seconds` (float); each optional.
        """
        await self._log(self._run(run_id), self.entries.details(details))

    async def log_evaluation(
        self,
        test: Dataset,
        baseline: "EvaluationReport",
        optimized: "EvaluationReport",
        comparison: "Comparison",
        *,
        run_id: str | None = None,
    ) -> None:
        """`test_examples.json`: every test example with both predictions and scores, and which flipped."""
        await self._log(self._run(run_id), self.entries.evaluation(test, baseline, optimized, comparison))

    async def log_result(self, result: "OptimizationResult", *, run_id: str | None = None) -> None:
        """All metrics of a result, its details, and the result itself as `result.json`."""
        await self._log(self._run(run_id), self.entries.result(result))

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

    async def get_best_run(
        self,
        metric: str = "improvement_percentage",
        order_by: str = "DESC",
        *,
        tags: Mapping[str, str] | None = None,
        target_id: str | None = None,
    ) -> "Run | None":
        """The FINISHED run with the best finite `metric`, ordered by the server; None if there is none.

        Args:
            order_by: DESC or ASC.
            tags: only consider runs with these tags.
            target_id: only consider runs of this target.
        """
        wanted = {**(tags or {}), **({} if target_id is None else {"target_id": target_id})}
        return await super().get_best_run(metric, order_by, tags=wanted)

    async def archive_runs(
        self,
        older_than: timedelta,
        *,
        keep_best: int = 10,
        metric: str = "improvement_percentage",
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
            metric: str = "improvement_percentage",
            order_by: str = "DESC",
            *,
            tags: Mapping[str, str] | None = None,
            target_id: str | None = None,
        ) -> "Run | None": ...
    else:
        get_best_run = blocking(MLflowTracker.get_best_run)
    archive_runs = blocking(MLflowTracker.archive_runs)
