"""The single thread that writes to a journal. Writes that are queued together share one durable commit."""

import contextlib
import itertools
import os
import queue
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from agentcore._forks import not_forked
from agentcore._naming import now_ms
from agentcore.errors import JournalError, LeaseLostError, UnknownRunError
from agentcore.journal._schema import commits, events, explain, leases, payload_refs, streams

_MAX_GROUP = 2000
_RETRY_SECONDS = 60.0
"""How long a journal in Postgres may be unreachable (a restart, say) before a write fails."""


@dataclass(frozen=True)
class Lease:
    """The right to work on a stream in one role, until it is released or expires."""

    stream: str
    role: str
    epoch: int


class EventRow(NamedTuple):
    kind: str
    body: str
    """JSON."""
    deliverable: bool


@dataclass
class Append:
    """Events of one stream, as rows."""

    stream: str
    rows: Sequence[EventRow]
    payloads: Sequence[str] = ()
    finished: bool | None = None
    lease: Lease | None = None


Work = Callable[[Connection], Any]
_LOST = (sa.exc.OperationalError, sa.exc.InterfaceError)
"""Errors of the database itself, after which the transaction is rolled back."""


@dataclass
class _Item:
    work: Append | Work
    done: "Future[Any]" = field(default_factory=Future)


class Writer:
    """Applies appends and other changes in the order they were submitted. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(writes=True)
        self._shared = engine.dialect.name == "postgresql"
        self._id = uuid.uuid4().hex
        self._number = 0
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._closed = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="agentcore-journal", daemon=True)
        self._thread.start()

    def submit(self, work: Append | Work) -> "Future[Any]":
        """Queue a change. The future is done once the change is durable. Its result is the last sequence
        number for an append, and the return value for other work."""
        item = _Item(work)
        if self._pid != os.getpid():
            item.done.set_exception(JournalError("a forked process must open its own journal"))
        elif self._closed:
            item.done.set_exception(JournalError("the journal is closed"))
        else:
            self._queue.put(item)
        return item.done

    def close(self) -> None:
        """Write everything that is queued, then stop the thread."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group, ended = [first], False
            while len(group) < _MAX_GROUP:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    ended = True
                    break
                group.append(item)
            self._write([item for item in group if item.done.set_running_or_notify_cancel()])
            if ended:
                return

    def _write(self, group: list[_Item]) -> None:
        try:
            outcomes = self._durably(group)
        except BaseException as error:  # noqa: BLE001 - passed on through the futures
            if len(group) > 1 and not isinstance(error, _LOST):
                for item in group:  # find the one that the database rejects
                    self._write([item])
                return
            failure = error
            if isinstance(error, sa.exc.SQLAlchemyError):
                failure = JournalError(f"the journal can't be written: {explain(error)}")
            outcomes = [failure] * len(group)
        for item, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                item.done.set_exception(outcome)
            else:
                item.done.set_result(outcome)

    def _durably(self, group: list[_Item]) -> list[Any]:
        """Apply a group in one transaction, retrying while a shared database is unreachable. The group is
        never applied twice, even if a reply is lost."""
        deadline = time.monotonic() + _RETRY_SECONDS
        self._number += 1
        outcomes: list[Any] | None = None
        for attempt in itertools.count():
            try:
                if outcomes is not None and self._was_committed():
                    return outcomes
                outcomes = None
                with not_forked(), self._engine.begin() as connection:
                    outcomes = self._apply(connection, group)
                    self._mark(connection)
                return outcomes
            except _LOST:
                if not self._shared or time.monotonic() > deadline:
                    raise
                time.sleep(min(2.0, 0.1 * 2**attempt))
        raise AssertionError("unreachable")

    def _mark(self, connection: Connection) -> None:
        if self._shared:
            values = {"number": self._number, "touched_ms": now_ms()}
            changed = connection.execute(
                commits.update().where(commits.c.writer == self._id).values(**values)
            )
            if not changed.rowcount:
                connection.execute(commits.insert().values(writer=self._id, **values))

    def _was_committed(self) -> bool:
        with not_forked(), self._engine.connect() as connection:
            found = connection.execute(
                sa.select(commits.c.number).where(commits.c.writer == self._id)
            ).scalar()
        return found == self._number

    def _apply(self, connection: Connection, group: list[_Item]) -> list[Any]:
        outcomes: list[Any] = []
        for appends, items in itertools.groupby(group, key=lambda item: isinstance(item.work, Append)):
            if appends:
                outcomes += append(connection, [item.work for item in items])  # type: ignore[misc]
            else:
                outcomes += [_outcome(connection, item.work) for item in items]  # type: ignore[arg-type]
        return outcomes


def _outcome(connection: Connection, work: Work) -> Any:
    try:
        with connection.begin_nested():
            return work(connection)
    except _LOST:
        raise
    except sa.exc.SQLAlchemyError as error:
        return JournalError(f"the journal rejected the change: {explain(error)}")
    except Exception as error:  # noqa: BLE001 - fails this item only, through its future
        return error


def append(connection: Connection, appends: list[Append]) -> list[Any]:
    """Write appends within a transaction. Returns each one's last sequence number, or why it was rejected."""
    by_stream: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(appends):
        by_stream[item.stream].append(index)
    outcomes: list[Any] = [None] * len(appends)
    rows: list[dict[str, Any]] = []
    for stream, indices in by_stream.items():
        held = _epochs(connection, stream) if any(appends[index].lease for index in indices) else {}
        allowed = []
        for index in indices:
            lease = appends[index].lease
            if lease is None or held.get(lease.role) == lease.epoch:
                allowed.append(index)
            else:
                outcomes[index] = LeaseLostError(
                    f"run {stream} was taken over by another process: this one stops"
                )
        _number(connection, stream, [appends[index] for index in allowed], allowed, outcomes, rows)
    if rows:
        connection.execute(events.insert(), rows)
    refs = {
        (item.stream, name)
        for item, outcome in zip(appends, outcomes, strict=True)
        if not isinstance(outcome, BaseException)
        for name in item.payloads
    }
    for stream, name in sorted(refs):
        with contextlib.suppress(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(payload_refs.insert().values(stream=stream, sha256=name))
    return outcomes


def _number(
    connection: Connection,
    stream: str,
    appends: list[Append],
    indices: list[int],
    outcomes: list[Any],
    rows: list[dict[str, Any]],
) -> None:
    """Assign sequence numbers to a stream's new events."""
    total = sum(len(item.rows) for item in appends)
    if not appends:
        return
    values: dict[str, Any] = {"last_seq": streams.c.last_seq + total, "changed_ms": now_ms()}
    ends = [item.finished for item in appends if item.finished is not None]
    if ends:
        values["finished"] = ends[-1]
    statement = streams.update().where(streams.c.id == stream).values(**values)
    last = connection.execute(statement.returning(streams.c.last_seq)).scalar()
    if last is None:
        for index in indices:
            outcomes[index] = UnknownRunError(
                f"the journal has no run {stream}: it was removed or never recorded"
            )
        return
    numbers: Iterator[int] = iter(range(last - total + 1, last + 1))
    for index, item in zip(indices, appends, strict=True):
        for row in item.rows:
            outcomes[index] = seq = next(numbers)
            rows.append({"stream": stream, "seq": seq, **row._asdict()})


def _epochs(connection: Connection, stream: str) -> dict[str, int]:
    held = sa.select(leases.c.role, leases.c.epoch).where(leases.c.stream == stream)
    # In Postgres, lock the rows so that no other process can take over a lease before the commit.
    found = connection.execute(held.with_for_update(read=True))
    return {row.role: row.epoch for row in found}
