"""An agent's stream in the journal: reading it, and writing it under its lease."""

import asyncio
import hashlib
import posixpath
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from agentcore._threads import run_in_thread
from agentcore.errors import ConfigurationError
from agentcore.journal import Event, Journal, Lease, open_journal, wait
from agentcore.registry._events import STREAM_KIND, RegistryOpened
from agentcore.registry._state import RegistryState
from agentcore.settings import MLflowConfig
from agentcore.tracking import destination_of

_PAUSE = 0.1


def canonical_uri(uri: str) -> str:
    """A server's address, the same for different spellings of it."""
    if uri.startswith("sqlite:"):
        scheme, separator, path = uri.partition("///")
        return f"{scheme}{separator}{posixpath.normpath(path)}"
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return uri.rstrip("/")
    host = "127.0.0.1" if parts.hostname in ("localhost", "::1") else parts.hostname
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


class RegistryStore:
    """The stream of one agent on one MLflow server."""

    def __init__(self, agent: str, config: MLflowConfig) -> None:
        self.agent = agent
        self.destination = destination_of(config)
        place = canonical_uri(self.destination)
        self.stream = hashlib.sha256(f"registry {agent} {place}".encode()).hexdigest()[:32]
        self._journal: Journal | None = None

    async def journal(self) -> Journal:
        """The configured journal."""
        if self._journal is None:
            self._journal = await run_in_thread(open_journal)
        return self._journal

    async def state(self) -> RegistryState:
        """Everything recorded so far."""
        journal = await self.journal()
        return await run_in_thread(lambda: RegistryState.of(journal.read(self.stream)))

    @asynccontextmanager
    async def alone(self, patience: float) -> AsyncIterator["Held"]:
        """Work on the agent while no other process does.

        Args:
            patience: seconds to wait for another process to finish.

        Raises:
            ConfigurationError: another process is still working on it.
        """
        journal = await self.journal()
        opened = RegistryOpened(agent=self.agent, token=uuid.uuid4().hex)
        # Without a destination: nothing of this stream is delivered.
        await wait(journal.create(self.stream, STREAM_KIND, self.agent, "", first=[opened]))
        deadline = time.monotonic() + patience
        while (lease := await wait(journal.acquire(self.stream, "work"))) is None:
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"another process is promoting or rolling back {self.agent!r}, and did not finish "
                    f"within {patience:g} s: wait for it. If it died on another machine, its lease expires "
                    "after 30 s"
                )
            await asyncio.sleep(_PAUSE)
        try:
            yield Held(journal, lease, await self.state())
        finally:
            await asyncio.shield(wait(journal.abandon(lease)))


class Held:
    """The stream while this process holds its lease.

    Attributes:
        state: kept up to date with what is written.
    """

    def __init__(self, journal: Journal, lease: Lease, state: RegistryState) -> None:
        self.journal = journal
        self.lease = lease
        self.state = state

    async def write(self, *events: Event) -> None:
        """Append events, durable before anything acts on them.

        Raises:
            JournalError: they can't be written.
        """
        await self.journal.write(self.lease.stream, events, lease=self.lease)
        for event in events:
            self.state.add(event)

    def post(self, events: Sequence[Event]) -> None:
        """Append events without waiting; a following `write` fails if this did."""
        self.journal.append(self.lease.stream, events, lease=self.lease)
        for event in events:
            self.state.add(event)
