"""Runs, and what is logged to them as it is."""

import contextlib
import getpass
import json
import math
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
from agentcore._version import __version__
from agentcore.errors import ArtifactError, ConfigurationError, TrackingError, redact
from agentcore.settings import MLflowConfig
from agentcore.tracking._client import TrackingClient
from agentcore.tracking._requests import (
    KEY_TAG,
    create_run,
    get_or_create_experiment,
)
from agentcore.tracking._runs import TrackedRun, best_run_query, tracked_run

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


class RunTracker:
    """The runs of one experiment: metrics, parameters, tags and artifacts, through `MlflowClient` in threads.

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

    # What a run holds

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

    async def log_json(self, path: str, content: Any, *, run_id: str | None = None) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
        await self._log_text(path, text, self._run(run_id))

    async def read_json(self, run_id: str, path: str) -> Any:
        """A JSON artifact of a run. Raises `ArtifactError` where it is missing or no JSON."""
        with scratch() as directory:
            file = await self._download(run_id, path, directory)
            try:
                return json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                raise ArtifactError(f"run {run_id}: {path} is no JSON") from None

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

    async def _log_text(self, path: str, text: str, run_id: str) -> None:
        # A lone surrogate, which a model may answer with, is no UTF-8.
        clean = redact(text, self.secrets).encode("utf-8", "backslashreplace").decode()
        await self._client.call(lambda client: client.log_text(run_id, clean, path))

    async def _download(self, run_id: str, path: str, directory: Path) -> Path:
        try:
            return Path(
                await self._client.call(
                    lambda client: client.download_artifacts(run_id, path, str(directory))
                )
            )
        except TrackingError as error:
            raise ArtifactError(f"run {run_id} has no readable artifact {path}: {error}") from None


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agentcore-") as directory:
        yield Path(directory)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
