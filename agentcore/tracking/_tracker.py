"""`MLflowTracker`: what an optimization leaves in MLflow."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentcore._threads import run_in_thread
from agentcore.data import Dataset, Splits
from agentcore.errors import ArtifactError
from agentcore.evaluation import Comparison, EvaluationReport, PerformanceMetrics
from agentcore.tracking._plots import TrialPoint, plot_comparison, plot_trials
from agentcore.tracking._requests import (
    log_inputs,
    log_model,
)
from agentcore.tracking._run_tracker import RunTracker, scratch
from agentcore.tracking._runs import TrackedRun

PROGRAM_TAG = "agentcore.program."


class MLflowTracker(RunTracker):
    """Logs an optimization to MLflow under the names that docs/architecture.md lists.

    No method blocks the event loop; each raises `TrackingError` where MLflow can't be reached or refuses.
    See `RunTracker` for the arguments.
    """

    # Figures

    async def log_baseline_metrics(
        self, metrics: PerformanceMetrics, *, measured: bool = False, run_id: str | None = None
    ) -> None:
        """`baseline_*`; with `measured`, `measured_baseline_*`, beside figures that the caller gave."""
        await self._log_performance("measured_baseline_" if measured else "baseline_", metrics, run_id)

    async def log_optimized_metrics(self, metrics: PerformanceMetrics, *, run_id: str | None = None) -> None:
        await self._log_performance("optimized_", metrics, run_id)

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
        values = {
            "success_rate_improvement": optimized.success_rate - baseline.success_rate,
            "quality_improvement": optimized.quality_score - baseline.quality_score,
            "cost_reduction": _difference(baseline.avg_cost, optimized.avg_cost),
            "latency_reduction_ms": _difference(baseline.avg_latency_ms, optimized.avg_latency_ms),
            "improvement_percentage": improvement_percentage,
            "statistical_significance": statistical_significance,
        }
        await self.log_metrics(values, run_id=run_id)

    async def log_trial(self, trial: int, score: float, best: float, *, run_id: str | None = None) -> None:
        """`trial_score` and `best_score` at step `trial`."""
        await self.log_metrics({"trial_score": score, "best_score": best}, step=trial, run_id=run_id)

    # Data, details, results

    async def log_training_data(
        self, data: Dataset, splits: Splits | None = None, *, run_id: str | None = None
    ) -> None:
        """`training_data.json`, and the data (or each split) as a run input with its digest."""
        run = self._run(run_id)
        content: dict[str, Any] = {
            "name": data.name,
            "digest": data.digest,
            "input_fields": list(data.input_fields),
            "examples": data.rows(),
        }
        parts: dict[str, Dataset] = {"training": data}
        if splits is not None:
            parts = splits._asdict()
            content["splits"] = {
                name: {"digest": part.digest, "examples": [item.digest for item in part]}
                for name, part in parts.items()
            }
            content["example_digests"] = [item.digest for item in data]
        await self._client.call(lambda client: log_inputs(client, run, parts))
        await self.log_json("training_data.json", content, run_id=run)

    async def log_optimization_details(
        self, details: Mapping[str, Any], *, run_id: str | None = None
    ) -> None:
        """`algorithm_parameters.json`, `key_improvements.txt`, `iterations`, `duration_seconds`.

        Args:
            details: `algorithm` (str), `parameters` (dict), `key_improvements` (list of str),
                `iterations` (int), `duration_seconds` (float); each optional.
        """
        run = self._run(run_id)
        parameters = dict(details.get("parameters") or {})
        await self.log_json(
            "algorithm_parameters.json", {"algorithm": details.get("algorithm"), **parameters}, run_id=run
        )
        improvements = details.get("key_improvements") or ["No change was kept."]
        await self._log_text("key_improvements.txt", "\n".join(improvements) + "\n", run)
        await self.log_metrics(
            {name: details.get(name) for name in ("iterations", "duration_seconds")}, run_id=run
        )
        await self.log_params(
            {"algorithm": details.get("algorithm"), "optimization_time": details.get("duration_seconds")},
            run_id=run,
        )

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
        run = self._run(run_id)
        rows = [
            {
                "inputs": item.inputs,
                "labels": item.labels,
                "baseline": before.as_dict(),
                "optimized": after.as_dict(),
            }
            for item, before, after in zip(test, baseline.records, optimized.records, strict=True)
        ]
        content = {
            "success_threshold": baseline.success_threshold,
            "fixed": list(comparison.fixed),
            "broken": list(comparison.broken),
            "examples": rows,
        }
        await self.log_json("test_examples.json", content, run_id=run)

    async def log_result(self, result: Any, *, run_id: str | None = None) -> None:
        """All figures of an `OptimizationResult`, and its details."""
        run = self._run(run_id)
        await self.log_baseline_metrics(result.baseline_performance, run_id=run)
        if result.measured_baseline != result.baseline_performance:
            await self.log_baseline_metrics(result.measured_baseline, measured=True, run_id=run)
        await self.log_optimized_metrics(result.optimized_performance, run_id=run)
        await self.log_improvement_metrics(
            result.measured_baseline,
            result.optimized_performance,
            improvement_percentage=result.improvement_percentage,
            statistical_significance=result.statistical_significance,
            run_id=run,
        )
        await self.log_optimization_details(result.optimization_details, run_id=run)
        await self.log_metrics(
            {
                "improvement_low": result.interval[0],
                "improvement_high": result.interval[1],
                "smallest_detectable_gain": result.smallest_detectable_gain,
                "lm_calls": result.spend.calls,
                "total_tokens": result.spend.total_tokens,
                "cost_usd": result.spend.cost_usd,
            },
            run_id=run,
        )

    async def log_plots(
        self,
        trials: Sequence[TrialPoint],
        baseline: float,
        optimized: float,
        comparison: Comparison,
        *,
        run_id: str | None = None,
    ) -> None:
        """`plots/trials.png` and `plots/comparison.png`."""

        def draw(directory: Path) -> None:
            if trials:
                plot_trials(trials, directory / "trials.png")
            plot_comparison(
                baseline,
                optimized,
                comparison.interval,
                comparison.p_value,
                comparison.examples,
                directory / "comparison.png",
            )

        run = self._run(run_id)
        with scratch() as directory:
            await run_in_thread(lambda: draw(directory))
            await self._client.call(lambda client: client.log_artifacts(run, str(directory), "plots"))

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
    ) -> str | None:
        """Keep a `dspy.Module` as `models/{artifact_name}.*` and as an MLflow LoggedModel; returns the
        LoggedModel's id.

        State and manifest are JSON; the pickle beside them holds no LM and no key. Their digests also stand
        on the run as a tag, in another store than the files.

        Args:
            metadata: anything JSON can hold, for the manifest.
            program_path: `package.module:object`, where the program can be imported from.
            default_lm: the LM's name that the served model uses where AGENTCORE_LM is not set.
            as_logged_model: False keeps the files only.
        """
        from agentcore.tracking._program_files import save_program

        run = self._run(run_id)
        with scratch() as directory:
            files = directory / "program"
            digests = await run_in_thread(
                lambda: save_program(
                    model,
                    files,
                    artifact_name,
                    metadata=metadata,
                    program_path=program_path,
                    secrets=self.secrets,
                )
            )
            await self._client.call(lambda client: client.log_artifacts(run, str(files), "models"))
            await self.set_tags({PROGRAM_TAG + artifact_name: json.dumps(digests)}, run_id=run)
            if not as_logged_model:
                return None
            experiment_id = (await self.get_run(run)).experiment_id
            return await self._client.call(
                lambda client: log_model(
                    client, experiment_id, run, artifact_name, files, directory / "pyfunc", default_lm
                )
            )

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

    async def _log_performance(self, prefix: str, metrics: PerformanceMetrics, run_id: str | None) -> None:
        await self.log_metrics(
            {prefix + name: value for name, value in metrics.model_dump().items()}, run_id=run_id
        )

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
                stored = await self._download(run_id, f"models/{filename}", directory)
                if stored != directory / filename:
                    shutil.copyfile(stored, directory / filename)
        return digests


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after
