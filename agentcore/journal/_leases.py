"""Leases: one holder for each stream and role, by a row that runs out unless it is renewed."""

import contextlib
import threading
from functools import partial
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentcore.errors import JournalError, LeaseLostError
from agentcore.journal._owner import is_dead, this_process
from agentcore.journal._schema import leases
from agentcore.journal._writer import Lease, Writer, now_ms

LEASE_SECONDS = 30.0
_RENEW_SECONDS = 5.0


def _now(connection: Connection) -> int:
    """The shared database's clock, since those of several machines differ."""
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
    """The lease, or None where a holder lives or may live."""
    now = _now(connection)
    where = (leases.c.stream == stream) & (leases.c.role == role)
    held = connection.execute(sa.select(leases).where(where).with_for_update()).first()
    values = {"owner": this_process(), "until_ms": now + round(LEASE_SECONDS * 1000)}
    if held is None:
        connection.execute(leases.insert().values(stream=stream, role=role, epoch=1, **values))
        return Lease(stream, role, 1)
    if held.until_ms > now and not is_dead(held.owner):
        return None
    connection.execute(leases.update().where(where).values(epoch=held.epoch + 1, **values))
    return Lease(stream, role, held.epoch + 1)


def release(connection: Connection, lease: Lease) -> None:
    connection.execute(leases.update().where(_row(lease)).values(until_ms=0))


def standing(connection: Connection, lease: Lease) -> None:
    """Raise `LeaseLostError` where someone else has acquired it since."""
    if connection.execute(sa.select(leases.c.epoch).where(_row(lease)).with_for_update()).first() is None:
        raise LeaseLostError(f"run {lease.stream} was taken over by another process")


def liveness(owner: str | None, until_ms: int | None) -> Literal["yes", "no", "unknown"]:
    if owner is None or not until_ms or until_ms < now_ms() or is_dead(owner):
        return "no"
    # One of this machine that is not dead lives; one elsewhere may have died since its last renewal.
    return "yes" if owner.split("|")[:2] == this_process().split("|")[:2] else "unknown"


class Keeper:
    """Renews the leases of this process from a thread, whatever its event loops do."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._held: set[Lease] = set()
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

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS):
            with self._lock:
                held = list(self._held)
            if held:
                with contextlib.suppress(JournalError):  # a lease that is lost is told at the next append
                    self._writer.submit(partial(_renew, held=held)).result()


def _renew(connection: Connection, held: list[Lease]) -> None:
    until = _now(connection) + round(LEASE_SECONDS * 1000)
    for lease in held:
        # One that was released meanwhile stays so.
        connection.execute(leases.update().where(_row(lease), leases.c.until_ms > 0).values(until_ms=until))
