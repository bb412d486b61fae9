"""What a journal says about its runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.engine import Row

from agentcore.errors import UnknownEventError
from agentcore.journal._event import Event
from agentcore.journal._leases import liveness


@dataclass(frozen=True)
class Stream:
    """One run in the journal."""

    id: str
    kind: str
    """Set by the code that created it: `optimization`, `run`, …; `adopted` for another client's run."""
    name: str
    destination: str
    """The tracking URI that its entries are delivered to, without a password; empty if they stay here."""
    tracking_id: str | None
    """The run's id at its destination, once it has been created there."""
    created_ms: int
    changed_ms: int
    last_seq: int
    delivered: int
    """Sequence number up to which everything has been delivered."""
    finished: bool
    attempted: bool
    """Whether creating the run was attempted: it may exist even if `tracking_id` is None."""
    leased: bool
    """Whether a process has ever held the lease to work on the run."""
    working: Literal["yes", "no", "unknown"]
    """Whether a process is working on the run. `unknown` while a process elsewhere holds the lease, since it
    may have died."""

    @property
    def waiting(self) -> int:
        """Entries that the destination doesn't have yet."""
        return self.last_seq - self.delivered if self.destination else 0

    @property
    def interrupted(self) -> bool:
        """A process worked on the run, died, and left it unfinished."""
        return bool(self.destination) and self.leased and not self.finished and self.working == "no"


@dataclass(frozen=True)
class Entry:
    seq: int
    event: Event


@dataclass(frozen=True)
class Page:
    """Entries to deliver, and the position in the stream up to which they are complete."""

    entries: list[Entry]
    through: int
    """Sequence number up to which there is nothing else to deliver."""
    damaged: Sequence[tuple[int, str]] = ()
    """Sequence number of each entry that can't be read, and why."""
    unknown: UnknownEventError | None = None
    """Set if the page ends early: this version doesn't know the next event, which may need delivering."""


def stream_of(row: Row[Any]) -> Stream:
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
        leased=row.owner is not None,
        working=liveness(row.owner, row.until_ms),
    )
