"""`Journal`: append-only streams of events, one a run, durable before anything acts on them."""

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row, make_url

from agentcore._forks import not_forked
from agentcore.errors import ConfigurationError, JournalError
from agentcore.journal._codec import decode, encode, kind_of, kinds
from agentcore.journal._events import Event, RunFinished
from agentcore.journal._leases import Keeper, acquire, liveness, release, standing
from agentcore.journal._outbox import RunEnded, RunReopened
from agentcore.journal._payloads import FilePayloads, Payloads, TablePayloads
from agentcore.journal._schema import (
    cursors,
    events,
    explain,
    leases,
    make_engine,
    migrate,
    payload_refs,
    rejections,
    shown,
    streams,
)
from agentcore.journal._writer import Append, Lease, Writer, append, now_ms

T = TypeVar("T")

StreamKind = Literal["optimization", "run", "adopted"]
MAX_ID = 64
_READER = "mlflow"


@dataclass(frozen=True)
class Stream:
    """One run in the journal."""

    id: str
    kind: StreamKind
    name: str
    destination: str
    """The tracking URI that its entries are for, without a password."""
    tracking_id: str | None
    """The run's id at its destination, once it is made there."""
    created_ms: int
    changed_ms: int
    last_seq: int
    delivered: int
    """Sequence number up to which the destination has everything."""
    finished: bool
    attempted: bool
    """Whether it was tried to make the run: it may exist although `tracking_id` is unknown."""
    working: Literal["yes", "no", "unknown"]
    """Whether a process is working on the run: `unknown` until the lease of one elsewhere runs out."""

    @property
    def waiting(self) -> int:
        """Entries that the destination doesn't have yet."""
        return self.last_seq - self.delivered

    @property
    def interrupted(self) -> bool:
        """An optimization whose process died."""
        return self.kind == "optimization" and not self.finished and self.working == "no"


@dataclass(frozen=True)
class Entry:
    seq: int
    event: Event


class Journal:
    """Events of runs, in a SQLite file or in Postgres. Every method may be called from any thread.

    An append is durable when its future is done; the future of a lost or full disk raises `JournalError`,
    and nothing of that append is kept.
    """

    def __init__(self, url: str, payloads_directory: Path | None = None) -> None:
        self._engine = make_engine(make_url(url))
        migrate(self._engine)
        self.home = shown(self._engine.url)
        self.payloads: Payloads = (
            FilePayloads(payloads_directory) if payloads_directory else TablePayloads(self._engine)
        )
        self._writer = Writer(self._engine)
        self._keeper = Keeper(self._writer)

    # Writing

    def append(
        self, stream: str, new: Sequence[Event], *, lease: Lease | None = None, secrets: Iterable[str] = ()
    ) -> "Future[int]":
        """Append events; the future's result is the last one's sequence number.

        Args:
            lease: refuse with `LeaseLostError` unless it is still held.
            secrets: values to cut out of what is written.
        """
        return self._writer.submit(_append(stream, new, lease, secrets))

    async def write(
        self, stream: str, new: Sequence[Event], *, lease: Lease | None = None, secrets: Iterable[str] = ()
    ) -> int:
        """`append`, awaited."""
        return await wait(self.append(stream, new, lease=lease, secrets=secrets))

    def create(
        self,
        stream: str,
        kind: StreamKind,
        name: str,
        destination: str,
        *,
        tracking_id: str | None = None,
        work: bool = False,
        first: Sequence[Event] = (),
        secrets: Iterable[str] = (),
    ) -> "Future[Lease | None]":
        """Make a stream, if there is none of that id; with `work` its lease, and its `first` events, in the
        same commit."""
        if not 0 < len(stream) <= MAX_ID or len(tracking_id or "") > MAX_ID:
            raise ConfigurationError(f"{tracking_id or stream!r} is no run's id")
        events_of_it = _append(stream, first, None, secrets)
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
        """The lease, renewed until it is released; None where another holder lives."""
        return self._writer.submit(lambda connection: self._keep(acquire(connection, stream, role)))

    def abandon(self, lease: Lease) -> None:
        """Release a lease, and try again where the journal can't be written just now."""
        self._keeper.give_up(lease)

    def release(self, lease: Lease) -> "Future[None]":
        self._keeper.drop(lease)
        return self._writer.submit(lambda connection: release(connection, lease))

    def attempt(self, lease: Lease) -> "Future[None]":
        """Note that the run is about to be made at its destination."""
        return self._update(lease, attempted=True)

    def map(self, lease: Lease, tracking_id: str) -> "Future[None]":
        """Note the run's id at its destination."""
        return self._update(lease, tracking_id=tracking_id)

    def advance(self, lease: Lease, seq: int, rejected: Sequence[tuple[int, str]] = ()) -> "Future[None]":
        """Note that everything up to `seq` is delivered, but for what the destination refused for good."""

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
        """Renew a lease from before anyone can release it."""
        if lease is not None:
            self._keeper.keep(lease)
        return lease

    # Reading

    def read(
        self, stream: str, after: int = 0, limit: int | None = None, *, of: type[Event] = Event
    ) -> list[Entry]:
        """Events of a type with a sequence number above `after`, in order."""
        wanted = (
            sa.select(events.c.seq, events.c.body)
            .where(events.c.stream == stream, events.c.seq > after)
            .order_by(events.c.seq)
            .limit(limit)
        )
        if of is not Event:
            wanted = wanted.where(events.c.kind.in_(kinds(of)))
        return [Entry(row.seq, decode(row.body)) for row in self._rows(wanted)]

    def last(self, stream: str, *of: type[Event]) -> Event | None:
        """The last event of these types."""
        wanted = [kind for item in of for kind in kinds(item)]
        query = (
            sa.select(events.c.body)
            .where(events.c.stream == stream, events.c.kind.in_(wanted))
            .order_by(events.c.seq.desc())
            .limit(1)
        )
        return next((decode(row.body) for row in self._rows(query)), None)

    def stream(self, stream: str) -> Stream | None:
        return next(iter(self._streams(streams.c.id == stream)), None)

    def streams(self, destination: str | None = None) -> list[Stream]:
        """All runs, newest first."""
        return self._streams(streams.c.destination == destination if destination is not None else sa.true())

    def waiting(self, destination: str, stream: str | None = None) -> list[Stream]:
        """Runs with entries that are not delivered, oldest first."""
        found = self._streams(
            streams.c.destination == destination,
            streams.c.last_seq > sa.func.coalesce(cursors.c.seq, 0),
            *([streams.c.id == stream] if stream else []),
        )
        return found[::-1]

    def find(self, text: str) -> list[Stream]:
        """Runs whose own or tracking id starts with `text`."""
        # Ids are hexadecimal, so there is nothing to escape; anything else finds nothing.
        if not text.isalnum():
            return []
        return self._streams(streams.c.id.startswith(text) | streams.c.tracking_id.startswith(text))

    def rejected(self, stream: str) -> list[tuple[int, str]]:
        """Sequence number and reason of what the destination refused for good."""
        wanted = sa.select(rejections.c.seq, rejections.c.reason).where(rejections.c.stream == stream)
        return [(row.seq, row.reason) for row in self._rows(wanted.order_by(rejections.c.seq))]

    def _streams(self, *conditions: Any) -> list[Stream]:
        wanted = (
            sa.select(streams, cursors.c.seq, leases.c.owner, leases.c.until_ms)
            .outerjoin(cursors, (cursors.c.stream == streams.c.id) & (cursors.c.reader == _READER))
            .outerjoin(leases, (leases.c.stream == streams.c.id) & (leases.c.role == "work"))
            .where(*conditions)
            .order_by(streams.c.created_ms.desc(), streams.c.id)
        )
        return [_stream(row) for row in self._rows(wanted)]

    def _rows(self, wanted: Any) -> Sequence[Row[Any]]:
        try:
            with not_forked(), self._engine.connect() as connection:
                return connection.execute(wanted).all()
        except sa.exc.SQLAlchemyError as error:
            raise JournalError(f"the journal at {self.home} can't be read: {explain(error)}") from None

    # Keeping it small

    def check_writable(self) -> None:
        """Commit a change that changes nothing; `JournalError` where that can't be done."""
        self._writer.submit(
            lambda connection: connection.execute(streams.delete().where(streams.c.id == "")).rowcount
        ).result()

    def prune(self, before_ms: int) -> list[str]:
        """Remove runs that are delivered, ended, and unchanged since `before_ms`; returns their ids."""
        ended = streams.c.finished | (streams.c.kind == "adopted")
        old = [
            item
            for item in self._streams(ended, streams.c.changed_ms < before_ms)
            if not item.waiting and item.working == "no"
        ]
        removed = [item.id for item in old if self._writer.submit(_removal(item)).result()]
        refs = sa.select(payload_refs.c.sha256).distinct()
        self.payloads.remove_old(lambda: {row.sha256 for row in self._rows(refs)})
        return removed

    def discard(self, stream: str) -> None:
        """Remove a run, delivered or not."""
        self._writer.submit(lambda connection: _remove(connection, stream)).result()

    def close(self) -> None:
        self._keeper.close()
        self._writer.close()
        self._engine.dispose()


def _append(stream: str, new: Sequence[Event], lease: Lease | None, secrets: Iterable[str]) -> Append:
    hidden = list(secrets)
    finished: bool | None = None
    for event in new:
        if isinstance(event, RunReopened):
            finished = False
        elif isinstance(event, RunFinished) or (isinstance(event, RunEnded) and not event.interim):
            finished = True
    return Append(
        stream,
        [(kind_of(event), encode(event, hidden)) for event in new],
        [name for event in new for name in event.payloads()],
        finished,
        lease,
    )


def _stream(row: Row[Any]) -> Stream:
    return Stream(
        id=row.id,
        kind=row.kind,
        name=row.name,
        destination=row.destination,
        tracking_id=row.tracking_id,
        created_ms=row.created_ms,
        changed_ms=row.changed_ms,
        last_seq=row.last_seq,
        delivered=row.seq or 0,
        finished=row.finished,
        attempted=row.attempted,
        working=liveness(row.owner, row.until_ms),
    )


def _removal(item: Stream) -> Any:
    def remove(connection: Connection) -> bool:
        # It may have changed since it was read.
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
    """Await a write; a cancelled caller leaves it under way."""
    inner = asyncio.wrap_future(future)
    inner.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(inner)
