"""The journal: a durable log of every run's events, written before anything acts on them. A crashed run
resumes from it, and logged data waits in it until MLflow has received it."""

from agentcore.journal._event import Event, EventSink, UnknownEvent
from agentcore.journal._journal import ADOPTED, Journal, wait
from agentcore.journal._open import close_journals, open_journal
from agentcore.journal._salvage import Salvaged, damage, put_aside, salvage
from agentcore.journal._stream import Entry, Page, Stream
from agentcore.journal._writer import Lease

__all__ = [
    "ADOPTED",
    "Entry",
    "Event",
    "EventSink",
    "Journal",
    "Lease",
    "Page",
    "Salvaged",
    "Stream",
    "UnknownEvent",
    "close_journals",
    "damage",
    "open_journal",
    "put_aside",
    "salvage",
    "wait",
]
