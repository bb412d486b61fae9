"""Brings one run's entries from the journal to MLflow, in their order."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agentcore.errors import LeaseLostError, PayloadGoneError
from agentcore.journal import (
    ArtifactLogged,
    Entry,
    InputsLogged,
    Journal,
    Lease,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    PlotsLogged,
    RunCreated,
    RunEnded,
    RunReopened,
    Stream,
    TagsSet,
    TrackingEvent,
)
from agentcore.tracking._client import Connection, Rejected
from agentcore.tracking._plots import plot_comparison, plot_trials
from agentcore.tracking._requests import (
    create_run,
    delete_doubles,
    get_or_create_experiment,
    log_batch,
    log_inputs,
    log_model,
)

_PAGE = 2000
# What the server takes in one request.
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

    def run(self) -> None:
        """Deliver until nothing waits.

        Raises:
            Unreachable, Held: later; what was delivered stays so.
            LeaseLostError: another process delivers this run now.
        """
        while True:
            known = self.journal.stream(self.stream)
            if known is None or known.last_seq <= self.position:
                return
            entries = self.journal.read(self.stream, self.position, _PAGE, of=TrackingEvent)
            for batch in batches(entries):
                rejected = self._deliver(batch)
                self._advance(batch[-1].seq, rejected)
            if len(entries) < _PAGE:
                # What lies behind is of no interest to MLflow.
                self._advance(max(known.last_seq, self.position), [])

    def _advance(self, seq: int, rejected: Rejections) -> None:
        if seq > self.position:
            self.journal.advance(self.lease, seq, rejected).result()
            self.position = seq
            self.on_progress()

    def _deliver(self, batch: Batch) -> Rejections:
        try:
            self._send([entry.event for entry in batch])
        except (Rejected, PayloadGoneError) as error:
            if len(batch) == 1:
                return [(batch[0].seq, str(error))]
            # One of them is refused: the others must not go with it.
            return [item for entry in batch for item in self._deliver([entry])]
        return []

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
        elif isinstance(event, PlotsLogged):
            _draw(event, directory)
            for file in sorted(directory.iterdir()):
                self._upload(run_id, file, "plots")
        elif isinstance(event, ModelLogged):
            files = directory / "program"
            files.mkdir()
            for name, sha256 in event.files.items():
                (files / name).write_bytes(self.journal.payloads.get(sha256))
            self.connection.run(lambda client: log_model(client, run_id, event, files, directory / "pyfunc"))
        else:
            raise AssertionError(f"{type(event).__name__} has no way to MLflow")

    def _upload(self, run_id: str, file: Path, folder: str) -> None:
        self.connection.run(lambda client: client.log_artifact(run_id, str(file), folder or None))

    def _create(self, event: RunCreated) -> None:
        if self.run_id is not None:  # made before the cursor could follow
            return
        attempted = self.attempted
        if not attempted:
            self.journal.attempt(self.lease).result()
            self.attempted = True

        def create(client: Any) -> str:
            experiment = get_or_create_experiment(client, event.experiment, event.artifact_location)
            run_id = create_run(
                client, experiment, event.name, event.tags, event.timestamp_ms, attempted=attempted
            )
            # MLflow's own retry may have made two.
            delete_doubles(client, run_id, experiment, self.stream)
            return run_id

        made = self.connection.run(create)
        try:
            self.journal.map(self.lease, made).result()
        except LeaseLostError:
            # Whoever took over looked for the run before it was there, and made another.
            if (now := self.journal.stream(self.stream)) is not None and now.tracking_id not in (None, made):
                self.connection.run(lambda client: client.delete_run(made))
            raise
        self.run_id = made

    def _end(self, client: Any, run_id: str, event: RunEnded) -> None:
        if self.attempted:
            experiment = client.get_run(run_id).info.experiment_id
            delete_doubles(client, run_id, experiment, self.stream)
        client.set_terminated(run_id, event.status, end_time=event.timestamp_ms)


def _draw(event: PlotsLogged, directory: Path) -> None:
    if event.trials:
        plot_trials(event.trials, directory / "trials.png")
    plot_comparison(
        event.baseline,
        event.optimized,
        event.interval,
        event.p_value,
        event.examples,
        directory / "comparison.png",
    )


def batches(entries: Sequence[Entry]) -> Iterator[Batch]:
    """Neighbours that go in one request."""
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
    """What is left of a request's limits."""

    def __init__(self) -> None:
        self.metrics, self.params, self.tags, self.bytes = _MAX_METRICS, _MAX_PARAMS, _MAX_TAGS, _MAX_BYTES
        self.names: dict[str, str] = {}
        self.empty = True

    def takes(self, event: MetricsLogged | ParamsLogged | TagsSet) -> bool:
        """Whether the event fits, which then takes its room. One alone always fits: the client cuts it up."""
        if isinstance(event, MetricsLogged):
            self.metrics -= len(event.metrics)
            self.bytes -= 100 * len(event.metrics)
        elif isinstance(event, ParamsLogged):
            self.params -= len(event.params)
            self.bytes -= sum(len(name) + 4 * len(value) for name, value in event.params.items())
            # A changed value is refused: the refusal must be its own.
            if any(self.names.setdefault(name, value) != value for name, value in event.params.items()):
                return False
        else:
            self.tags -= len(event.tags)
            self.bytes -= sum(len(name) + 4 * len(value) for name, value in event.tags.items())
        fits = min(self.metrics, self.params, self.tags, self.bytes) >= 0 or self.empty
        self.empty = False
        return fits
