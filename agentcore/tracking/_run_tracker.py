"""`RunTracker`: the runs of one experiment and everything logged to them."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from agentcore._naming import LOCAL_PREFIX, local_id
from agentcore._naming import run_name as default_name
from agentcore._redaction import Redactor
from agentcore._sync import SyncTwin, blocking
from agentcore._threads import run_in_thread
from agentcore.data import Dataset, current_run
from agentcore.errors import ArtifactError, ConfigurationError, TrackingError, UnknownRunError
from agentcore.journal import Journal
from agentcore.settings import MLflowConfig, Settings
from agentcore.tracking._best import BestRuns, Ranking, best_ranking
from agentcore.tracking._connection import Held
from agentcore.tracking._delivery import Delivery
from agentcore.tracking._digests import digests_of
from agentcore.tracking._entries import Draft, Entries, RunRequest
from agentcore.tracking._events import DatasetUsed, InputsLogged, RunEnded
from agentcore.tracking._gateway import Gateway
from agentcore.tracking._requests import KEY_TAG, MODEL_TAG
from agentcore.tracking._run_models import model_drafts, program_digests, scratch
from agentcore.tracking._run_streams import READ_SECONDS, RunStreams
from agentcore.tracking._writer import RunWriter

if TYPE_CHECKING:
    import dspy
    from mlflow.entities import Run

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_STATUSES = ("FINISHED", "FAILED", "KILLED")
_START_SECONDS = 2.0
"""How long `start_run` waits for the server."""
_NEWEST_FIRST = ("attributes.start_time DESC",)


class RunTracker:
    """The runs of one experiment: metrics, parameters, tags, artifacts, models and input data.

    Everything logged is written durably to the journal and delivered to MLflow in the background, so a slow
    or unreachable server causes neither delays nor data loss. Reads first flush what is waiting. The current
    run is a ContextVar: concurrent tasks each have their own, and every method that logs also takes
    `run_id=`. `tracker.sync` has the same methods, blocking.

    Methods that log raise `JournalError` if the journal can't be written; methods that read raise
    `TrackingError` if MLflow can't be reached or refuses.

    Args:
        config: where to track; default: from the environment.
        secrets: values to redact from everything logged, in addition to environment variables whose names
            suggest a secret.

    Attributes:
        gateway: MLflow's runs, search and registry, for everything that this class doesn't cover.
    """

    _entries: ClassVar[type[Entries]] = Entries

    def __init__(self, config: MLflowConfig | None = None, *, secrets: Sequence[str] = ()) -> None:
        self.config = config or MLflowConfig()
        self.redactor = Redactor(secrets)
        self.entries = self._entries(self.redactor, round(Settings().max_artifact_mb * 2**20))
        self.gateway = Gateway(self.config)
        self._current: ContextVar[str | None] = ContextVar("agentcore_run", default=None)
        self._experiment_id: str | None = None
        self._streams = RunStreams(self.config)
        self._best = BestRuns(self.gateway)

    @cached_property
    def sync(self) -> "SyncRunTracker":
        """The blocking twin of this tracker; each thread has its own current run."""
        return SyncRunTracker(self, carry=[self._current, current_run])

    @property
    def current_run_id(self) -> str | None:
        return self._current.get()

    # Runs

    async def start_run(
        self,
        request: RunRequest | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        key: str | None = None,
        wait: float = _START_SECONDS,
    ) -> str:
        """Start a run and make it the current one; returns its id.

        The id is MLflow's if the server answers within `wait` seconds, else a local one (`local-…`), which
        every method accepts and which remains valid after the run is delivered.

        Args:
            request: supplies the default name and tags. An `OptimizationRequest` supplies
                `opt_{target_type}_{target_id}_{UTC timestamp}` and the tags `target_type` and `target_id`.
            run_name: default: the request's, else `run_{UTC timestamp}`.
            tags: override the request's, and `environment` and `version`, which every run has.
            key: 32 hexadecimal digits: if a run was started with this key, it is continued.
            wait: 0 only writes to the journal.

        Raises:
            TrackingError: the server refuses this client; nothing was started.
        """
        key = key or uuid.uuid4().hex
        name = run_name or (request.run_name() if request is not None else default_name("run"))
        all_tags = {**(request.run_tags() if request is not None else {}), **(tags or {})}
        created = self.entries.run_created(self.config, key, name, all_tags)
        journal, delivery = await self.opened()
        await RunWriter(journal, delivery, key).create("run", created.name, [created])
        made = None
        try:
            if wait > 0:
                made = await run_in_thread(lambda: delivery.wait_for_run(key, wait))
        except Held:
            await run_in_thread(lambda: journal.discard(key))
            raise
        run_id = made or local_id(key)
        self._streams.remember(key, run_id, local_id(key))
        self._current.set(run_id)
        current_run.set(_Inputs(self, run_id))
        return run_id

    async def end_run(self, status: RunStatus = "FINISHED", *, run_id: str | None = None) -> None:
        """End a run as FINISHED, FAILED or KILLED; if it is the current run, there is none afterwards."""
        if status not in _STATUSES:
            raise ConfigurationError(f"status must be one of {', '.join(_STATUSES)}, got {status!r}")
        run = self._run(run_id)
        await self._log(run, [RunEnded(status=status)])
        if self._current.get() == run:
            self._current.set(None)
            current_run.set(None)

    async def get_run(self, run_id: str) -> "Run":
        """The run as MLflow has it, after everything waiting for it is delivered."""
        return await self.gateway.get_run(await self._streams.delivered(run_id))

    async def find_run(self, run_id: str) -> "Run":
        """Find a run by its MLflow, journal or `local-…` id, or a unique prefix of one.

        Raises:
            ConfigurationError: no run or several runs match, or the run is tracked on another server.
        """
        journal, delivery = await self.opened()
        here = await run_in_thread(lambda: journal.resolve(run_id, destination=delivery.destination))
        if here is not None:
            return await self.get_run(local_id(here.id))
        elsewhere = await run_in_thread(lambda: journal.resolve(run_id))
        if elsewhere is not None:
            raise ConfigurationError(
                f"run {run_id} is tracked at {elsewhere.destination}: set MLFLOW_TRACKING_URI to see it"
            )
        # MLflow can't search for part of an id.
        every = await self._search("", _NEWEST_FIRST, None)
        matches = [
            run
            for run in every
            if run.info.run_id.startswith(run_id) or run.data.tags.get(KEY_TAG, "").startswith(run_id)
        ]
        if len(matches) > 1:
            raise ConfigurationError(f"{len(matches)} runs start with {run_id!r}: use a longer prefix")
        if not matches:
            raise ConfigurationError(
                f"no run {run_id!r} in experiment {self.config.experiment_name!r}. "
                "List them with: agentcore runs"
            )
        return matches[0]

    async def tracking_id(self, run_id: str) -> str | None:
        """MLflow's id of a run given by any of its ids; None while MLflow doesn't have it."""
        return await self._streams.tracking_id(run_id)

    async def search_runs(
        self, filter_string: str = "", max_results: int = 100, order_by: Sequence[str] = _NEWEST_FIRST
    ) -> "list[Run]":
        """Runs of the experiment.

        Args:
            filter_string: in MLflow's search syntax: `metrics.accuracy > 0.9 and tags.team = 'search'`.
            max_results: fetched in as many pages as needed.
            order_by: MLflow's order clauses, such as `metrics.accuracy DESC`; default: newest first.
        """
        return await self._search(filter_string, order_by, max_results)

    async def get_best_run(
        self, metric: str, order_by: str = "DESC", *, tags: Mapping[str, str] | None = None
    ) -> "Run | None":
        """The FINISHED run with the best finite `metric`, ordered by the server; None if there is none.

        Args:
            order_by: DESC or ASC.
            tags: consider only runs with these tags.
        """
        return await self._first(best_ranking(metric, order_by, tags))

    async def cleanup_experiment(self, confirm: str) -> None:
        """Delete the experiment (MLflow keeps it, restorable, until `mlflow gc`).

        Args:
            confirm: the experiment's name, so that nothing is deleted by accident.
        """
        name = self.config.experiment_name
        if confirm != name:
            raise ConfigurationError(f"to delete experiment {name!r} pass confirm={name!r}, not {confirm!r}")
        await self._flush_reads()
        experiment_id = await self._experiment()
        await self.gateway.call(lambda client: client.delete_experiment(experiment_id))
        self._experiment_id = None

    async def deliver_backlog(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Deliver what earlier processes left in the journal for this MLflow, and wait for it.

        Raises:
            TrackingError: it can't be delivered now, or not within `timeout` seconds.
        """
        _, delivery = await self.opened()
        await run_in_thread(lambda: delivery.flush(delivery.deliver_backlog(), timeout=timeout))

    async def flush(self, timeout: float | None = None, *, run_id: str | None = None) -> None:  # noqa: ASYNC109
        """Wait until everything logged so far is in MLflow.

        Args:
            timeout: seconds; None waits as long as something is being delivered.
            run_id: wait for this run only.

        Raises:
            TrackingError: MLflow can't be reached or did not accept everything in time (the rest waits in the
                journal), or it permanently refused an entry of these runs, which is reported once.
        """
        _, delivery = await self.opened()
        only = None if run_id is None else [await self._streams.id(run_id)]
        await run_in_thread(lambda: delivery.flush(only, timeout=timeout))
        refused = await run_in_thread(lambda: delivery.refused(only or sorted(delivery.own)))
        if refused:
            count = "1 entry" if len(refused) == 1 else f"{len(refused)} entries, the first"
            raise TrackingError(f"MLflow refused {count}: {refused[0][1]}")

    # Logging and reading

    async def log(self, drafts: Sequence[Draft], *, run_id: str | None = None) -> None:
        """Log what `entries` made, and events of other packages, in one commit."""
        await self._log(self._run(run_id), drafts)

    async def log_metrics(
        self, metrics: Mapping[str, float | None], *, step: int = 0, run_id: str | None = None
    ) -> None:
        """Log metrics; None (unknown) is left out, NaN and infinity are refused."""
        await self._log(self._run(run_id), self.entries.metrics(metrics, step))

    async def log_params(self, params: Mapping[str, Any], *, run_id: str | None = None) -> None:
        """Log parameters as text; None is left out. MLflow refuses to change a logged one."""
        await self._log(self._run(run_id), self.entries.params(params))

    async def set_tags(self, tags: Mapping[str, Any], *, run_id: str | None = None) -> None:
        """Set tags as text, replacing earlier values."""
        await self._log(self._run(run_id), self.entries.tags(tags))

    async def log_input(self, data: Dataset, context: str = "training", *, run_id: str | None = None) -> None:
        """Record a dataset, with its digest, as an input of the run; `context` says how it was used."""
        await self._log(self._run(run_id), lambda: self.entries.inputs({context: data}))

    async def log_dataset(
        self, name: str, digest: str, rows: int, context: str = "training", *, run_id: str | None = None
    ) -> None:
        """Record a dataset of which only the digest is known as an input of the run."""
        used = DatasetUsed(name=name, digest=digest, rows=rows, context=context)
        await self._log(self._run(run_id), [InputsLogged(datasets=[used])])

    async def log_json(self, path: str, content: Any, *, run_id: str | None = None) -> None:
        """Log a JSON artifact; values that JSON can't represent become text."""
        await self._log(self._run(run_id), lambda: self.entries.json(path, content))

    async def log_artifact(
        self, file: str | Path, artifact_path: str = "", *, run_id: str | None = None
    ) -> None:
        """Log a file with its current content; secrets are redacted from text files.

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
        path = f"{folder}/{source.name}" if folder else source.name
        await self._log(run, lambda: self.entries.file(path, content))

    async def read_json(self, run_id: str, path: str) -> Any:
        """A JSON artifact of a run.

        Raises:
            ArtifactError: it is missing, was changed after it was logged, or is not JSON.
        """
        run = await self.get_run(run_id)
        with scratch() as directory:
            file = await self._download(run.info.run_id, path, directory)
            content = await run_in_thread(file.read_bytes)
        recorded = digests_of(run.data.tags).get(path)

        def parse() -> Any:
            if recorded is not None and hashlib.sha256(content).hexdigest() != recorded:
                raise ArtifactError(f"run {run_id}: {path} was changed after it was logged. Don't use it")
            try:
                return json.loads(content)
            except ValueError:
                raise ArtifactError(f"run {run_id}: {path} is not JSON") from None

        return await run_in_thread(parse)

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
        """Log a `dspy.Module` as `models/{artifact_name}.*` and as an MLflow LoggedModel, whose id `model_id`
        returns once it is delivered.

        State and manifest are JSON; the pickle contains neither LMs nor keys. The files' digests are also
        stored in a tag of the run, apart from the files.

        Args:
            metadata: JSON-serializable values to add to the manifest.
            program_path: `package.module:object`, where the program can be imported from.
            default_lm: name of the LM that the served model uses if AGENTCORE_LM is not set.
            as_logged_model: False logs only the files.
        """
        run = self._run(run_id)
        drafts = await model_drafts(
            self.entries,
            model,
            artifact_name,
            metadata,
            program_path=program_path,
            default_lm=default_lm,
            as_logged_model=as_logged_model,
        )
        await self._log(run, drafts)

    async def model_id(self, run_id: str, artifact_name: str = "optimized_model") -> str | None:
        """The id of a run's LoggedModel (`models:/{id}`); None if it has none."""
        tag = (await self.get_run(run_id)).data.tags.get(MODEL_TAG + artifact_name)
        return None if tag is None else str(tag)

    async def load_model_artifact(
        self,
        run_id: str,
        artifact_name: str = "optimized_model",
        *,
        program: "dspy.Module" = None,
        trust_pickle: bool = False,
    ) -> Any:
        """The program logged under `artifact_name`, without an LM.

        Args:
            program: a fresh instance to load into, for a class that can't be imported.
            trust_pickle: read the pickle instead of the JSON; it can run arbitrary code.

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

    async def read_prompt(self, run_id: str, artifact_name: str = "optimized_model") -> dict[str, Any]:
        """A logged program's prompt as data: by predictor its `inputs`, `outputs`, `instruction`, `demos`.

        Nothing of the program is imported. Raises `ArtifactError` as `load_model_artifact` does.
        """
        from agentcore.tracking._manifest import read_prompt

        with scratch() as directory:
            digests = await self._fetch_model(run_id, artifact_name, directory)
            return read_prompt(directory, artifact_name, digests)

    async def _fetch_model(
        self, run_id: str, artifact_name: str, directory: Path, *, with_pickle: bool = False
    ) -> dict[str, str]:
        """Copy a model's files into `directory`; returns the digests recorded on the run."""
        run = await self.get_run(run_id)
        digests = program_digests(run, artifact_name)
        for filename in digests:
            if with_pickle or not filename.endswith(".pkl"):
                # A local store returns the path of its own file instead of a copy.
                file = await self._download(run.info.run_id, f"models/{filename}", directory)
                if file != directory / filename:
                    shutil.copyfile(file, directory / filename)
        return digests

    # How

    def _run(self, run_id: str | None) -> str:
        run = run_id or self._current.get()
        if run is None:
            raise ConfigurationError("no current run in this task: call start_run first, or pass run_id=")
        return run

    async def _log(self, run_id: str, drafts: Sequence[Draft] | Callable[[], Sequence[Draft]]) -> None:
        """Write drafts; a function that makes large ones runs in a thread."""
        if callable(drafts):
            drafts = await run_in_thread(drafts)
        if not drafts:
            return
        try:
            await (await self._streams.writer(run_id)).log(drafts)
        except UnknownRunError:
            if not self._streams.forget(run_id) or run_id.startswith(LOCAL_PREFIX):
                raise
            # The stream was delivered and pruned meanwhile; find it again by its MLflow id.
            await (await self._streams.writer(run_id)).log(drafts)

    async def opened(self) -> tuple[Journal, Delivery]:
        """The journal, and the delivery from it to this tracker's MLflow."""
        return await self._streams.opened()

    async def _flush_reads(self) -> None:
        _, delivery = await self.opened()
        await run_in_thread(lambda: delivery.flush(timeout=READ_SECONDS))

    async def _experiment(self) -> str:
        if self._experiment_id is None:
            self._experiment_id = await self.gateway.experiment_id()
        return self._experiment_id

    async def _first(self, ranking: Ranking) -> "Run | None":
        """The first run of a ranking."""
        await self._flush_reads()
        return await self._best.find(await self._experiment(), ranking)

    async def _search(
        self, filter_string: str, order_by: Sequence[str], max_results: int | None
    ) -> "list[Run]":
        await self._flush_reads()
        return await self.gateway.search_runs(
            [await self._experiment()], filter_string, order_by, max_results
        )

    async def _download(self, run_id: str, path: str, directory: Path) -> Path:
        try:
            return Path(
                await self.gateway.call(
                    lambda client: client.download_artifacts(run_id, path, str(directory))
                )
            )
        except TrackingError as error:
            raise ArtifactError(f"run {run_id} has no readable artifact {path}: {error}") from None


class _Inputs:
    """The current run, for those who only have data sets to link to it."""

    def __init__(self, tracker: RunTracker, run_id: str) -> None:
        self._tracker, self._run_id = tracker, run_id

    def log_dataset(self, name: str, digest: str, rows: int, context: str) -> None:
        self._tracker.sync.log_dataset(name, digest, rows, context, run_id=self._run_id)


class SyncRunTracker(SyncTwin):
    """`RunTracker`, blocking."""

    start_run = blocking(RunTracker.start_run)
    end_run = blocking(RunTracker.end_run)
    get_run = blocking(RunTracker.get_run)
    find_run = blocking(RunTracker.find_run)
    tracking_id = blocking(RunTracker.tracking_id)
    search_runs = blocking(RunTracker.search_runs)
    get_best_run = blocking(RunTracker.get_best_run)
    cleanup_experiment = blocking(RunTracker.cleanup_experiment)
    deliver_backlog = blocking(RunTracker.deliver_backlog)
    flush = blocking(RunTracker.flush)
    log = blocking(RunTracker.log)
    log_metrics = blocking(RunTracker.log_metrics)
    log_params = blocking(RunTracker.log_params)
    set_tags = blocking(RunTracker.set_tags)
    log_input = blocking(RunTracker.log_input)
    log_dataset = blocking(RunTracker.log_dataset)
    log_json = blocking(RunTracker.log_json)
    log_artifact = blocking(RunTracker.log_artifact)
    read_json = blocking(RunTracker.read_json)
    log_model_artifact = blocking(RunTracker.log_model_artifact)
    model_id = blocking(RunTracker.model_id)
    load_model_artifact = blocking(RunTracker.load_model_artifact)
    read_prompt = blocking(RunTracker.read_prompt)
