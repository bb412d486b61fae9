"""Leases: at most one holder per stream and role. A lease is a row that expires unless it is renewed."""

import contextlib
import threading
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentcore._naming import now_ms
from agentcore.errors import LeaseLostError
from agentcore.journal._owner import is_dead, is_here, this_process
from agentcore.journal._schema import leases, streams
from agentcore.journal._writer import Lease, Writer

LEASE_SECONDS = 30.0
_RENEW_SECONDS = 5.0
_FORGOTTEN_MS = 86_400_000
"""How long after it expired to remove an unreleased lease of a `once=` name."""


def _now(connection: Connection) -> int:
    """The current time by the shared database's clock, since the clocks of different machines differ."""
    if connection.dialect.name != "postgresql":
        return now_ms()
    return int(
        connection.execute(
            sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        ).scalar_one()
    )


def _row(lease: Lease) -> Any:
    return (leases.c.stream == lease.stream) & (leases.c.role == lease.role) & (leases.c.epoch == lease.epoch)


def acquire(connection: Connection, stream: str, role: str) -> Lease | None:
    """Acquire the lease; None if its holder is alive, or may be."""
    now = _now(connection)
    where = (leases.c.stream == stream) & (leases.c.role == role)
    held = connection.execute(sa.select(leases).where(where).with_for_update()).first()
    values = {"owner": this_process(), "until_ms": now + round(LEASE_SECONDS * 1000)}
    if held is None:
        connection.execute(leases.insert().values(stream=stream, role=role, epoch=1, **values))
        return Lease(stream, role, 1)
    if held.until_ms and not is_over(held.owner, held.until_ms, now):
        return None
    connection.execute(leases.update().where(where).values(epoch=held.epoch + 1, **values))
    return Lease(stream, role, held.epoch + 1)


def is_over(owner: str, until_ms: int, now: int) -> bool:
    """Whether a lease that was not released may be taken over.

    A lease held on this machine lasts as long as its process, which may be suspended for longer than the
    lease runs. A lease held on another machine is over once it expires.
    """
    return is_dead(owner) if is_here(owner) else until_ms <= now


def release(connection: Connection, lease: Lease) -> None:
    # The owner too: a name's row that was pruned starts again at epoch 1, for another process.
    held = _row(lease) & (leases.c.owner == this_process())
    connection.execute(leases.update().where(held).values(until_ms=0))


def prune_names(connection: Connection) -> None:
    """Remove leases that nobody holds and whose name isn't a stream (see `once=`)."""
    known = sa.select(streams.c.id)
    released = leases.c.until_ms == 0
    forgotten = leases.c.until_ms < _now(connection) - _FORGOTTEN_MS
    of_names = leases.c.stream.not_in(known)
    connection.execute(leases.delete().where(of_names, released))
    old = connection.execute(sa.select(leases).where(of_names, forgotten, ~released)).all()
    for row in old:
        if is_over(row.owner, row.until_ms, now_ms()):
            same = (
                (leases.c.stream == row.stream) & (leases.c.role == row.role) & (leases.c.epoch == row.epoch)
            )
            connection.execute(leases.delete().where(same))


def standing(connection: Connection, lease: Lease) -> None:
    """Raise `LeaseLostError` if another process has acquired the lease since."""
    if connection.execute(sa.select(leases.c.epoch).where(_row(lease)).with_for_update()).first() is None:
        raise LeaseLostError(f"run {lease.stream} was taken over by another process")


def liveness(owner: str | None, until_ms: int | None) -> Literal["yes", "no", "unknown"]:
    if owner is None or not until_ms or is_over(owner, until_ms, now_ms()):
        return "no"
    # A holder on another machine may have died since its last renewal.
    return "yes" if is_here(owner) else "unknown"


class Keeper:
    """Renews the leases of this process from a thread, so that a blocked event loop doesn't lose them."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._held: set[Lease] = set()
        self._given_up: set[Lease] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, lease: Lease) -> None:
        with self._lock:
            self._held.add(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="agentcore-leases", daemon=True)
                self._thread.start()

    def drop(self, lease: Lease) -> None:
        with self._lock:
            self._held.discard(lease)

    def give_up(self, lease: Lease) -> "Future[None]":
        """Release a lease, retrying until the release has been written; returns the first attempt."""
        with self._lock:
            self._held.discard(lease)

        def again(done: "Future[Any]") -> None:
            if done.cancelled() or done.exception() is not None:
                with self._lock:
                    self._given_up.add(lease)

        first = self._writer.submit(partial(release, lease=lease))
        first.add_done_callback(again)
        return first

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS):
            with self._lock:
                held, given_up = list(self._held), list(self._given_up)
                self._given_up.clear()
            for lease in given_up:
                self.give_up(lease)
            if held:
                with contextlib.suppress(Exception):  # retried; a lost lease fails the next append
                    self._writer.submit(partial(_renew, held=held)).result()


def _renew(connection: Connection, held: list[Lease]) -> None:
    until = _now(connection) + round(LEASE_SECONDS * 1000)
    held_here = leases.c.owner == this_process()
    for lease in held:
        # A lease released in the meantime stays released.
        standing_one = (_row(lease), held_here, leases.c.until_ms > 0)
        connection.execute(leases.update().where(*standing_one).values(until_ms=until))
