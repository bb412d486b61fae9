"""Runs, and what is logged to them as it is."""

import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from agentcore._sync import SyncTwin
from agentcore._threads import run_in_thread
from agentcore.errors import ArtifactError, ConfigurationError, TrackingError, UnknownRunError
from agentcore.journal import (
    Journal,
    RunEnded,
    TrackingEvent,
    open_journal,
    wait,
)
from agentcore.settings import MLflowConfig, Settings
from agentcore.tracking._client import Held, TrackingClient, connection_to
from agentcore.tracking._delivery import Delivery, delivery_for, destination_of
from agentcore.tracking._entries import DIGEST_TAG, Draft, Entries, File, RunRequest, stored
from agentcore.tracking._requests import get_or_create_experiment
from agentcore.tracking._runs import TrackedRun, best_run_query, tracked_run

_STATUSES = ("FINISHED", "FAILED", "KILLED")
_LOCAL = "local-"
_START_SECONDS = 2.0
"""How long `start_run` waits for the server."""


class RunTracker:
    """The runs of one experiment: metrics, parameters, tags and artifacts.

    What is logged goes to the journal, durably, and from there to MLflow in the background: a server that is
    slow, hangs or is gone delays nothing and costs nothing. Reads first flush what waits. The current run is
    a ContextVar: concurrent tasks each have their own, and every `log_*` also takes `run_id=`.
    `tracker.sync` has the same methods, blocking.

    Methods that log raise `JournalError` where the journal can't be written; methods that read raise
    `TrackingError` where MLflow can't be reached or refuses.

    Args:
        config: where to track; default: from the environment.
        secrets: values to keep out of everything that is logged, besides those of secret environment
            variables.
    """

    def __init__(self, config: MLflowConfig | None = None, *, secrets: Sequence[str] = ()) -> None:
        self.config = config or MLflowConfig()
        settings = Settings()
        self.entries = Entries(list(secrets), round(settings.max_artifact_mb * 2**20))
        self._client = TrackingClient(connection_to(self.config))
        self._current: ContextVar[str | None] = ContextVar("agentcore_run", default=None)
        self._experiment_id: str | None = None
        self._streams: dict[str, str] = {}

    @cached_property
    def sync(self) -> Any:
        """The blocking twin of this tracker; each thread has its own current run."""
        return SyncTwin(self, carry=[self._current])

    @property
    def secrets(self) -> list[str]:
        return self.entries.secrets

    @property
    def current_run_id(self) -> str | None:
        return self._current.get()

    # Runs

    async def start_run(
        self, request: RunRequest, run_name: str | None = None, tags: Mapping[str, str] | None = None
    ) -> str:
        """Start a run and make it the current one; returns its id.

        The id is MLflow's where the server answers within 2 s, else a local one (`local-…`), which every
        method takes and which stands for the same run once it is delivered.

        Named `opt_{target_type}_{target_id}_{UTC timestamp}` unless `run_name` is given. Tags
        `target_type`, `target_id`, `environment` and `version` are set; `tags` overrides them.

        Raises:
            TrackingError: the server refuses this client; nothing was started.
        """
        key = uuid.uuid4().hex
        created = self.entries.run_created(self.config, key, request, run_name, tags)
        journal, delivery = await self.opened()
        await wait(journal.create(key, "run", created.name, delivery.destination, first=[created]))
        delivery.notify(key)
        try:
            made = await run_in_thread(lambda: delivery.wait_for_run(key, _START_SECONDS))
        except Held:
            await run_in_thread(lambda: journal.discard(key))
            raise
        run_id = made or _LOCAL + key
        self._streams[run_id] = self._streams[_LOCAL + key] = key
        self._current.set(run_id)
        return run_id

    async def end_run(self, status: str = "FINISHED", *, run_id: str | None = None) -> None:
        """End a run as FINISHED, FAILED or KILLED; it is no longer the current run."""
        if status not in _STATUSES:
            raise ConfigurationError(f"a run ends as one of {', '.join(_STATUSES)}, not {status!r}")
        run = self._run(run_id)
        await self._log(run, [RunEnded(status=cast(Any, status))])
        if self._current.get() == run:
            self._current.set(None)

    async def get_run(self, run_id: str) -> TrackedRun:
        tracking_id = await self._delivered(run_id)
        return tracked_run(await self._client.call(lambda client: client.get_run(tracking_id)))

    async def tracking_id(self, run_id: str) -> str | None:
        """MLflow's id of a run given by any of its ids; None while MLflow doesn't have it."""
        journal, _ = await self.opened()
        stream = await run_in_thread(lambda: self._known_stream(journal, run_id))
        if stream is None:
            return None if run_id.startswith(_LOCAL) else run_id
        found = await run_in_thread(lambda: journal.stream(stream))
        return found.tracking_id if found else None

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
        await self._flush_reads()
        experiment_id = await self._experiment()
        await self._client.call(lambda client: client.delete_experiment(experiment_id))
        self._experiment_id = None

    async def deliver_backlog(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Take on, and wait for, what processes that ended left in the journal for this MLflow.

        Raises:
            TrackingError: it can't be delivered now, or not within `timeout` seconds.
        """
        _, delivery = await self.opened()
        await run_in_thread(lambda: delivery.flush(delivery.deliver_backlog(), timeout=timeout))

    async def flush(self, timeout: float | None = None, *, run_id: str | None = None) -> None:  # noqa: ASYNC109
        """Wait until everything logged is in MLflow.

        Args:
            timeout: seconds; None waits as long as something is being delivered.
            run_id: wait for this run only.

        Raises:
            TrackingError: MLflow can't be reached or did not take all in time, and the rest waits in the
                journal; or it refused an entry for good.
        """
        journal, delivery = await self.opened()
        only = None if run_id is None else [await self._stream(run_id)]
        await run_in_thread(lambda: delivery.flush(only, timeout=timeout))
        for stream in only or sorted(delivery.own):
            refused = await run_in_thread(partial(journal.rejected, stream))
            if refused:
                raise TrackingError(f"{len(refused)} entries were refused, the first: {refused[0][1]}")

    # What a run holds

    async def log_metrics(
        self, metrics: Mapping[str, float | None], *, step: int = 0, run_id: str | None = None
    ) -> None:
        """Log metrics; None (unknown) is left out, NaN and infinity are refused."""
        await self._log(self._run(run_id), self.entries.metrics(metrics, step))

    async def log_params(self, params: Mapping[str, Any], *, run_id: str | None = None) -> None:
        await self._log(self._run(run_id), self.entries.params(params))

    async def set_tags(self, tags: Mapping[str, Any], *, run_id: str | None = None) -> None:
        await self._log(self._run(run_id), self.entries.tags(tags))

    async def log_json(self, path: str, content: Any, *, run_id: str | None = None) -> None:
        await self._log(self._run(run_id), self.entries.json(path, content))

    async def log_artifact(
        self, file: str | Path, artifact_path: str = "", *, run_id: str | None = None
    ) -> None:
        """Log a file of the caller's, as it is now; secrets are cut out of text.

        Args:
            artifact_path: the folder within the run's artifacts.

        Raises:
            ArtifactError: it can't be read, is too large, or is binary and holds a secret.
        """
        source, run = Path(file), self._run(run_id)
        try:
            content = await run_in_thread(source.read_bytes)
        except OSError as error:
            raise ArtifactError(f"{source} can't be read: {error}") from None
        folder = artifact_path.strip("/")
        await self._log(run, self.entries.file(f"{folder}/{source.name}" if folder else source.name, content))

    async def read_json(self, run_id: str, path: str) -> Any:
        """A JSON artifact of a run.

        Raises:
            ArtifactError: it is missing, was changed after it was logged, or is no JSON.
        """
        run = await self.get_run(run_id)
        with scratch() as directory:
            file = await self._download(run.run_id, path, directory)
            content = file.read_bytes()
            recorded = run.tags.get(DIGEST_TAG + path)
            if recorded is not None and hashlib.sha256(content).hexdigest() != recorded:
                raise ArtifactError(f"run {run_id}: {path} was changed after it was logged. Don't use it")
            try:
                return json.loads(content)
            except ValueError:
                raise ArtifactError(f"run {run_id}: {path} is no JSON") from None

    # How

    def _run(self, run_id: str | None) -> str:
        run = run_id or self._current.get()
        if run is None:
            raise ConfigurationError("no current run in this task: call start_run first, or pass run_id=")
        return run

    async def _log(self, run_id: str, drafts: Sequence[Draft]) -> None:
        if not drafts:
            return
        try:
            await self._write(await self._stream(run_id), drafts)
        except UnknownRunError:
            if self._streams.pop(run_id, None) is None or run_id.startswith(_LOCAL):
                raise
            # It was delivered and pruned meanwhile: whoever made it, its id in MLflow is known.
            await self._write(await self._stream(run_id), drafts)

    async def _write(self, stream: str, drafts: Sequence[Draft]) -> None:
        journal, delivery = await self.opened()
        await journal.write(stream, await self.stored(drafts))
        delivery.notify(stream)

    async def stored(self, drafts: Sequence[Draft]) -> list[TrackingEvent]:
        """Entries for the journal, after the contents of files were stored beside it."""
        journal, _ = await self.opened()
        if not any(isinstance(draft, File) for draft in drafts):
            return [draft for draft in drafts if not isinstance(draft, File)]

        def store() -> list[TrackingEvent]:
            found: list[TrackingEvent] = []
            for draft in drafts:
                if isinstance(draft, File):
                    found += stored(draft, journal.payloads.put(draft.content))
                else:
                    found.append(draft)
            return found

        return await run_in_thread(store)

    async def opened(self) -> tuple[Journal, Delivery]:
        """The journal, and the delivery from it to this tracker's MLflow."""
        home = self._home
        if home is None or home[0] != os.getpid() or home[2].stopped:
            journal, delivery = await run_in_thread(self._open)
            home = self._home = (os.getpid(), journal, delivery)
        return home[1:]

    _home: tuple[int, Journal, Delivery] | None = None
    """A forked process must not use its parent's."""

    def _open(self) -> tuple[Journal, Delivery]:
        journal = open_journal()
        return journal, delivery_for(journal, self.config)

    async def _stream(self, run_id: str) -> str:
        """The journal's stream of a run; one is made for a run that another client started."""
        known = self._streams.get(run_id)
        if known is None:
            journal, delivery = await self.opened()
            known = await run_in_thread(lambda: self._known_stream(journal, run_id))
            if known is None:
                if run_id.startswith(_LOCAL):
                    raise ConfigurationError(f"the journal at {journal.home} has no run {run_id}")
                known = uuid.uuid5(uuid.NAMESPACE_URL, f"{delivery.destination}/{run_id}").hex
                await wait(journal.create(known, "adopted", run_id, delivery.destination, tracking_id=run_id))
            self._streams[run_id] = known
        return known

    def _known_stream(self, journal: Journal, run_id: str) -> str | None:
        wanted, destination = run_id.removeprefix(_LOCAL), destination_of(self.config)
        found = [item for item in journal.find(wanted) if item.destination == destination]
        same = [item for item in found if wanted in (item.tracking_id, item.id)]
        return same[0].id if same else None

    async def _delivered(self, run_id: str) -> str:
        """The run's id in MLflow, after what waits of it is there."""
        journal, delivery = await self.opened()
        stream = self._streams.get(run_id)
        if stream is None:
            stream = await run_in_thread(lambda: self._known_stream(journal, run_id))
        if stream is None:
            if run_id.startswith(_LOCAL):
                raise ConfigurationError(f"the journal at {journal.home} has no run {run_id}")
            return run_id
        key = stream
        await run_in_thread(lambda: delivery.flush([key]))
        found = await run_in_thread(lambda: journal.stream(key))
        if found is None or found.tracking_id is None:
            refused = await run_in_thread(lambda: journal.rejected(key))
            raise TrackingError(
                f"MLflow has no run {run_id}: {refused[0][1] if refused else 'it was removed'}"
            )
        return found.tracking_id

    async def _flush_reads(self) -> None:
        _, delivery = await self.opened()
        await run_in_thread(delivery.flush)

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
        await self._flush_reads()
        experiment_id = await self._experiment()
        runs = await self._client.call(
            lambda client: client.search_runs([experiment_id], found, order_by=order, max_results=limit)
        )
        return [tracked_run(run) for run in runs]

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
