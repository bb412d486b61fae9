"""`agentcore compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentcore.cli._console import out, run
from agentcore.cli._options import Experiment
from agentcore.cli._tracking import after_backlog, tracking_config
from agentcore.errors import ConfigurationError

if TYPE_CHECKING:
    from agentcore.monitoring import RunComparison

_FORMATS = ("table", "md", "json", "html")


def compare(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]…", help="Run ids or prefixes.")] = None,
    last: Annotated[int, typer.Option(min=1, max=50, help="Without runs: how many, newest first.")] = 5,
    mode: Annotated[str | None, typer.Option(help="Only runs with this tag `mode`.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help="A tag or parameter by which to group the runs.")
    ] = None,
    experiment: Experiment = None,
    agent: Annotated[str | None, typer.Option(help="The agent whose evaluation experiment to use.")] = None,
    format_: Annotated[str, typer.Option("--format", help=f"{', '.join(_FORMATS)}.")] = "table",
    output: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the metrics over time into this file.")] = None,
    all_metrics: Annotated[bool, typer.Option("--all", help="Also the bounds of intervals.")] = False,
) -> None:
    """Compare runs side by side, and the latest with the one before."""
    if format_ not in _FORMATS:
        raise ConfigurationError(f"--format {format_!r}: use {', '.join(_FORMATS)}")
    if output is not None and format_ == "table":
        format_ = {".html": "html", ".json": "json"}.get(output.suffix.lower(), "md")
    if experiment and agent:
        raise ConfigurationError("pass --experiment or --agent, not both")
    from agentcore.dspy_optimization import MLflowTracker
    from agentcore.monitoring import compare_runs, find_runs
    from agentcore.tracking import Experiments

    config = tracking_config(experiment)
    if agent:
        config = Experiments(agent, config).stage_config("evaluation")
    tracker = MLflowTracker(config)

    async def work() -> "RunComparison":
        found = await find_runs(tracker, runs or [], last=last, mode=mode)
        return await compare_runs(tracker, found, group_by=group_by, all_metrics=all_metrics)

    found = run(after_backlog(tracker, work()))
    if plot is not None:
        _plot(found, plot)
    _write(found, format_, output)


def _write(found: "RunComparison", format_: str, output: Path | None) -> None:
    from agentcore.monitoring import comparison_markdown, comparison_page

    if format_ == "table" and output is None:
        _print(found)
        return
    if format_ == "json":
        text = json.dumps(found.as_dict(), indent=2, ensure_ascii=False) + "\n"
    else:
        text = comparison_page(found) if format_ == "html" else comparison_markdown(found)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{output} can't be written: {error}") from None
    out.print(f"written to {output}", markup=False, soft_wrap=True)


def _plot(found: "RunComparison", path: Path) -> None:
    from agentcore.monitoring import plot_trends

    runs = sorted(found.runs, key=lambda item: item.started_ms)
    metrics = {name: [item.metrics.get(name) for item in runs] for name in found.metrics}
    try:
        plot_trends([item.name for item in runs], metrics, path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} can't be drawn: {error}") from None
    out.print(f"drawn into {path}", markup=False, soft_wrap=True)


def _print(found: "RunComparison") -> None:
    from rich.markup import escape
    from rich.table import Table

    from agentcore.monitoring import comparison_notes, comparison_tables

    for title, header, rows in comparison_tables(found):
        out.print(f"\n[bold]{escape(title)}[/]")
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        text_columns = header if title.endswith("Comparison") and "Run Name" in header else header[:1]
        for column in header:
            table.add_column(
                escape(column),
                justify="left" if column in text_columns else "right",
                overflow="fold",
                no_wrap=column == header[0],
            )
        for row in rows:
            table.add_row(*map(escape, row))
        out.print(table)
    out.print()
    for line in comparison_notes(found):
        out.print(line, markup=False, soft_wrap=True)
    if found.prompts:
        out.print("\n[bold]Prompts[/]")
        out.print(found.prompts, markup=False, soft_wrap=True)
