"""Runs whose process died: marked KILLED instead of staying RUNNING for ever, until they are resumed."""

from agentcore.journal import Journal, RunEnded, RunReopened, Stream, TagsSet


def interrupted_runs(journal: Journal, destination: str | None = None) -> list[Stream]:
    """Optimizations that can be resumed because their process died, newest first. Blocking."""
    return [item for item in journal.streams(destination) if item.interrupted]


def mark_interrupted(journal: Journal, destination: str) -> list[Stream]:
    """Tell MLflow of runs whose process died; returns those that were not marked before. Blocking."""
    marked = []
    for item in interrupted_runs(journal, destination):
        if _is_marked(journal, item.id):
            continue
        lease = journal.acquire(item.id, "work").result()
        if lease is None:  # someone is just resuming it
            continue
        try:
            known = journal.stream(item.id)
            if known is not None and not known.finished and not _is_marked(journal, item.id):
                end = RunEnded(status="KILLED", interim=True)
                tags = TagsSet(tags={"optimization_status": "interrupted"})
                journal.append(item.id, [end, tags], lease=lease).result()
                marked.append(item)
        finally:
            journal.release(lease).result()
    return marked


def _is_marked(journal: Journal, stream: str) -> bool:
    return isinstance(journal.last(stream, RunEnded, RunReopened), RunEnded)
