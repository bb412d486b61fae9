"""`agentcore runs`, `runs archive`, `best` and `show`."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from agentcore._naming import short_id, utc
from agentcore.cli._console import counted, out, run, this_command
from agentcore.cli._options import AgentRuns, Experiment
from agentcore.cli._tracking import after_backlog, find_run, print_waiting, runs_config
from agentcore.errors import ArtifactError, ConfigurationError, TrackingError

if TYPE_CHECKING:
    from datetime import timedelta

    from agentcore.dspy_optimization import MLflowTracker, OptimizationResult

runs = typer.Typer(name="runs", help="List runs, newest first; or archive old ones.")


@runs.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    filter_: Annotated[str, typer.Option("--filter", help="Filter in MLflow's search syntax.")] = "",
    experiment: Experiment = None,
    agent: AgentRuns = None,
) -> None:
    """List runs, newest first; or archive old ones."""
    if context.invoked_subcommand is not None:
        return
    from agentcore.cli._render import print_runs
    from agentcore.dspy_optimization import MLflowTracker, resumable_runs
    from agentcore.journal import open_journal
    from agentcore.tracking import destination_of

    config = runs_config(experiment, agent)
    tracker = MLflowTracker(config)
    journal, destination = open_journal(), destination_of(config)
    try:
        found = run(after_backlog(tracker, tracker.search_runs(filter_, limit)))
    except TrackingError:
        print_waiting(journal, destination)
        raise
    if found:
        ended = {item.info.run_id for item in found if item.info.status in ("KILLED", "FAILED", "RUNNING")}
        here = [item for item in journal.streams(destination) if item.tracking_id in ended]
        resumable = resumable_runs(journal, here)
        print_runs(found, {item.tracking_id for item in resumable})
        if resumable:
            out.print(f"resume a run: [bold]agentcore resume {short_id(resumable[0].id)}[/]")
    else:
        out.print(f"no runs in experiment {config.experiment_name!r}. Make one with: agentcore demo")
    print_waiting(journal, destination)


@runs.command()
def archive(
    older_than: Annotated[str, typer.Option(help="Minimum age since a run's start, such as 90d or 12h.")],
    keep_best: Annotated[int, typer.Option(min=0, help="How many of the best runs to keep.")] = 10,
    metric: Annotated[str, typer.Option(help="Metric that ranks them.")] = "optimized_quality_score",
    keep_promoted: Annotated[
        bool,
        typer.Option(
            "--keep-promoted/--no-keep-promoted",
            help="Keep runs with a registered model; those with an alias are always kept.",
        ),
    ] = True,
    with_models: Annotated[
        bool,
        typer.Option("--with-models", help="Also delete their LoggedModels, which MLflow can't restore."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete; without this, only report what would be deleted.")
    ] = False,
    experiment: Experiment = None,
    agent: AgentRuns = None,
) -> None:
    """Delete old runs in MLflow, which can restore them until `mlflow gc`. A dry run unless --yes."""
    from agentcore.cli._render import shown_id
    from agentcore.dspy_optimization import MLflowTracker

    age = _age(older_than)
    tracker = MLflowTracker(runs_config(experiment, agent))
    asked = tracker.archive_runs(
        age,
        keep_best=keep_best,
        metric=metric,
        keep_registered=keep_promoted,
        with_models=with_models,
        dry_run=not yes,
    )
    found = run(after_backlog(tracker, asked))
    for item in found.runs:
        info = item.info
        started = f"{utc(info.start_time):%Y-%m-%d}"
        out.print(
            f"{shown_id(item)}  {started}  {info.status:<8}  {info.run_name}",
            soft_wrap=True,
        )
    count = counted(len(found.runs), "run")
    if found.models:
        count += f" and {counted(len(found.models), 'model')}"
    done = "archived; MLflow can restore the runs until mlflow gc" if yes else "would be archived: add --yes"
    out.print(f"{count} {done}" if found.runs else "nothing to archive", soft_wrap=True)
    for reason, number in found.kept.items():
        out.print(f"kept {counted(number, 'older run')}: {reason}", soft_wrap=True)


def _age(text: str) -> "timedelta":
    from datetime import timedelta

    units = {"h": "hours", "d": "days", "w": "weeks"}
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in units:
        raise ConfigurationError(f"--older-than {text!r}: write a number and h, d or w, such as 90d")
    return timedelta(**{units[unit]: int(number)})


def best(
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric to rank by [default: the best lower bound of quality among the runs with a proven "
            "gain on the newest one's test examples]."
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Only consider runs with this target id.")] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="The lowest value is best.")] = False,
    experiment: Experiment = None,
    agent: AgentRuns = None,
) -> None:
    """Show the best finished run with a proven gain. Exits 1 if there is none."""
    from agentcore.cli._render import print_run, shown_id
    from agentcore.dspy_optimization import MLflowTracker

    tracker = MLflowTracker(runs_config(experiment, agent))
    if ascending and metric is None:
        raise ConfigurationError("--ascending needs --metric")
    best_run = tracker.get_best_run(metric, "ASC" if ascending else "DESC", target_id=target)
    found = run(after_backlog(tracker, best_run))
    if found is None:
        what = "a proven gain" if metric is None else f"metric {metric!r}"
        out.print(f"no finished run with {what} in experiment {tracker.config.experiment_name!r}")
        raise typer.Exit(1)
    print_run(found)
    out.print(f"the whole result: [bold]{this_command()} show {shown_id(found)}[/]")


async def result_of(tracker: "MLflowTracker", run_id: str) -> "OptimizationResult | None":
    """A run's result; None if it failed, was stopped, or is no optimization."""
    from agentcore.dspy_optimization import OptimizationPipeline

    with suppress(ArtifactError, ConfigurationError):
        return await OptimizationPipeline(mlflow_config=tracker.config).result(run_id)
    return None


def show(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN", help="Run id or a unique prefix, 'latest' or 'best'.")
    ],
    examples: Annotated[int, typer.Option(min=0, help="How many fixed and broken examples to show.")] = 5,
    reveal_test: Annotated[
        bool,
        typer.Option(
            "--reveal-test",
            help="Show the test examples that flipped; the run records that you did.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
    experiment: Experiment = None,
    agent: AgentRuns = None,
) -> None:
    """Show a run: its metrics, the optimized prompt as text, and the validation examples that flipped."""
    from agentcore.dspy_optimization import MLflowTracker

    tracker = MLflowTracker(runs_config(experiment, agent))
    if as_json:
        run(_show_json(tracker, run_id))
    else:
        run(after_backlog(tracker, _show(tracker, run_id, examples, reveal_test=reveal_test)))


async def _show_json(tracker: "MLflowTracker", wanted: str) -> None:
    from agentcore.dspy_optimization import OptimizationPipeline

    run_id = wanted
    if wanted in ("best", "latest"):
        run_id = (await after_backlog(tracker, find_run(tracker, wanted))).info.run_id
    pipeline = OptimizationPipeline(mlflow_config=tracker.config)
    typer.echo((await pipeline.result(run_id)).model_dump_json(indent=2))


async def _show(tracker: "MLflowTracker", wanted: str, examples: int, *, reveal_test: bool) -> None:
    from agentcore.cli._render import print_flipped, print_prompt, print_run
    from agentcore.tracking import model_names

    found = await find_run(tracker, wanted)
    print_run(found, await result_of(tracker, found.info.run_id))
    names = model_names(found)
    for name in names:
        if name == "baseline_model":
            continue
        if name != "optimized_model":
            out.print(f"\nmodel {name} (measured on validation only)")
        print_prompt(await tracker.read_prompt(found.info.run_id, name))
    if not names:
        out.print("\nthe run kept no model")
    # A run that failed or was stopped has neither.
    with suppress(ArtifactError):
        content = await tracker.read_json(found.info.run_id, "validation_examples.json")
        print_flipped(content, examples, "validation")
    if reveal_test:
        print_flipped(await tracker.reveal_test(found.info.run_id), examples, "test")
