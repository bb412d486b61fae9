"""Marks runs whose process died as KILLED in MLflow, until they are resumed."""

from collections.abc import Sequence
from contextlib import suppress

from agentcore.dspy_optimization._events import STREAM_KIND, RunFinished
from agentcore.errors import JournalError
from agentcore.journal import Journal, Stream
from agentcore.tracking import RunEnded, RunReopened, TagsSet


def interrupted_runs(journal: Journal, destination: str | None = None) -> list[Stream]:
    """Optimizations whose process died and that can be resumed, newest first. Blocking."""
    return [item for item in journal.streams(destination) if item.kind == STREAM_KIND and item.interrupted]


def resumable_runs(journal: Journal, streams: Sequence[Stream]) -> list[Stream]:
    """Those of `streams` that `agentcore resume` continues: their process died, or they were stopped or
    failed. Blocking."""
    return [item for item in streams if item.kind == STREAM_KIND and _is_resumable(journal, item)]


def _is_resumable(journal: Journal, item: Stream) -> bool:
    if not item.finished:
        return item.interrupted
    end = journal.last(item.id, RunFinished)
    return isinstance(end, RunFinished) and end.status in ("failed", "cancelled") and end.resumable


def mark_interrupted(journal: Journal, destination: str) -> list[Stream]:
    """Mark runs whose process died, and return the newly marked ones. Blocking."""
    marked = []
    for item in interrupted_runs(journal, destination):
        if _is_marked(journal, item.id):
            continue
        lease = journal.acquire(item.id, "work").result()
        if lease is None:  # someone is resuming it right now
            continue
        try:
            known = journal.stream(item.id)
            if known is not None and not known.finished and not _is_marked(journal, item.id):
                end = RunEnded(status="KILLED", interim=True)
                tags = TagsSet(tags={"optimization_status": "interrupted"})
                journal.append(item.id, [end, tags], lease=lease).result()
                marked.append(item)
        finally:
            with suppress(JournalError):  # it is tried again
                journal.abandon(lease).result()
    return marked


def _is_marked(journal: Journal, stream: str) -> bool:
    return isinstance(journal.last(stream, RunEnded, RunReopened), RunEnded)
