"""`agentcore runs`, `best` and `show`."""

from typing import Annotated, Any

import typer

from agentcore.cli._console import out, run, tracking_config
from agentcore.cli._optimize import Experiment
from agentcore.errors import ArtifactError, ConfigurationError


def runs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    filter_: Annotated[str, typer.Option("--filter", help="In MLflow's search syntax.")] = "",
    experiment: Experiment = None,
) -> None:
    """List runs, newest first."""
    from agentcore.cli._render import print_runs
    from agentcore.tracking import MLflowTracker

    config = tracking_config(experiment)
    found = run(MLflowTracker(config).search_runs(filter_, limit))
    if not found:
        out.print(f"no runs in experiment {config.experiment_name!r}. Make one with: agentcore demo")
        return
    print_runs(found)


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
    found = run(tracker.get_best_run(metric, "ASC" if ascending else "DESC", target_id=target))
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

    run(_show(MLflowTracker(tracking_config(experiment)), run_id, examples))


async def _show(tracker: Any, wanted: str, examples: int) -> None:
    from agentcore.cli._render import print_flipped, print_prompt, print_run

    found = await _find(tracker, wanted)
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


async def _find(tracker: Any, wanted: str) -> Any:
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
    matches = [item for item in await tracker.search_runs(max_results=1000) if item.run_id.startswith(wanted)]
    if len(matches) > 1:
        raise ConfigurationError(f"{len(matches)} runs start with {wanted!r}: give more of the id")
    if not matches:
        raise ConfigurationError(
            f"no run {wanted!r} in experiment {tracker.config.experiment_name!r}. "
            "List them with: agentcore runs"
        )
    return matches[0]
