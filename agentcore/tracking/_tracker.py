"""`MLflowTracker`: what an optimization leaves in MLflow."""

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agentcore._threads import run_in_thread
from agentcore._version import __version__
from agentcore.data import Dataset, Splits
from agentcore.errors import ArtifactError
from agentcore.evaluation import Comparison, EvaluationReport, PerformanceMetrics
from agentcore.journal import ModelLogged, TrialPoint
from agentcore.tracking._archive import Archive, delete_model, plan_archive
from agentcore.tracking._entries import Draft
from agentcore.tracking._requests import MODEL_TAG
from agentcore.tracking._run_tracker import RunTracker, scratch
from agentcore.tracking._runs import TrackedRun

PROGRAM_TAG = "agentcore.program."


class MLflowTracker(RunTracker):
    """Logs an optimization to MLflow under the names that docs/architecture.md lists.

    No method blocks the event loop. See `RunTracker` for the arguments, and for what is raised.
    """

    # Figures

    async def log_baseline_metrics(
        self, metrics: PerformanceMetrics, *, measured: bool = False, run_id: str | None = None
    ) -> None:
        """`baseline_*`; with `measured`, `measured_baseline_*`, beside figures that the caller gave."""
        prefix = "measured_baseline_" if measured else "baseline_"
        await self._log(self._run(run_id), self.entries.performance(prefix, metrics))

    async def log_optimized_metrics(self, metrics: PerformanceMetrics, *, run_id: str | None = None) -> None:
        await self._log(self._run(run_id), self.entries.performance("optimized_", metrics))

    async def log_improvement_metrics(
        self,
        baseline: PerformanceMetrics,
        optimized: PerformanceMetrics,
        *,
        improvement_percentage: float,
        statistical_significance: float,
        run_id: str | None = None,
    ) -> None:
        """Differences in the better direction. Cost in USD, latency in ms, the rest as fractions.

        A difference is left out where one of its figures is unknown.

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
        await self._log(self._run(run_id), [*self.entries.trial(trial, score, best)])

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
        baseline: EvaluationReport,
        optimized: EvaluationReport,
        comparison: Comparison,
        *,
        run_id: str | None = None,
    ) -> None:
        """`test_examples.json`: every test example with both predictions and scores, and which flipped."""
        await self._log(self._run(run_id), self.entries.evaluation(test, baseline, optimized, comparison))

    async def log_result(self, result: Any, *, run_id: str | None = None) -> None:
        """All figures of an `OptimizationResult`, and its details."""
        await self._log(self._run(run_id), self.entries.result(result))

    async def log_plots(
        self,
        trials: Sequence[TrialPoint],
        baseline: float,
        optimized: float,
        comparison: Comparison,
        *,
        run_id: str | None = None,
    ) -> None:
        """`plots/trials.png` and `plots/comparison.png`, drawn when they are delivered."""
        await self._log(self._run(run_id), self.entries.plots(trials, baseline, optimized, comparison))

    # Models

    async def log_model_artifact(
        self,
        model: Any,
        artifact_name: str = "optimized_model",
        metadata: Mapping[str, Any] | None = None,
        *,
        program_path: str | None = None,
        default_lm: str | None = None,
        as_logged_model: bool = True,
        run_id: str | None = None,
    ) -> None:
        """Keep a `dspy.Module` as `models/{artifact_name}.*` and as an MLflow LoggedModel, whose id
        `model_id` tells once it is delivered.

        State and manifest are JSON; the pickle beside them holds no LM and no key. Their digests also stand
        on the run as a tag, in another store than the files.

        Args:
            metadata: anything JSON can hold, for the manifest.
            program_path: `package.module:object`, where the program can be imported from.
            default_lm: the LM's name that the served model uses where AGENTCORE_LM is not set.
            as_logged_model: False keeps the files only.
        """
        run = self._run(run_id)
        drafts = await self.model_drafts(
            model,
            artifact_name,
            metadata,
            program_path=program_path,
            default_lm=default_lm,
            as_logged_model=as_logged_model,
        )
        await self._log(run, drafts)

    async def model_drafts(
        self,
        model: Any,
        artifact_name: str,
        metadata: Mapping[str, Any] | None,
        *,
        program_path: str | None,
        default_lm: str | None = None,
        as_logged_model: bool = True,
    ) -> list[Draft]:
        """The entries of a model; see `log_model_artifact`."""
        import dspy

        from agentcore.tracking._program_files import save_program

        def save() -> tuple[dict[str, str], list[Draft]]:
            with scratch() as directory:
                digests = save_program(
                    model,
                    directory,
                    artifact_name,
                    metadata=metadata,
                    program_path=program_path,
                    secrets=self.secrets,
                )
                files: list[Draft] = []
                for name in digests:
                    files += self.entries.written(f"models/{name}", (directory / name).read_bytes())
                return digests, files

        digests, drafts = await run_in_thread(save)
        drafts += self.entries.tags({PROGRAM_TAG + artifact_name: json.dumps(digests)})
        if as_logged_model:
            drafts.append(
                ModelLogged(
                    name=artifact_name,
                    # The served model has no use for the pickle.
                    files={name: sha for name, sha in digests.items() if not name.endswith(".pkl")},
                    requirements=[f"agentcore=={__version__}", f"dspy=={dspy.__version__}"],
                    default_lm=default_lm,
                )
            )
        return drafts

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

        Never goes: a run whose model an alias of the registry names, one that has not ended, and those of
        the best.

        Args:
            older_than: by the runs' start.
            keep_best: how many of the best stay, however old.
            metric: by which they are the best.
            keep_registered: whether all runs with a registered model stay, also without an alias.
            with_models: delete their LoggedModels too, which MLflow can't restore; never a registered one.
                A run's artifacts hold the optimized program still.
            dry_run: only tell what would go.

        Raises:
            TrackingError: MLflow can't be reached or refuses.
        """
        before_ms = int((datetime.now(UTC) - older_than).timestamp() * 1000)

        def archive(client: Any) -> Archive:
            experiment = client.get_experiment_by_name(self.config.experiment_name)
            if experiment is None:
                return Archive()
            plan = plan_archive(
                client,
                experiment.experiment_id,
                before_ms,
                keep_best,
                metric,
                keep_registered=keep_registered,
            )
            if not with_models:
                plan.models.clear()
            if not dry_run:
                for model_id in plan.models:
                    delete_model(client, model_id)
                for run in plan.runs:
                    client.delete_run(run.run_id)
            return plan

        return await self._client.call(archive)

    async def model_id(self, run_id: str, artifact_name: str = "optimized_model") -> str | None:
        """The id of a run's LoggedModel (`models:/{id}`); None where it has none."""
        return (await self.get_run(run_id)).tags.get(MODEL_TAG + artifact_name)

    async def load_model_artifact(
        self,
        run_id: str,
        artifact_name: str = "optimized_model",
        *,
        program: Any = None,
        trust_pickle: bool = False,
    ) -> Any:
        """The program logged under `artifact_name`, without an LM.

        Args:
            program: a fresh instance to load into, for a class that can't be imported.
            trust_pickle: read the pickle instead of the JSON; it can run any code.

        Raises:
            ArtifactError: no such artifact, a file was changed, or the program doesn't fit.
        """
        from agentcore.tracking._program_files import load_program

        with scratch() as directory:
            digests = await self._fetch_model(run_id, artifact_name, directory, with_pickle=trust_pickle)
            return await run_in_thread(
                lambda: load_program(
                    directory, artifact_name, program=program, digests=digests, trust_pickle=trust_pickle
                )
            )

    def model_names(self, run: TrackedRun) -> list[str]:
        """The names under which `run` keeps models."""
        return sorted(tag.removeprefix(PROGRAM_TAG) for tag in run.tags if tag.startswith(PROGRAM_TAG))

    async def read_prompt(self, run_id: str, artifact_name: str = "optimized_model") -> dict[str, Any]:
        """A kept program's prompt as data: by predictor its `inputs`, `outputs`, `instruction`, `demos`.

        Nothing of the program is imported. Raises `ArtifactError` as `load_model_artifact` does.
        """
        from agentcore.tracking._program_files import read_prompt

        with scratch() as directory:
            digests = await self._fetch_model(run_id, artifact_name, directory)
            return read_prompt(directory, artifact_name, digests)

    async def _fetch_model(
        self, run_id: str, artifact_name: str, directory: Path, *, with_pickle: bool = False
    ) -> dict[str, str]:
        """Copy a model's files into `directory`; returns the digests that stand on the run."""
        run = await self.get_run(run_id)
        recorded = run.tags.get(PROGRAM_TAG + artifact_name)
        if recorded is None:
            others = ", ".join(self.model_names(run)) or "none"
            raise ArtifactError(f"run {run_id} has no model {artifact_name!r}; it has {others}")
        digests: dict[str, str] = json.loads(recorded)
        for filename in digests:
            if with_pickle or not filename.endswith(".pkl"):
                # A local store hands out its own file instead of a copy.
                stored = await self._download(run.run_id, f"models/{filename}", directory)
                if stored != directory / filename:
                    shutil.copyfile(stored, directory / filename)
        return digests
