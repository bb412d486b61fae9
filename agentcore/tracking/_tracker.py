"""`MLflowTracker`: what an optimization leaves in MLflow."""

import contextlib
import getpass
import json
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from agentcore._sync import SyncTwin
from agentcore._threads import run_in_thread
from agentcore._version import __version__
from agentcore.data import Dataset, Splits
from agentcore.errors import ArtifactError, ConfigurationError, TrackingError, redact
from agentcore.evaluation import Comparison, EvaluationReport, PerformanceMetrics
from agentcore.settings import MLflowConfig
from agentcore.tracking._client import TrackingClient
from agentcore.tracking._plots import TrialPoint, plot_comparison, plot_trials
from agentcore.tracking._requests import (
    KEY_TAG,
    create_run,
    get_or_create_experiment,
    log_inputs,
    log_model,
)
from agentcore.tracking._runs import TrackedRun, best_run_query, tracked_run

PROGRAM_TAG = "agentcore.program."
_MAX_PARAM = 6000
_MAX_TAG = 8000
_STATUSES = ("FINISHED", "FAILED", "KILLED")


class _Target(Protocol):
    @property
    def type(self) -> str: ...
    @property
    def id(self) -> str: ...


class RunRequest(Protocol):
    """What a run is started for: an `OptimizationRequest`, or anything with a `target`."""

    @property
    def target(self) -> _Target: ...


class MLflowTracker:
    """Logs one experiment's runs through `MlflowClient` in threads; no method blocks the event loop.

    The current run is a ContextVar: concurrent tasks each have their own, and every `log_*` also takes
    `run_id=`. `tracker.sync` has the same methods, blocking.

    Every method raises `TrackingError` where MLflow can't be reached or refuses.

    Args:
        config: where to track; default: from the environment.
        secrets: values to keep out of everything that is logged, besides those of secret environment
            variables.
    """

    def __init__(self, config: MLflowConfig | None = None, *, secrets: Sequence[str] = ()) -> None:
        self.config = config or MLflowConfig()
        self.secrets = list(secrets)
        self._client = TrackingClient(self.config)
        self._current: ContextVar[str | None] = ContextVar("agentcore_run", default=None)
        self._experiment_id: str | None = None

    @cached_property
    def sync(self) -> Any:
        """The blocking twin of this tracker; each thread has its own current run."""
        return SyncTwin(self, carry=[self._current])

    @property
    def current_run_id(self) -> str | None:
        return self._current.get()

    # Runs

    async def start_run(
        self, request: RunRequest, run_name: str | None = None, tags: Mapping[str, str] | None = None
    ) -> str:
        """Start a run and make it the current one; returns its id.

        Named `opt_{target_type}_{target_id}_{UTC timestamp}` unless `run_name` is given. Tags
        `target_type`, `target_id`, `environment` and `version` are set; `tags` overrides them.
        """
        target = request.target
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        name = run_name or f"opt_{target.type}_{target.id}_{stamp}"
        all_tags = {
            "mlflow.user": _user(),
            "mlflow.source.name": "agentcore",
            "mlflow.source.type": "LOCAL",
            "target_type": target.type,
            "target_id": target.id,
            "environment": "development",
            "version": __version__,
            **(tags or {}),
            KEY_TAG: uuid.uuid4().hex,
        }
        all_tags = {key: self._clean(value, _MAX_TAG) for key, value in all_tags.items()}
        experiment_id = await self._experiment()
        run_id = await self._client.call(lambda client: create_run(client, experiment_id, name, all_tags))
        self._current.set(run_id)
        return run_id

    async def end_run(self, status: str = "FINISHED", *, run_id: str | None = None) -> None:
        """End a run as FINISHED, FAILED or KILLED; it is no longer the current run."""
        if status not in _STATUSES:
            raise ConfigurationError(f"a run ends as one of {', '.join(_STATUSES)}, not {status!r}")
        run = self._run(run_id)
        await self._client.call(lambda client: client.set_terminated(run, status))
        if self._current.get() == run:
            self._current.set(None)

    async def get_run(self, run_id: str) -> TrackedRun:
        return tracked_run(await self._client.call(lambda client: client.get_run(run_id)))

    async def search_runs(self, filter_string: str = "", max_results: int = 100) -> list[TrackedRun]:
        """Runs of the experiment, newest first; `filter_string` in MLflow's search syntax."""
        return await self._search(filter_string, ["attributes.start_time DESC"], max_results)

    async def get_best_run(
        self,
        metric: str = "improvement_percentage",
        order_by: str = "DESC",
        *,
        target_id: str | None = None,
    ) -> TrackedRun | None:
        """The FINISHED run with the best finite `metric`, ordered by the server; None if there is none.

        Args:
            order_by: DESC or ASC.
            target_id: only among this target's runs.
        """
        found, order = best_run_query(metric, order_by, target_id)
        runs = await self._search(found, order, 1)
        return runs[0] if runs else None

    async def cleanup_experiment(self, confirm: str) -> None:
        """Delete the experiment (MLflow keeps it, restorable, until `mlflow gc`).

        Args:
            confirm: the experiment's name, so that none is deleted by accident.
        """
        name = self.config.experiment_name
        if confirm != name:
            raise ConfigurationError(f"to delete experiment {name!r} pass confirm={name!r}, not {confirm!r}")
        experiment_id = await self._experiment()
        await self._client.call(lambda client: client.delete_experiment(experiment_id))
        self._experiment_id = None

    async def flush(self) -> None:
        """Wait until everything logged is in MLflow. Every `log_*` already is when it returns."""

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

    async def log_metrics(
        self, metrics: Mapping[str, float | None], *, step: int = 0, run_id: str | None = None
    ) -> None:
        """Log metrics in one batch; None (unknown) is left out, NaN and infinity are refused."""
        run = self._run(run_id)
        known = {name: float(value) for name, value in metrics.items() if value is not None}
        bad = [name for name, value in known.items() if not math.isfinite(value)]
        if bad:
            raise ConfigurationError(f"metrics must be finite numbers: {', '.join(bad)}")
        now = time.time_ns() // 1_000_000

        def send(client: Any) -> None:
            from mlflow.entities import Metric

            client.log_batch(run, metrics=[Metric(name, value, now, step) for name, value in known.items()])

        await self._client.call(send)

    async def log_trial(self, trial: int, score: float, best: float, *, run_id: str | None = None) -> None:
        """`trial_score` and `best_score` at step `trial`."""
        await self.log_metrics({"trial_score": score, "best_score": best}, step=trial, run_id=run_id)

    async def log_params(self, params: Mapping[str, Any], *, run_id: str | None = None) -> None:
        run = self._run(run_id)
        values = {key: self._clean(value, _MAX_PARAM) for key, value in params.items() if value is not None}

        def send(client: Any) -> None:
            from mlflow.entities import Param

            client.log_batch(run, params=[Param(key, value) for key, value in values.items()])

        await self._client.call(send)

    async def set_tags(self, tags: Mapping[str, Any], *, run_id: str | None = None) -> None:
        run = self._run(run_id)
        values = {key: self._clean(value, _MAX_TAG) for key, value in tags.items()}

        def send(client: Any) -> None:
            from mlflow.entities import RunTag

            client.log_batch(run, tags=[RunTag(key, value) for key, value in values.items()])

        await self._client.call(send)

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
        with _scratch() as directory:
            await run_in_thread(lambda: draw(directory))
            await self._client.call(lambda client: client.log_artifacts(run, str(directory), "plots"))

    async def log_json(self, path: str, content: Any, *, run_id: str | None = None) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
        await self._log_text(path, text, self._run(run_id))

    async def read_json(self, run_id: str, path: str) -> Any:
        """A JSON artifact of a run. Raises `ArtifactError` where it is missing or no JSON."""
        with _scratch() as directory:
            file = await self._download(run_id, path, directory)
            try:
                return json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                raise ArtifactError(f"run {run_id}: {path} is no JSON") from None

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
        with _scratch() as scratch:
            files = scratch / "program"
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
                    client, experiment_id, run, artifact_name, files, scratch / "pyfunc", default_lm
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

        with _scratch() as directory:
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

        with _scratch() as directory:
            digests = await self._fetch_model(run_id, artifact_name, directory)
            return read_prompt(directory, artifact_name, digests)

    # How

    def _run(self, run_id: str | None) -> str:
        run = run_id or self._current.get()
        if run is None:
            raise ConfigurationError("no current run in this task: call start_run first, or pass run_id=")
        return run

    def _clean(self, value: Any, limit: int) -> str:
        """Text without secrets, cut where MLflow would cut it without a word."""
        text = redact(str(value), self.secrets)
        return text if len(text) <= limit else text[: limit - 1] + "…"

    async def _experiment(self) -> str:
        if self._experiment_id is None:
            config = self.config
            self._experiment_id = await self._client.call(
                lambda client: get_or_create_experiment(
                    client, config.experiment_name, config.artifact_location
                )
            )
        return self._experiment_id

    async def _search(self, found: str, order: list[str], limit: int) -> list[TrackedRun]:
        experiment_id = await self._experiment()
        runs = await self._client.call(
            lambda client: client.search_runs([experiment_id], found, order_by=order, max_results=limit)
        )
        return [tracked_run(run) for run in runs]

    async def _log_performance(self, prefix: str, metrics: PerformanceMetrics, run_id: str | None) -> None:
        await self.log_metrics(
            {prefix + name: value for name, value in metrics.model_dump().items()}, run_id=run_id
        )

    async def _log_text(self, path: str, text: str, run_id: str) -> None:
        # A lone surrogate, which a model may answer with, is no UTF-8.
        clean = redact(text, self.secrets).encode("utf-8", "backslashreplace").decode()
        await self._client.call(lambda client: client.log_text(run_id, clean, path))

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

    async def _download(self, run_id: str, path: str, directory: Path) -> Path:
        try:
            return Path(
                await self._client.call(
                    lambda client: client.download_artifacts(run_id, path, str(directory))
                )
            )
        except TrackingError as error:
            raise ArtifactError(f"run {run_id} has no readable artifact {path}: {error}") from None


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agentcore-") as directory:
        yield Path(directory)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
