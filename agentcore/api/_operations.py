"""Operations in the journal: requested, found, cancelled, and shown."""

import asyncio
import hashlib
import json
import logging
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentcore._naming import local_id, now_ms, utc
from agentcore._threads import run_in_thread
from agentcore.api._events import (
    OPERATION,
    CancelRequested,
    Kind,
    OperationEnded,
    OperationReleased,
    OperationRequested,
    OperationStarted,
)
from agentcore.api._models import OperationReply, OptimizationProgress, Status
from agentcore.dspy_optimization import run_named
from agentcore.dspy_optimization.events import SpendCounted, StageStarted, TrialFinished
from agentcore.errors import (
    ConflictError,
    DamagedEventError,
    NotFoundError,
    TooBusyError,
    UnknownEventError,
)
from agentcore.journal import Event, Journal, Stream, wait
from agentcore.lm import Spend
from agentcore.settings import MLflowConfig
from agentcore.tracking import destination_of

_logger = logging.getLogger("agentcore")

MOST_WAITING = 500
"""Operations that have not ended."""
_TAKEN_AT_ONCE = 20


@dataclass
class Operation:
    """An operation, rebuilt from its stream."""

    id: str
    requested: OperationRequested
    changed_ms: int
    starts: int = 0
    """Starts that no replica ended or released. Unless one is at work, their processes died."""
    working: bool = False
    """Whether a replica has its lease."""
    cancel: CancelRequested | None = None
    ended: OperationEnded | None = None

    @property
    def status(self) -> Status:
        if self.ended is not None:
            return self.ended.status
        if self.cancel is not None:
            return "cancelling"
        return "running" if self.working else "queued"

    @property
    def run_name(self) -> str:
        """What its optimization is named in the journal."""
        return f"agentcore-api {self.id}"

    def add(self, event: Event) -> None:
        """Take an event of the stream into account."""
        if isinstance(event, OperationStarted):
            self.starts += 1
        elif isinstance(event, OperationReleased):
            self.starts -= 1
        elif isinstance(event, CancelRequested):
            self.cancel = self.cancel or event
        elif isinstance(event, OperationEnded):
            self.ended = event


class Operations:
    """The operations of some agents on one MLflow server, in a journal that others may share.

    Args:
        agents: which ones this process knows.
        config: the MLflow server.
    """

    def __init__(self, journal: Journal, config: MLflowConfig, agents: Iterable[str]) -> None:
        self.journal = journal
        self.destination = destination_of(config)
        self._names = [self._name(agent) for agent in agents]
        self._told: set[str] = set()

    async def request(
        self, kind: Kind, agent: str, request: Mapping[str, Any], by: str, key: str | None = None
    ) -> Operation:
        """Record a request, durable once this returns.

        Args:
            key: the same caller's request with the same key is recorded once.

        Raises:
            ConflictError: the key was used for another request.
            TooBusyError: too many wait already.
            JournalError: it can't be written.
        """
        wanted = uuid.uuid4().hex
        if key is not None:
            text = json.dumps([self.destination, by, key])
            wanted = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        waiting = await run_in_thread(lambda: self._streams(unfinished=True, limit=MOST_WAITING + 1))
        if len(waiting) > MOST_WAITING and all(item.id != wanted for item in waiting):
            raise TooBusyError(f"{MOST_WAITING} operations are waiting: try again later, or cancel some")
        first = OperationRequested(operation=kind, agent=agent, request=dict(request), by=by)
        # A stream without a destination is never delivered.
        await wait(self.journal.create(wanted, OPERATION, self._name(agent), "", first=[first]))
        found = await self.get(wanted)
        asked = found.requested
        if (asked.operation, asked.agent, _text(asked.request)) != (kind, agent, _text(first.request)):
            raise ConflictError(f"the key {key!r} was used for another request: use a new one")
        return found

    async def get(self, wanted: str) -> Operation:
        """An operation by its id.

        Raises:
            NotFoundError: there is none. The journal keeps an ended one for AGENTCORE_JOURNAL_KEEP_DAYS.
        """
        found = None
        if re.fullmatch("[0-9a-f]{32}", wanted):
            found = await run_in_thread(lambda: self._find(wanted))
        if found is None:
            raise NotFoundError(f"there is no operation {wanted[:64]!r}")
        return found

    async def cancel(self, operation: Operation, by: str) -> Operation:
        """Ask the replica that works on an operation to stop; one that nobody works on ends here.

        Raises:
            ConflictError: it has ended.
        """
        if operation.ended is not None:
            raise ConflictError(f"operation {operation.id} has already ended: {operation.status}")
        if operation.cancel is None:
            await self.journal.write(operation.id, [CancelRequested(by=by)])
        lease = await self.journal.take(operation.id)
        if lease is not None:
            try:
                if (await self.get(operation.id)).ended is None:
                    await self.journal.write(operation.id, [OperationEnded(status="cancelled")], lease=lease)
            finally:
                await asyncio.shield(asyncio.wrap_future(self.journal.abandon(lease)))
        return await self.get(operation.id)

    async def recent(self, limit: int, *, unfinished: bool = False) -> list[Operation]:
        """The newest operations, or the newest of those that have not ended."""
        return await run_in_thread(lambda: self._read(self._streams(unfinished=unfinished, limit=limit)))

    async def pending(self) -> list[Operation]:
        """Those that have not ended and that nobody works on, oldest first."""
        return await run_in_thread(self._pending)

    async def shown(self, operation: Operation) -> OperationReply:
        """What a reply says of an operation."""
        return await run_in_thread(lambda: self._shown(operation))

    # How; all of it blocks

    def _name(self, agent: str) -> str:
        return f"{agent} {self.destination}"

    def _find(self, wanted: str) -> Operation | None:
        stream = self.journal.stream(wanted)
        if stream is None or stream.kind != OPERATION or stream.name.partition(" ")[2] != self.destination:
            return None
        return self._of(stream)

    def _read(self, found: Iterable[Stream]) -> list[Operation]:
        return [operation for item in found if (operation := self._of(item)) is not None]

    def _of(self, stream: Stream) -> Operation | None:
        """None if this version can't read it: a newer one may have written it, or it is damaged."""
        try:
            entries = self.journal.read(stream.id)
        except (UnknownEventError, DamagedEventError) as error:
            if stream.id not in self._told:
                self._told.add(stream.id)
                _logger.warning("operation %s is left alone: %s", stream.id, error)
            return None
        if not entries or not isinstance(entries[0].event, OperationRequested):
            return None
        found = Operation(stream.id, entries[0].event, stream.changed_ms, working=stream.working != "no")
        for entry in entries[1:]:
            found.add(entry.event)
        return found

    def _streams(self, *, unfinished: bool, limit: int | None = None) -> list[Stream]:
        return self.journal.of_kind(OPERATION, self._names, unfinished=unfinished, limit=limit)

    def _pending(self) -> list[Operation]:
        # Whether a holder elsewhere is alive only shows when its lease is asked for.
        free = [item for item in self._streams(unfinished=True) if item.working != "yes"]
        found: list[Operation] = []
        for item in reversed(free):
            if (operation := self._of(item)) is not None:
                found.append(operation)
            if len(found) == _TAKEN_AT_ONCE:
                break
        return found

    def _shown(self, operation: Operation) -> OperationReply:
        requested, ended = operation.requested, operation.ended
        stream = None
        if requested.operation == "optimization":
            stream = run_named(operation.run_name, self.journal)
        run_id = ended.run_id if ended is not None else None
        if stream is not None:
            run_id = stream.tracking_id or run_id or local_id(stream.id)
        return OperationReply(
            id=operation.id,
            kind=requested.operation,
            agent=requested.agent,
            status=operation.status,
            created=iso(requested.timestamp_ms),
            changed=iso(operation.changed_ms),
            by=requested.by,
            request=requested.request,
            run_id=run_id,
            progress=None if stream is None else self._progress(stream),
            result=ended.result if ended is not None else None,
            error=ended.error if ended is not None else None,
        )

    def _progress(self, stream: Stream) -> OptimizationProgress:
        stage = self.journal.last(stream.id, StageStarted)
        trial = self.journal.last(stream.id, TrialFinished)
        spent = self.journal.last(stream.id, SpendCounted)
        by_stage = spent.by_stage.values() if isinstance(spent, SpendCounted) else ()
        total = Spend.total([Spend(**item) for item in by_stage])
        return OptimizationProgress(
            stage=stage.stage if isinstance(stage, StageStarted) else "preparing",
            trials=trial.trial + 1 if isinstance(trial, TrialFinished) else 0,
            best_score=trial.best_score if isinstance(trial, TrialFinished) else None,
            lm_calls=total.calls,
            total_tokens=total.total_tokens,
            cost_usd=total.cost_usd,
            seconds=spent.seconds
            if isinstance(spent, SpendCounted)
            else (now_ms() - stream.created_ms) / 1000,
        )


def iso(milliseconds: int) -> str:
    """A Unix time in milliseconds as ISO 8601, UTC; `unknown` if it is none: others may have written it."""
    try:
        return f"{utc(milliseconds):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return "unknown"


def _text(request: Any) -> str:
    return json.dumps(request, sort_keys=True)
