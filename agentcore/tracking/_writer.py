"""`RunWriter`: writes drafts to a run's journal stream and triggers their delivery."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from agentcore._redaction import Redactor
from agentcore._threads import run_in_thread
from agentcore.journal import Event, Journal, Lease, wait
from agentcore.tracking._delivery import Delivery
from agentcore.tracking._entries import Draft, File, stored


class RunWriter:
    """Writes to one stream of the journal.

    Not thread-safe: bound to one event loop. `post` returns at once and preserves order, `write` waits for
    its own events, and `durable` for everything posted. Each raises `JournalError` if a write has failed.

    Args:
        lease: if given, every write requires it to be held.
        redactor: redacts secrets from everything written.
    """

    def __init__(
        self,
        journal: Journal,
        delivery: Delivery,
        stream: str,
        *,
        lease: Lease | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        self.journal = journal
        self.delivery = delivery
        self.stream = stream
        self.lease = lease
        self.redactor = redactor
        self._last: Future[int] | None = None
        self._failed: BaseException | None = None

    async def create(self, kind: str, name: str, first: Sequence[Event], *, work: bool = False) -> None:
        """Create the stream with its first events; with `work`, take its lease in the same commit."""
        self.lease = await wait(
            self.journal.create(
                self.stream,
                kind,
                name,
                self.delivery.destination,
                work=work,
                first=first,
                redactor=self.redactor,
            )
        )
        self.delivery.notify(self.stream)

    async def stored(self, drafts: Sequence[Draft]) -> list[Event]:
        """Convert drafts to events, storing the contents of files in the journal's payloads."""
        if not any(isinstance(draft, File) for draft in drafts):
            return [draft for draft in drafts if not isinstance(draft, File)]

        def store() -> list[Event]:
            found: list[Event] = []
            for draft in drafts:
                if isinstance(draft, File):
                    found += stored(draft, self.journal.payloads.put(draft.content))
                else:
                    found.append(draft)
            return found

        return await run_in_thread(store)

    async def log(self, drafts: Sequence[Draft]) -> None:
        """Store and write drafts."""
        await self.write(await self.stored(drafts))

    async def write(self, events: Sequence[Event]) -> None:
        """Append events in one commit, and wait until they are durable."""
        events = self.delivery.times.distinct(self.stream, events)
        await self.journal.write(self.stream, events, lease=self.lease, redactor=self.redactor)
        self.delivery.times.forget(self.stream, events)
        self.delivery.notify(self.stream)

    def append(self, events: Sequence[Event]) -> "Future[int]":
        """Append events that are never delivered to MLflow, from any thread; the future is done once they are
        durable."""
        return self.journal.append(self.stream, events, lease=self.lease, redactor=self.redactor)

    def post(self, events: Sequence[Event]) -> None:
        """Append events in one commit, without waiting."""
        if self._failed is not None:
            raise self._failed
        events = self.delivery.times.distinct(self.stream, events)
        self._last = self.journal.append(self.stream, events, lease=self.lease, redactor=self.redactor)
        deliver = any(event.deliverable for event in events)
        self._last.add_done_callback(partial(self._posted, deliver))

    def _posted(self, deliver: bool, done: "Future[int]") -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._failed = self._failed or error
        elif deliver:
            self.delivery.notify(self.stream)

    async def durable(self) -> None:
        """Wait until everything posted so far is durable."""
        if self._last is not None:
            posted = asyncio.wrap_future(self._last)
            posted.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait([posted])
        if self._failed is not None:
            raise self._failed

    def release(self) -> None:
        """Release the lease because the run has ended."""
        if self.lease is not None:
            self.journal.release(self.lease)
            self.lease = None

    def abandon(self) -> None:
        """Release the lease so that the run can be resumed, retrying while the journal can't be written."""
        if self.lease is not None:
            self.journal.abandon(self.lease)
            self.lease = None
