"""`agentcore promote`, `rollback`, `history` and `verify`."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentcore.cli._console import confirm, err, import_from_here, out, run
from agentcore.cli._options import (
    LM,
    Agent,
    AsJson,
    Concurrency,
    LMArguments,
    LMBaseURL,
    Yes,
    model_of,
)
from agentcore.cli._tracking import tracking_config
from agentcore.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentcore.registry import HistoryEntry, Registry

AgentName = Annotated[str, typer.Argument(help="The agent's name.")]
_STEP = 50


def promote(
    agent: Agent,
    run_id: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's id or a prefix of it.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Promote the best run of the agent's development experiment.")
    ] = False,
    to: Annotated[str, typer.Option(help="production (alias champion) or staging.")] = "production",
    policy: Annotated[
        str | None,
        typer.Option(help="TOML file with the gate's criteria [default: gate.toml, else pyproject.toml]."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Examples that no run has used [default: those that the run kept sealed]."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="exact_match or package.module:function [default: the run's].")
    ] = None,
    lm: LM = None,
    lm_base_url: LMBaseURL = None,
    lm_arg: LMArguments = None,
    max_concurrency: Concurrency = 8,
    force: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Bypass the gate; the reason is recorded."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what a look would cost; measure nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Only finish what an interrupted call began.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Move an alias to a run's optimized program if it passes the gate. Exits with 1 if it doesn't."""
    import_from_here()
    registry = _registry(agent, max_concurrency, None if as_json else _measured)
    if resume:
        done = run(registry.resume())
        for line in done or ["nothing was left unfinished"]:
            out.print(line, soft_wrap=True, markup=False)
        return
    if best == (run_id is not None):
        raise ConfigurationError(
            f"pass either a run or --best. List runs with: agentcore runs --agent {agent}"
        )
    wanted = "best" if best else str(run_id)
    if not dry_run:
        which = "the best run" if best else f"run {run_id}"
        confirm(f"Promote {which} of {agent} to {to} if it passes the gate?", yes=yes)
    try:
        found = run(
            registry.promote(
                wanted,
                to,
                policy=policy,
                data=data,
                metric=metric,
                lm=model_of(lm, lm_base_url, lm_arg),
                force=force,
                dry_run=dry_run,
            )
        )
    except typer.Exit:
        err.print(
            "[yellow]stopped[/]: what had begun is in the journal. The same command continues it, and pays "
            "for nothing twice",
            soft_wrap=True,
        )
        raise
    _print(found, as_json=as_json)
    if not found.promoted and not found.planned:
        raise typer.Exit(1)


def rollback(
    agent: AgentName,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="An earlier champion [default: the previous one].")
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Go back even if DSPy, AgentCore or the adapter has changed."),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Move the alias champion back to an earlier champion, after checking that it is unchanged."""
    import_from_here()
    target = f"version {to}" if to else "the previous champion"
    confirm(f"Roll {agent} back to {target}?", yes=yes)
    found = run(_registry(agent).rollback(to, accept_changes=accept_changes))
    _print(found, as_json=as_json)


def history(
    agent: AgentName,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Accept aliases that somebody moved without AgentCore.")
    ] = False,
    alias: Annotated[str, typer.Option(help="For --adopt: the alias.")] = "champion",
    as_json: AsJson = False,
) -> None:
    """Show who decided what, when, and on what evidence; and aliases that somebody moved by hand."""
    registry = _registry(agent)
    if adopt:
        run(registry.adopt(alias))
    found = run(registry.history())
    if as_json:
        typer.echo(json.dumps([item.as_dict() for item in found], indent=2))
        return
    if not found:
        out.print(f"{agent} has no history here. Promote a run with: agentcore promote RUN --agent {agent}")
        return
    _print_history(found)


def verify(
    which: Annotated[str, typer.Argument(metavar="AGENT[@ALIAS|/VERSION]", help="The version to check.")],
    as_json: AsJson = False,
) -> None:
    """Check a version's files, tags and evidence against its promotion. Exits with 1 if any of them were
    changed."""
    import_from_here()
    agent, version = _reference(which)
    found = run(_registry(agent).verify(version))
    _print(found, as_json=as_json)
    if not found.sound:
        raise typer.Exit(1)


def _registry(
    agent: str, max_concurrency: int = 8, on_progress: "Callable[[int, int], None] | None" = None
) -> "Registry":
    from agentcore.registry import Registry

    return Registry(agent, tracking_config(), max_concurrency=max_concurrency, on_progress=on_progress)


def _reference(text: str) -> tuple[str, str]:
    for mark in ("@", "/"):
        agent, separator, rest = text.partition(mark)
        if separator:
            return agent, rest
    return text, "champion"


def _measured(done: int, total: int) -> None:
    if done % _STEP == 0 or done == total:
        err.print(f"  measured {done} of {total}", soft_wrap=True)


def _print(found: Any, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        out.print(str(found), soft_wrap=True, markup=False)


def _print_history(entries: "list[HistoryEntry]") -> None:
    """Two lines for each entry: a table has no room for its text."""
    for item in entries:
        facts = [item.at.replace("T", " ").removesuffix("Z"), item.what]
        if item.version:
            shown = f" ({item.semantic_version})" if item.semantic_version else ""
            facts.append(f"version {item.version}{shown}")
        facts += [
            f"{name} {value}"
            for name, value in (("run", item.run), ("by", item.by), ("evidence", (item.evidence or "")[:8]))
            if value
        ]
        out.print("  ".join(facts), soft_wrap=True, markup=False)
        out.print(f"    {item.text}", soft_wrap=True, markup=False)
