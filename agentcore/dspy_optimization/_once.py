"""Idempotent runs: a name chosen by the caller starts at most one run, however often it is requested."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentcore._threads import run_in_thread
from agentcore.errors import ConfigurationError
from agentcore.journal import Journal, Lease, Stream

_PAUSE = 0.2
"""Seconds between attempts to get the name's lease."""
_DIGITS = 16


def new_id(name: str) -> str:
    """A new optimization id that starts with a hash of the name.

    The rest is random, so that the id never matches a run that MLflow still has but the journal has pruned.
    """
    return _start(name) + uuid.uuid4().hex[:_DIGITS]


def run_named(name: str, journal: Journal) -> Stream | None:
    """The journal's latest run of this name, running or not. Blocking."""
    return next(iter(journal.find(_start(name))), None)


def _start(name: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, name).hex[:_DIGITS]


@asynccontextmanager
async def alone_under(name: str, journal: Journal, patience: float) -> AsyncIterator[Stream | None]:
    """Yield the journal's latest run of this name, while no other process can start or resume one.

    Raises:
        ConfigurationError: the name is empty, or another process holds it for longer than `patience` seconds.
    """
    if not name.strip():
        raise ConfigurationError("once: pass a name; an empty name would match unrelated runs")
    lease = await _acquired(journal, _start(name), patience)
    if lease is None:
        raise ConfigurationError(
            f"another process is working on the run named {name!r}; if it died on another machine, wait for "
            "its lease to expire (30 s) and try again"
        )
    try:
        yield await run_in_thread(lambda: run_named(name, journal))
    finally:
        journal.abandon(lease)


async def _acquired(journal: Journal, start: str, patience: float) -> Lease | None:
    deadline = time.monotonic() + patience
    while True:
        lease = await journal.take(start)
        if lease is not None or time.monotonic() > deadline:
            return lease
        await asyncio.sleep(_PAUSE)
