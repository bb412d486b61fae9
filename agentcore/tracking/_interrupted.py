"""Runs whose process died: marked KILLED instead of staying RUNNING for ever, until they are resumed."""

from agentcore.journal import Journal, RunEnded, RunReopened, Stream, TagsSet, TrackingEvent


def interrupted_runs(journal: Journal, destination: str | None = None) -> list[Stream]:
    """Optimizations that can be resumed because their process died, newest first. Blocking."""
    return [item for item in journal.streams(destination) if item.interrupted]


def mark_interrupted(journal: Journal, destination: str) -> list[Stream]:
    """Tell MLflow of runs whose process died; returns those that were not marked before. Blocking."""
    marked = []
    for item in interrupted_runs(journal, destination):
        lease = journal.acquire(item.id, "work").result()
        if lease is None:  # someone is just resuming it
            continue
        try:
            ends = journal.read(item.id, of=TrackingEvent)
            last = next(
                (entry.event for entry in reversed(ends) if isinstance(entry.event, RunEnded | RunReopened)),
                None,
            )
            known = journal.stream(item.id)
            if not isinstance(last, RunEnded) and known is not None and not known.finished:
                end = RunEnded(status="KILLED", interim=True)
                tags = TagsSet(tags={"optimization_status": "interrupted"})
                journal.append(item.id, [end, tags], lease=lease).result()
                marked.append(item)
        finally:
            journal.release(lease).result()
    return marked
