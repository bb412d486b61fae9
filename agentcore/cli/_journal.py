"""`agentcore sync` and `agentcore journal`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentcore._naming import now_ms, short_id, utc
from agentcore.cli._console import counted, note, out, quiet_libraries
from agentcore.cli._tracking import tracking_config
from agentcore.errors import ConfigurationError, JournalError, TrackingError

if TYPE_CHECKING:
    from agentcore.journal import Journal, Stream
    from agentcore.tracking import Delivery

journal = typer.Typer(
    name="journal",
    help="Inspect the journal: the events of each run, and what MLflow doesn't have yet.",
    no_args_is_help=True,
)

_POLL_SECONDS = 2.0
_DAY_MS = 86_400_000


def sync(
    watch: Annotated[bool, typer.Option("--watch", help="Keep delivering until stopped.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Give up after this many seconds [default: once progress stops]."),
    ] = None,
) -> None:
    """Deliver pending journal entries to MLflow, such as those of killed runs or of server outages."""
    from agentcore.journal import open_journal
    from agentcore.tracking import delivery_for, limit_exit

    quiet_libraries()
    limit_exit(None)
    home = open_journal()
    delivery = delivery_for(home, tracking_config())
    if watch:
        _watch(home, delivery)
        return
    count, runs = _deliver(home, delivery, timeout)
    if runs:
        out.print(
            f"delivered {count:,} entries of {counted(runs, 'run')} to {delivery.destination}", soft_wrap=True
        )
    else:
        out.print(f"nothing waits for {delivery.destination}", soft_wrap=True)
    for other, number in _elsewhere(home, delivery.destination).items():
        note(
            f"{counted(number, 'run')} {'waits' if number == 1 else 'wait'} for {other}: "
            "set MLFLOW_TRACKING_URI to it, and sync again"
        )


def _deliver(home: "Journal", delivery: "Delivery", timeout: float | None) -> tuple[int, int]:
    """Deliver the backlog; return the number of entries and of runs."""
    from agentcore.dspy_optimization import mark_interrupted

    for item in mark_interrupted(home, delivery.destination):
        note(f"run {item.name} was interrupted. Resume it: agentcore resume {short_id(item.id)}")
    waiting = {item.id: item.waiting for item in home.waiting(delivery.destination)}
    refused = {stream: len(home.rejected(stream)) for stream in waiting}
    delivery.deliver_backlog()
    delivery.flush(waiting, timeout=timeout, patience=10.0)
    for stream in waiting:
        for seq, reason in home.rejected(stream)[refused[stream] :]:
            note(f"MLflow permanently refused entry {seq} of run {short_id(stream)}: {reason}")
    return sum(waiting.values()), len(waiting)


def _elsewhere(home: "Journal", destination: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in home.streams():
        if item.waiting and item.destination != destination:
            found[item.destination] = found.get(item.destination, 0) + 1
    return found


def _watch(home: "Journal", delivery: "Delivery") -> None:
    """Deliver new entries and report changes until SIGTERM or Ctrl-C, then finish what is in flight."""
    import signal
    import threading

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    out.print(f"delivering to {delivery.destination} (Ctrl-C to stop)", soft_wrap=True)
    told: str | None = None
    before = _delivered(home, delivery.destination)
    while not stop.is_set():
        problem: str | None = None
        try:
            _deliver(home, delivery, _POLL_SECONDS)
        except (TrackingError, JournalError) as error:
            problem = str(error)
        try:
            now = _delivered(home, delivery.destination)
            if (moved := sum(now.values()) - sum(before.get(key, 0) for key in now)) > 0:
                runs = sum(value > before.get(key, 0) for key, value in now.items())
                out.print(
                    f"{utc(now_ms()):%H:%M:%S} delivered {moved:,} entries of {counted(runs, 'run')}",
                    soft_wrap=True,
                )
            before = now
            home.prune(_keep_until())
        except JournalError as error:
            problem = str(error)
        if problem is not None and problem != told:
            note(problem)
        told = problem
        stop.wait(_POLL_SECONDS)
    delivery.stop()
    out.print("stopped; undelivered entries stay in the journal")


def _delivered(home: "Journal", destination: str) -> dict[str, int]:
    return {item.id: item.delivered for item in home.streams(destination)}


def _keep_until(days: float | None = None) -> int:
    from agentcore.settings import Settings

    keep = Settings().journal_keep_days if days is None else days
    return round(now_ms() - keep * _DAY_MS)


@journal.command("ls")
def ls(
    limit: Annotated[int, typer.Option(min=1, help="How many runs, newest first.")] = 20,
) -> None:
    """List the journal's runs, and how many entries of each MLflow is missing."""
    from rich.markup import escape
    from rich.table import Table

    from agentcore.journal import open_journal

    home = open_journal()
    found = home.streams()
    if not found:
        out.print(f"the journal at {home.location} is empty", soft_wrap=True)
        return
    several = len({item.destination for item in found if item.destination}) > 1
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for column in ("id", "state", "entries", "waiting", "created, UTC"):
        table.add_column(
            column, justify="right" if column in ("entries", "waiting") else "left", no_wrap=True
        )
    table.add_column("run", overflow="fold")
    if several:
        table.add_column("for", overflow="fold")
    for item in found[:limit]:
        table.add_row(
            short_id(item.id),
            _state(item),
            f"{item.last_seq:,}",
            f"{item.waiting:,}" if item.waiting else "",
            _time(item.created_ms),
            escape(item.name),
            *([escape(item.destination)] if several else []),
        )
    out.print(table)
    out.print(f"in {home.location}", soft_wrap=True)


@journal.command("show")
def show(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Run id, or a unique prefix of it.")],
    limit: Annotated[int, typer.Option(min=0, help="How many of the latest events to show.")] = 20,
) -> None:
    """Show a run's events, and which ones MLflow refused and why."""
    from rich.markup import escape

    from agentcore.journal import open_journal

    home = open_journal()
    item = home.resolve(run_id)
    if item is None:
        raise ConfigurationError(
            f"the journal has no run {run_id!r}. List its runs with: agentcore journal ls"
        )
    out.print(f"[bold]{escape(item.name)}[/]  {_state(item)}  {item.id}")
    out.print(
        f"for {escape(item.destination)}, MLflow's id {item.tracking_id or 'not known yet'}", soft_wrap=True
    )
    out.print(f"{item.last_seq:,} entries, {item.waiting:,} waiting")
    for seq, reason in home.rejected(item.id):
        out.print(f"[yellow]refused:[/] entry {seq}: {escape(reason)}", soft_wrap=True)
    for entry in home.read(item.id, max(0, item.last_seq - limit), lenient=True):
        body = entry.event.model_dump(
            exclude={"schema_version", "timestamp_ms", "kind", "optimization_id"}, exclude_none=True
        )
        text = " ".join(f"{name}={value}" for name, value in body.items())
        kind = getattr(entry.event, "kind", "")
        mark = " " if entry.seq <= item.delivered else "·"
        out.print(
            f"{mark}{entry.seq:>6} {_time(entry.event.timestamp_ms)} {kind:<18} {escape(text[:100])}",
            soft_wrap=True,
        )


@journal.command("prune")
def prune(
    older_than: Annotated[
        float | None,
        typer.Option(
            min=0, max=36500, help="Days since the last change [default: AGENTCORE_JOURNAL_KEEP_DAYS or 7]."
        ),
    ] = None,
) -> None:
    """Remove runs that have ended and are in MLflow; undelivered runs are never removed."""
    from agentcore.journal import open_journal

    home = open_journal()
    removed = home.prune(_keep_until(older_than))
    out.print(f"removed {counted(len(removed), 'run')} from {home.location}", soft_wrap=True)


@journal.command("salvage")
def salvage(
    file: Annotated[
        Path | None,
        typer.Argument(help="A damaged journal that was put aside [default: the current one]."),
    ] = None,
) -> None:
    """Copy the runs that can still be read from a damaged journal into the current one."""
    from agentcore.journal import close_journals, damage, open_journal, put_aside
    from agentcore.journal import salvage as save

    if file is None:
        location = Path(open_journal().location)
        if not location.is_file():
            raise ConfigurationError("only a journal in a file can be salvaged")
        found = damage(location)
        if found is None:
            out.print(f"the journal at {location} is sound", soft_wrap=True)
            return
        close_journals()
        file = put_aside(location)
        note(f"the journal at {location} is damaged ({found}): it was put aside as {file}")
    saved = save(file, open_journal())
    out.print(
        f"saved {counted(saved.runs, 'run')} with {saved.entries:,} entries; {saved.lost:,} entries are lost",
        soft_wrap=True,
    )
    if saved.known:
        out.print(f"already in the current journal: {counted(saved.known, 'run')}")


def _state(item: "Stream") -> str:
    if not item.destination:
        return item.kind
    if item.interrupted:
        return "resumable"
    if item.finished:
        return "ended"
    return {"yes": "running", "unknown": "running?", "no": "open"}[item.working]


def _time(milliseconds: int) -> str:
    return f"{utc(milliseconds):%m-%d %H:%M:%S}"
