"""`agentcore runs`, `runs archive`, `best` and `show`."""

import asyncio
from datetime import timedelta
from typing import Annotated, Any

import typer

from agentcore.cli._console import out, run, tracking_config
from agentcore.cli._optimize import Experiment
from agentcore.errors import ArtifactError, ConfigurationError, TrackingError

_BACKLOG_SECONDS = 20.0


runs = typer.Typer(name="runs", help="List runs, newest first; or archive old ones.")


@runs.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    filter_: Annotated[str, typer.Option("--filter", help="In MLflow's search syntax.")] = "",
    experiment: Experiment = None,
) -> None:
    """List runs, newest first; or archive old ones."""
    if context.invoked_subcommand is not None:
        return
    from agentcore.cli._render import print_runs
    from agentcore.journal import open_journal
    from agentcore.tracking import MLflowTracker, destination_of, interrupted_runs

    config = tracking_config(experiment)
    tracker = MLflowTracker(config)
    home, destination = open_journal(), destination_of(config)
    try:
        found = run(_after_backlog(tracker, tracker.search_runs(filter_, limit)))
    except TrackingError:
        _print_waiting(home, destination)
        raise
    if found:
        resumable = {item.tracking_id: item.id for item in interrupted_runs(home, destination)}
        print_runs(found, resumable)
        for key in resumable.values():
            out.print(f"a run's process died. Go on with it: [bold]agentcore resume {key[:8]}[/]")
    else:
        out.print(f"no runs in experiment {config.experiment_name!r}. Make one with: agentcore demo")
    _print_waiting(home, destination)


@runs.command()
def archive(
    older_than: Annotated[str, typer.Option(help="Such as 90d or 12h, since a run's start.")],
    keep_best: Annotated[int, typer.Option(min=0, help="How many of the best runs stay.")] = 10,
    metric: Annotated[str, typer.Option(help="By which they are the best.")] = "improvement_percentage",
    keep_promoted: Annotated[
        bool,
        typer.Option(
            "--keep-promoted/--no-keep-promoted",
            help="Runs with a registered model stay; those behind an alias always do.",
        ),
    ] = True,
    with_models: Annotated[
        bool,
        typer.Option("--with-models", help="Their LoggedModels too, which MLflow can't restore."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it is only told what would go.")] = False,
    experiment: Experiment = None,
) -> None:
    """Delete old runs in MLflow, which can restore them until `mlflow gc`. A dry run unless --yes."""
    from agentcore.tracking import MLflowTracker

    age = _age(older_than)
    tracker = MLflowTracker(tracking_config(experiment))
    asked = tracker.archive_runs(
        age,
        keep_best=keep_best,
        metric=metric,
        keep_registered=keep_promoted,
        with_models=with_models,
        dry_run=not yes,
    )
    found = run(_after_backlog(tracker, asked))
    for item in found.runs:
        started = f"{item.start_time:%Y-%m-%d}" if item.start_time else "?"
        out.print(f"{item.run_id[:8]}  {started}  {item.status:<8}  {item.name}", soft_wrap=True)
    count = f"{len(found.runs)} run{'s' * (len(found.runs) != 1)}"
    if found.models:
        count += f" and {len(found.models)} model{'s' * (len(found.models) != 1)}"
    done = "archived; MLflow can restore the runs until mlflow gc" if yes else "would be archived: add --yes"
    out.print(f"{count} {done}" if found.runs else "nothing to archive", soft_wrap=True)
    for reason, number in found.kept.items():
        out.print(f"{number} older stay{'s' * (number == 1)}: {reason}", soft_wrap=True)


def _age(text: str) -> timedelta:
    units = {"h": "hours", "d": "days", "w": "weeks"}
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in units:
        raise ConfigurationError(f"--older-than {text!r}: write a number and h, d or w, such as 90d")
    return timedelta(**{units[unit]: int(number)})


async def _after_backlog(tracker: Any, work: Any) -> Any:
    """Do `work`, a coroutine, after what earlier commands left was delivered, as far as it can be."""
    import contextlib

    from agentcore.tracking import mark_interrupted

    home, delivery = await tracker.opened()
    try:
        await asyncio.to_thread(mark_interrupted, home, delivery.destination)
        with contextlib.suppress(TrackingError):  # then `work` fails too, or the rest is told of below
            await tracker.deliver_backlog(_BACKLOG_SECONDS)
    except BaseException:
        work.close()
        raise
    return await work


def _print_waiting(home: Any, destination: str) -> None:
    waiting = home.waiting(destination)
    if waiting:
        entries = sum(item.waiting for item in waiting)
        out.print(
            f"{entries:,} entries of {len(waiting)} runs are not in MLflow yet. "
            "See them: agentcore journal ls · deliver them: agentcore sync",
            soft_wrap=True,
        )


def best(
    metric: Annotated[str, typer.Option(help="Metric to rank by.")] = "improvement_percentage",
    target: Annotated[str | None, typer.Option(help="Only runs of this target id.")] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="The lowest value is best.")] = False,
    experiment: Experiment = None,
) -> None:
    """Show the best finished run. Exits 1 where there is none."""
    from agentcore.cli._render import print_run
    from agentcore.tracking import MLflowTracker

    tracker = MLflowTracker(tracking_config(experiment))
    best_run = tracker.get_best_run(metric, "ASC" if ascending else "DESC", target_id=target)
    found = run(_after_backlog(tracker, best_run))
    if found is None:
        out.print(f"no finished run with metric {metric!r} in experiment {tracker.config.experiment_name!r}")
        raise typer.Exit(1)
    print_run(found)


def show(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id or its start, 'latest' or 'best'.")
    ],
    examples: Annotated[int, typer.Option(min=0, help="Flipped examples to show of each kind.")] = 5,
    experiment: Experiment = None,
) -> None:
    """Show a run: its figures, the optimized prompt as text, and the examples that flipped."""
    from agentcore.tracking import MLflowTracker

    tracker = MLflowTracker(tracking_config(experiment))
    run(_after_backlog(tracker, _show(tracker, run_id, examples)))


async def _show(tracker: Any, wanted: str, examples: int) -> None:
    from agentcore.cli._render import print_flipped, print_prompt, print_run

    found = await find_run(tracker, wanted)
    print_run(found)
    names = tracker.model_names(found)
    for name in names:
        if name != "optimized_model":
            out.print(f"\nmodel {name} (measured on validation only)")
        print_prompt(await tracker.read_prompt(found.run_id, name))
    if not names:
        out.print("\nthe run kept no model")
    try:
        content = await tracker.read_json(found.run_id, "test_examples.json")
    except ArtifactError:
        return  # a run that failed or was stopped has none
    print_flipped(content, examples)


async def find_run(tracker: Any, wanted: str) -> Any:
    if wanted == "best":
        found = await tracker.get_best_run()
        if found is None:
            raise ConfigurationError("there is no finished run yet. Make one with: agentcore demo")
        return found
    if wanted == "latest":
        recent = await tracker.search_runs(max_results=1)
        if not recent:
            raise ConfigurationError("there is no run yet. Make one with: agentcore demo")
        return recent[0]
    home, delivery = await tracker.opened()
    short = wanted.removeprefix("local-")
    own = [item for item in home.find(short) if item.id.startswith(short)]
    here = [item for item in own if item.destination == delivery.destination]
    if len(here) > 1:
        raise ConfigurationError(f"{len(here)} runs start with {wanted!r}: give more of the id")
    if here:
        return await tracker.get_run(f"local-{here[0].id}")
    if own:
        raise ConfigurationError(
            f"run {wanted} is tracked at {own[0].destination}: set MLFLOW_TRACKING_URI to see it"
        )
    matches = [item for item in await tracker.search_runs(max_results=1000) if item.run_id.startswith(wanted)]
    if len(matches) > 1:
        raise ConfigurationError(f"{len(matches)} runs start with {wanted!r}: give more of the id")
    if not matches:
        raise ConfigurationError(
            f"no run {wanted!r} in experiment {tracker.config.experiment_name!r}. "
            "List them with: agentcore runs"
        )
    return matches[0]
