"""Sends one run's journal entries to MLflow, in order."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentcore._naming import short_id
from agentcore._redaction import first_line
from agentcore.errors import LeaseLostError, PayloadGoneError
from agentcore.journal import Entry, Journal, Lease, Stream
from agentcore.tracking._connection import Connection, Held, Rejected
from agentcore.tracking._digests import digest_tags
from agentcore.tracking._entries import refusal
from agentcore.tracking._events import (
    ArtifactLogged,
    FilesRendered,
    InputsLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    RunCreated,
    RunEnded,
    RunReopened,
    RunTaken,
    TagsSet,
    TracesLogged,
    VersionRegistered,
)
from agentcore.tracking._requests import (
    create_run,
    delete_doubles,
    deleted,
    get_or_create_experiment,
    known_digests,
    log_batch,
    log_inputs,
    log_model,
    register_version,
    take,
    upload,
)
from agentcore.tracking._traces import log_traces

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PAGE = 2000
# The server's limits per request.
_MAX_METRICS = 1000
_MAX_PARAMS = 100
_MAX_TAGS = 100
_MAX_BYTES = 900_000

Batch = list[Entry]
Rejections = list[tuple[int, str]]


class Sender:
    """Delivers one stream under its lease. Blocking."""

    def __init__(
        self,
        journal: Journal,
        connection: Connection,
        stream: Stream,
        lease: Lease,
        on_progress: Callable[[], None],
    ) -> None:
        self.journal = journal
        self.connection = connection
        self.lease = lease
        self.stream = stream.id
        self.run_id = stream.tracking_id
        self.attempted = stream.attempted
        self.position = stream.delivered
        self.on_progress = on_progress
        self._digests: dict[str, str] | None = None

    def run(self) -> None:
        """Deliver all waiting entries.

        Raises:
            Unreachable, Held: try again later; what was delivered stays delivered.
            LeaseLostError: another process delivers this run now.
        """
        while True:
            known = self.journal.stream(self.stream)
            if known is None or known.last_seq <= self.position:
                return
            page = self.journal.deliverable(known, self.position, _PAGE)
            damaged = list(page.damaged)
            for batch in batches(page.entries):
                through = batch[-1].seq
                # In one commit with the step past them, or whoever waits for that step doesn't see them.
                passed = [item for item in damaged if item[0] <= through]
                damaged = damaged[len(passed) :]
                self._advance(through, [*self._deliver(batch), *passed])
            self._advance(page.through, damaged)
            if page.unknown is not None:
                # Don't skip it: a process that knows this event must deliver it in order.
                raise Held(f"run {short_id(self.stream)} waits: {page.unknown}")

    def _advance(self, seq: int, rejected: Rejections) -> None:
        if seq > self.position or rejected:
            self.journal.advance(self.lease, seq, rejected).result()
            self.position = seq
            self.on_progress()

    def _deliver(self, batch: Batch) -> Rejections:
        refused = [(entry.seq, why) for entry in batch if (why := refusal(entry.event)) is not None]
        if refused:  # let in by an earlier version
            known = {seq for seq, _ in refused}
            rest = [entry for entry in batch if entry.seq not in known]
            return refused + (self._deliver(rest) if rest else [])
        try:
            self._send([entry.event for entry in batch])
        except (Rejected, PayloadGoneError) as error:
            self._hold_if_deleted()
            if len(batch) == 1:
                return [(batch[0].seq, str(error))]
            # One of them was refused; deliver the others one by one.
            return [item for entry in batch for item in self._deliver([entry])]
        return []

    def _hold_if_deleted(self) -> None:
        """Raise `Held` if MLflow refuses everything because the run or its experiment is deleted."""
        run_id = self.run_id
        if run_id is None:
            return
        try:
            why = self.connection.run(lambda client: deleted(client, run_id))
        except Rejected:
            return  # it is gone for good
        if why is not None:
            raise Held(why)

    def _send(self, events: Sequence[Any]) -> None:
        first = events[0]
        if isinstance(first, RunCreated):
            self._create(first)
            return
        run_id = self.run_id
        if run_id is None:
            raise Rejected("its run was refused")
        if isinstance(first, MetricsLogged | ParamsLogged | TagsSet):
            self.connection.run(lambda client: log_batch(client, run_id, events))
        elif isinstance(first, InputsLogged):
            self.connection.run(lambda client: log_inputs(client, run_id, first.datasets))
        elif isinstance(first, TracesLogged):
            self.connection.run(lambda client: log_traces(client, run_id, first.traces))
        elif isinstance(first, VersionRegistered):
            self.connection.run(lambda client: register_version(client, run_id, first))
        elif isinstance(first, RunTaken):
            self.connection.run(lambda client: take(client, run_id, first.token, first.previous))
        elif isinstance(first, RunReopened):
            self.connection.run(lambda client: client.update_run(run_id, status="RUNNING"))
        elif isinstance(first, RunEnded):
            self.connection.run(lambda client: self._end(client, run_id, first))
        else:
            with tempfile.TemporaryDirectory(prefix="agentcore-") as directory:
                self._send_files(run_id, first, Path(directory))

    def _send_files(self, run_id: str, event: Any, directory: Path) -> None:
        if isinstance(event, ArtifactLogged):
            folder, _, name = event.path.rpartition("/")
            file = directory / name
            file.write_bytes(self.journal.payloads.get(event.sha256))
            self._upload(run_id, file, folder)
            self._record(run_id, event)
        elif isinstance(event, FilesRendered):
            try:
                event.render(directory)
            except Exception as error:  # noqa: BLE001 - whatever a drawing library makes of a user's text
                raise Rejected(f"{type(event).__name__} can't be drawn: {first_line(error)}") from None
            for file in sorted(directory.iterdir()):
                self._upload(run_id, file, event.folder)
        elif isinstance(event, ModelLogged):
            files = directory / "program"
            files.mkdir()
            for name, sha256 in event.files.items():
                (files / name).write_bytes(self.journal.payloads.get(sha256))
            self.connection.run(lambda client: log_model(client, run_id, event, files, directory / "pyfunc"))
        else:
            raise AssertionError(f"no delivery is defined for {type(event).__name__}")

    def _record(self, run_id: str, event: ArtifactLogged) -> None:
        """Add an artifact's digest to those on the run."""
        if self._digests is None:
            self._digests = self.connection.run(lambda client: known_digests(client, run_id))
        if self._digests.get(event.path) == event.sha256:
            return
        digests = {**self._digests, event.path: event.sha256}
        tags = TagsSet(tags=digest_tags(digests))
        self.connection.run(lambda client: log_batch(client, run_id, [tags]))
        self._digests = digests

    def _upload(self, run_id: str, file: Path, folder: str) -> None:
        self.connection.run(lambda client: upload(client, run_id, file, folder))

    def _create(self, event: RunCreated) -> None:
        if self.run_id is not None:  # created earlier, but the cursor was not advanced
            return
        attempted = self.attempted
        if not attempted:
            self.journal.attempt(self.lease).result()
            self.attempted = True

        def create(client: "MlflowClient") -> str:
            experiment = get_or_create_experiment(client, event.experiment, event.artifact_location)
            run_id = create_run(
                client, experiment, event.name, event.tags, event.timestamp_ms, attempted=attempted
            )
            # MLflow's own retry may have created a duplicate.
            delete_doubles(client, run_id, experiment, self.stream)
            return run_id

        made = self.connection.run(create)
        try:
            self.journal.map(self.lease, made).result()
        except LeaseLostError:
            # Whoever took over looked for the run before it existed, and created another.
            if (now := self.journal.stream(self.stream)) is not None and now.tracking_id not in (None, made):
                self.connection.run(lambda client: client.delete_run(made))
            raise
        self.run_id = made

    def _end(self, client: "MlflowClient", run_id: str, event: RunEnded) -> None:
        if self.attempted:
            experiment = client.get_run(run_id).info.experiment_id
            delete_doubles(client, run_id, experiment, self.stream)
        client.set_terminated(run_id, event.status, end_time=event.timestamp_ms)


def batches(entries: Sequence[Entry]) -> Iterator[Batch]:
    """Consecutive entries that fit into one request."""
    batch: Batch = []
    room = _Room()
    for entry in entries:
        if not isinstance(entry.event, MetricsLogged | ParamsLogged | TagsSet):
            if batch:
                yield batch
            yield [entry]
            batch, room = [], _Room()
        elif room.takes(entry.event):
            batch.append(entry)
        else:
            yield batch
            batch, room = [entry], _Room()
            room.takes(entry.event)
    if batch:
        yield batch


class _Room:
    """The remaining capacity of a request."""

    def __init__(self) -> None:
        self.metrics, self.params, self.tags, self.bytes = _MAX_METRICS, _MAX_PARAMS, _MAX_TAGS, _MAX_BYTES
        self.names: dict[str, str] = {}
        self.empty = True

    def takes(self, event: MetricsLogged | ParamsLogged | TagsSet) -> bool:
        """Whether the event fits; if so, reserve its space. The first always fits: the client splits it."""
        if isinstance(event, MetricsLogged):
            self.metrics -= len(event.metrics)
            self.bytes -= 100 * len(event.metrics)
        elif isinstance(event, ParamsLogged):
            self.params -= len(event.params)
            self.bytes -= sum(len(name) + 4 * len(value) for name, value in event.params.items())
            # MLflow refuses a changed value, so it must be sent in a request of its own.
            if any(self.names.setdefault(name, value) != value for name, value in event.params.items()):
                return False
        else:
            self.tags -= len(event.tags)
            self.bytes -= sum(len(name) + 4 * len(value) for name, value in event.tags.items())
        fits = min(self.metrics, self.params, self.tags, self.bytes) >= 0 or self.empty
        self.empty = False
        return fits
