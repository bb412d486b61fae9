"""`Journal`: append-only streams of events, one per run, durable before anything acts on them."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row, make_url

from agentcore._forks import not_forked
from agentcore._naming import LOCAL_PREFIX, now_ms
from agentcore._redaction import Redactor
from agentcore.errors import (
    ConfigurationError,
    DamagedEventError,
    JournalDamagedError,
    JournalError,
    UnknownEventError,
)
from agentcore.journal._event import (
    Event,
    decode,
    decode_leniently,
    encode,
    kind_of,
    kinds_of,
)
from agentcore.journal._leases import Keeper, acquire, prune_names, release, standing
from agentcore.journal._payloads import FilePayloads, Payloads, TablePayloads
from agentcore.journal._schema import (
    commits,
    cursors,
    events,
    explain,
    is_damage,
    leases,
    make_engine,
    migrate,
    payload_refs,
    rejections,
    shown,
    streams,
)
from agentcore.journal._stream import Entry, Page, Stream, stream_of
from agentcore.journal._writer import Append, EventRow, Lease, Writer, append

T = TypeVar("T")

ADOPTED = "adopted"
"""The kind of a stream for a run that another client started."""
MAX_ID = 64
_READER = "mlflow"
_COMMIT_KEPT_MS = 86_400_000
"""How long to keep the row of a writer that is gone. Lost replies are looked up within a minute."""


class Journal:
    """Events of runs, in a SQLite file or in Postgres.

    Thread safety: every method may be called from any thread. An append is durable once its future is done.
    If the disk is full or lost, the future raises `JournalError` and none of that append is kept.

    Attributes:
        location: the file, or the database's URL without its password.
        shared: whether other machines may write to it.
        payloads: the store for content too large to keep in events.
    """

    def __init__(self, url: str, payloads_directory: Path | None = None) -> None:
        self._engine = make_engine(make_url(url))
        migrate(self._engine)
        self.location = shown(self._engine.url)
        self.shared = self._engine.dialect.name == "postgresql"
        self.payloads: Payloads = (
            FilePayloads(payloads_directory) if payloads_directory else TablePayloads(self._engine)
        )
        self._writer = Writer(self._engine)
        self._keeper = Keeper(self._writer)

    # Writing

    def append(
        self,
        stream: str,
        new: Sequence[Event],
        *,
        lease: Lease | None = None,
        redactor: Redactor | None = None,
    ) -> "Future[int]":
        """Append events; the future's result is the last one's sequence number.

        Args:
            lease: fail with `LeaseLostError` unless this lease is still held.
            redactor: redacts secrets before the events are written.
        """
        return self._writer.submit(_append(stream, new, lease, redactor))

    async def write(
        self,
        stream: str,
        new: Sequence[Event],
        *,
        lease: Lease | None = None,
        redactor: Redactor | None = None,
    ) -> int:
        """`append`, awaited."""
        return await wait(self.append(stream, new, lease=lease, redactor=redactor))

    def create(
        self,
        stream: str,
        kind: str,
        name: str,
        destination: str,
        *,
        tracking_id: str | None = None,
        work: bool = False,
        first: Sequence[Event] = (),
        redactor: Redactor | None = None,
    ) -> "Future[Lease | None]":
        """Create a stream with its `first` events unless it exists already; with `work`, also acquire its
        work lease. All in one commit."""
        if not 0 < len(stream) <= MAX_ID or len(tracking_id or "") > MAX_ID:
            raise ConfigurationError(f"{tracking_id or stream!r} is not a run id")
        events_of_it = _append(stream, first, None, redactor)
        row = {
            "id": stream,
            "kind": kind,
            "name": name,
            "destination": destination,
            "tracking_id": tracking_id,
            "created_ms": now_ms(),
            "changed_ms": now_ms(),
            "last_seq": 0,
            "finished": False,
            "attempted": False,
        }

        def make(connection: Connection) -> Lease | None:
            if connection.execute(sa.select(streams.c.id).where(streams.c.id == stream)).first() is None:
                connection.execute(streams.insert().values(**row))
                (outcome,) = append(connection, [events_of_it])
                if isinstance(outcome, BaseException):
                    raise outcome
            return self._keep(acquire(connection, stream, "work")) if work else None

        return self._writer.submit(make)

    def acquire(self, stream: str, role: Literal["work", "deliver"]) -> "Future[Lease | None]":
        """Acquire a lease, renewed until it is released; None if another process holds it."""
        return self._writer.submit(lambda connection: self._keep(acquire(connection, stream, role)))

    async def take(self, stream: str, role: Literal["work", "deliver"] = "work") -> Lease | None:
        """`acquire`, awaited; if the caller is cancelled meanwhile, the lease is released again."""
        asked = self.acquire(stream, role)
        try:
            return await wait(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(self._give_back)
            raise

    def _give_back(self, done: "Future[Lease | None]") -> None:
        if not done.cancelled() and done.exception() is None and (lease := done.result()) is not None:
            self.abandon(lease)

    def abandon(self, lease: Lease) -> "Future[None]":
        """Release a lease, retrying later if the journal can't be written right now; the future is that of
        the first attempt."""
        return self._keeper.give_up(lease)

    def release(self, lease: Lease) -> "Future[None]":
        """Release a lease; the future is done once that is durable."""
        self._keeper.drop(lease)
        return self._writer.submit(lambda connection: release(connection, lease))

    def attempt(self, lease: Lease) -> "Future[None]":
        """Record that the run is about to be created at its destination."""
        return self._update(lease, attempted=True)

    def map(self, lease: Lease, tracking_id: str) -> "Future[None]":
        """Record the run's id at its destination."""
        return self._update(lease, tracking_id=tracking_id)

    def advance(self, lease: Lease, seq: int, rejected: Sequence[tuple[int, str]] = ()) -> "Future[None]":
        """Record that everything up to `seq` is delivered, except what the destination rejected for good."""

        def move(connection: Connection) -> None:
            standing(connection, lease)
            where = (cursors.c.stream == lease.stream) & (cursors.c.reader == _READER)
            if not connection.execute(cursors.update().where(where).values(seq=seq)).rowcount:
                connection.execute(cursors.insert().values(stream=lease.stream, reader=_READER, seq=seq))
            for number, reason in rejected:
                connection.execute(rejections.insert().values(stream=lease.stream, seq=number, reason=reason))

        return self._writer.submit(move)

    def _update(self, lease: Lease, **values: Any) -> "Future[None]":
        def change(connection: Connection) -> None:
            standing(connection, lease)
            connection.execute(streams.update().where(streams.c.id == lease.stream).values(**values))

        return self._writer.submit(change)

    def _keep(self, lease: Lease | None) -> Lease | None:
        """Start renewing a lease before anyone can release it."""
        if lease is not None:
            self._keeper.keep(lease)
        return lease

    def submit(self, change: "Callable[[Connection], T]") -> "Future[T]":
        """Any other change, in a transaction of the journal's writer."""
        return self._writer.submit(change)

    # Reading

    def read(
        self,
        stream: str,
        after: int = 0,
        limit: int | None = None,
        *,
        of: type[Event] = Event,
        lenient: bool = False,
    ) -> list[Entry]:
        """Events of a type with a sequence number above `after`, in order.

        Args:
            lenient: return events of unknown kinds as `UnknownEvent` instead of raising.

        Raises:
            UnknownEventError: a newer version wrote one of them.
            DamagedEventError: one of them can't be read.
        """
        wanted = (
            sa.select(events.c.seq, events.c.kind, events.c.body)
            .where(events.c.stream == stream, events.c.seq > after)
            .order_by(events.c.seq)
            .limit(limit)
        )
        if of is not Event:
            wanted = wanted.where(events.c.kind.in_(kinds_of(of)))
        reading = decode_leniently if lenient else decode
        return [Entry(row.seq, reading(row.kind, row.body)) for row in self._rows(wanted)]

    def deliverable(self, stream: Stream, after: int, limit: int) -> Page:
        """The entries to deliver with a sequence number above `after`, up to the first event that this
        version doesn't know: skipping that event would lose it."""
        wanted = (
            sa.select(events.c.seq, events.c.kind, events.c.body)
            .where(events.c.stream == stream.id, events.c.seq > after)
            .where(events.c.deliverable.is_not(False))
            .order_by(events.c.seq)
            .limit(limit)
        )
        rows = self._rows(wanted)
        entries: list[Entry] = []
        damaged: list[tuple[int, str]] = []
        for row in rows:
            try:
                event = decode(row.kind, row.body)
            except DamagedEventError as error:
                damaged.append((row.seq, str(error)))
                continue
            except UnknownEventError as unknown:
                return Page(entries, row.seq - 1, damaged, unknown)
            if event.deliverable:
                entries.append(Entry(row.seq, event))
        # Fewer rows than `limit` means there are no more; `stream` was read before them.
        return Page(entries, rows[-1].seq if len(rows) == limit else max(stream.last_seq, after), damaged)

    def last(self, stream: str, *of: type[Event]) -> Event | None:
        """The last event of these types."""
        wanted = [kind for item in of for kind in kinds_of(item)]
        query = (
            sa.select(events.c.kind, events.c.body)
            .where(events.c.stream == stream, events.c.kind.in_(wanted))
            .order_by(events.c.seq.desc())
            .limit(1)
        )
        return next((decode(row.kind, row.body) for row in self._rows(query)), None)

    def stream(self, stream: str) -> Stream | None:
        """One run by its journal id; None if there is none."""
        return next(iter(self._streams(streams.c.id == stream)), None)

    def streams(self, destination: str | None = None) -> list[Stream]:
        """All runs, newest first."""
        return self._streams(streams.c.destination == destination if destination is not None else sa.true())

    def of_kind(
        self, kind: str, names: Sequence[str], *, unfinished: bool = False, limit: int | None = None
    ) -> list[Stream]:
        """Streams of a kind with one of these names, newest first."""
        conditions = [streams.c.kind == kind, streams.c.name.in_(names)]
        if unfinished:
            conditions.append(streams.c.finished.is_(False))
        return self._streams(*conditions, limit=limit)

    def waiting(self, destination: str, stream: str | None = None) -> list[Stream]:
        """Runs with undelivered entries, oldest first."""
        found = self._streams(
            streams.c.destination == destination,
            streams.c.last_seq > sa.func.coalesce(cursors.c.seq, 0),
            *([streams.c.id == stream] if stream else []),
        )
        return found[::-1]

    def find(self, prefix: str) -> list[Stream]:
        """Runs whose journal id or tracking id starts with `prefix`."""
        # Ids are hexadecimal, so nothing needs escaping; any other prefix matches no run.
        if not prefix.isalnum():
            return []
        return self._streams(streams.c.id.startswith(prefix) | streams.c.tracking_id.startswith(prefix))

    def resolve(self, run_id: str, *, destination: str | None = None, exact: bool = False) -> Stream | None:
        """Find a run by its journal, MLflow or `local-…` id, or a unique prefix of one.

        Args:
            destination: look only among runs for this destination.
            exact: match whole ids only, no prefixes.

        Raises:
            ConfigurationError: the prefix matches several runs.
        """
        wanted = run_id.removeprefix(LOCAL_PREFIX)
        found = [item for item in self.find(wanted) if destination in (None, item.destination)]
        same = [item for item in found if wanted in (item.tracking_id, item.id)]
        if same or exact:
            return next(iter(same), None)
        if len(found) > 1:
            raise ConfigurationError(f"{len(found)} run ids start with {run_id!r}: use a longer prefix")
        return next(iter(found), None)

    def rejected(self, stream: str) -> list[tuple[int, str]]:
        """Sequence number and reason of each entry that the destination permanently rejected."""
        wanted = sa.select(rejections.c.seq, rejections.c.reason).where(rejections.c.stream == stream)
        return [(row.seq, row.reason) for row in self._rows(wanted.order_by(rejections.c.seq))]

    def _streams(self, *conditions: Any, limit: int | None = None) -> list[Stream]:
        wanted = (
            sa.select(streams, cursors.c.seq, leases.c.owner, leases.c.until_ms)
            .outerjoin(cursors, (cursors.c.stream == streams.c.id) & (cursors.c.reader == _READER))
            .outerjoin(leases, (leases.c.stream == streams.c.id) & (leases.c.role == "work"))
            .where(*conditions)
            .order_by(streams.c.created_ms.desc(), streams.c.id)
            .limit(limit)
        )
        return [stream_of(row) for row in self._rows(wanted)]

    def _rows(self, wanted: Any) -> Sequence[Row[Any]]:
        try:
            with not_forked(), self._engine.connect() as connection:
                return connection.execute(wanted).all()
        except sa.exc.SQLAlchemyError as error:
            kind = JournalDamagedError if is_damage(error) else JournalError
            raise kind(f"the journal at {self.location} can't be read: {explain(error)}") from None

    # Maintenance

    def check_writable(self) -> None:
        """Commit a transaction that changes nothing; raises `JournalError` if that fails."""
        self._writer.submit(
            lambda connection: connection.execute(streams.delete().where(streams.c.id == "")).rowcount
        ).result()

    def prune(self, before_ms: int) -> list[str]:
        """Remove finished, fully delivered runs that haven't changed since `before_ms`, and rows left behind
        by dead processes and unused `once=` names. Returns the ids of the removed runs."""
        ended = streams.c.finished | (streams.c.kind == ADOPTED)
        old = [
            item
            for item in self._streams(ended, streams.c.changed_ms < before_ms)
            if not item.waiting and item.working == "no"
        ]
        removed = [item.id for item in old if self._writer.submit(_removal(item)).result()]
        self._writer.submit(_prune_leftovers).result()
        refs = sa.select(payload_refs.c.sha256).distinct()
        self.payloads.remove_old(lambda: {row.sha256 for row in self._rows(refs)})
        return removed

    def discard(self, stream: str) -> None:
        """Remove a run, delivered or not."""
        self._writer.submit(lambda connection: _remove(connection, stream)).result()

    def close(self) -> None:
        """Write what is queued, stop the threads and close the database."""
        self._keeper.close()
        self._writer.close()
        self._engine.dispose()


def _append(stream: str, new: Sequence[Event], lease: Lease | None, redactor: Redactor | None) -> Append:
    ends = [end for event in new if (end := event.finishes()) is not None]
    return Append(
        stream,
        [EventRow(kind_of(event), encode(event, redactor), event.deliverable) for event in new],
        [name for event in new for name in event.payloads()],
        ends[-1] if ends else None,
        lease,
    )


def _prune_leftovers(connection: Connection) -> None:
    prune_names(connection)
    connection.execute(commits.delete().where(commits.c.touched_ms < now_ms() - _COMMIT_KEPT_MS))


def _removal(item: Stream) -> Any:
    def remove(connection: Connection) -> bool:
        # The run may have changed since it was read.
        same = sa.select(streams.c.id).where(
            streams.c.id == item.id,
            streams.c.changed_ms == item.changed_ms,
            streams.c.last_seq == item.last_seq,
        )
        if connection.execute(same).first() is None:
            return False
        _remove(connection, item.id)
        return True

    return remove


def _remove(connection: Connection, stream: str) -> None:
    for table in (events, cursors, rejections, leases, payload_refs):
        connection.execute(table.delete().where(table.c.stream == stream))
    connection.execute(streams.delete().where(streams.c.id == stream))


async def wait(future: "Future[T]") -> T:
    """Await a write; if the caller is cancelled, the write continues."""
    inner = asyncio.wrap_future(future)
    inner.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(inner)
