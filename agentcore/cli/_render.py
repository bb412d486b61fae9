"""Results, runs and prompts as tables and text."""

from collections.abc import Container, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from agentcore._naming import short_id, utc
from agentcore.cli._console import out, this_command
from agentcore.tracking import KEY_TAG

_WIDE = 100
"""Columns of a terminal that has room for all figures."""
_ERROR = 200
"""Characters of a failed run's error in a list."""
_VERDICTS = {"better": "bold green", "worse": "bold red", "not proven": "bold yellow"}


def print_result(result: Any, tracking: str | None, agent: str | None = None, metric: Any = None) -> None:
    """Print a result and the next commands."""
    print_summary(result)
    if result.run_id:
        short, command = short_id(result.optimization_id), this_command()
        of_agent = f" --agent {agent}" if agent else ""
        promote = ""
        if agent and result.verdict == "better":
            of_metric = f" --metric {escape(metric)}" if isinstance(metric, str) and ":" in metric else ""
            promote = f" · [bold]{command} promote {short}{of_agent}{of_metric}[/]"
        known = "" if result.run_id.startswith("local-") else f", {result.run_id} in MLflow"
        out.print(f"\nrun {short} ({escape(tracking or '')}{known})", soft_wrap=True)
        if result.run_id.startswith("local-"):
            out.print(
                f"next, once MLflow is back: [bold]{command} sync[/] · [bold]{command} runs{of_agent}[/]"
            )
        else:
            out.print(
                f"next: [bold]{command} show {short}[/] · [bold]{command} runs{of_agent}[/]{promote} · "
                f"[bold]{command} ui[/]",
                soft_wrap=True,
            )


def print_summary(result: Any) -> None:
    """Print the verdict, baseline and optimized figures, and what they rest on."""
    from agentcore.dspy_optimization import summary

    style = _VERDICTS[result.verdict]
    out.print(f"\n[{style}]{escape(summary.headline(result))}[/]", soft_wrap=True)
    _print_table(summary.HEADER, summary.figures(result))
    for line in summary.details(result):
        out.print(escape(line), soft_wrap=True)
    if compared := summary.optimizers(result):
        _print_table(summary.OPTIMIZERS, compared)
    elif result.winning_optimizer:
        out.print(f"found by {escape(result.winning_optimizer)}")
    out.print(summary.spent(result), soft_wrap=True)
    for warning in result.warnings:
        out.print(f"[yellow]note:[/] {escape(warning)}", soft_wrap=True)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table()
    for number, column in enumerate(header):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def print_estimate(estimate: Any, max_concurrency: int) -> None:
    """Print the estimated cost of a run."""
    from agentcore.dspy_optimization import ASSUMPTION

    out.print(ASSUMPTION)
    _print_table(("stage", "LM calls"), estimate.rows())
    for line in estimate.lines():
        if line.startswith("note: "):
            out.print(f"[yellow]note:[/] {escape(line.removeprefix('note: '))}", soft_wrap=True)
        else:
            in_flight = f" with {max_concurrency} in flight" if line.startswith("time ") else ""
            out.print(escape(line + in_flight), soft_wrap=True)
    out.print("no LM call was made")


def _shown(value: float | None, form: str, missing: str = "unknown") -> str:
    return missing if value is None else form.format(value)


def print_runs(runs: Sequence[Any], resumable: Container[str | None] = ()) -> None:
    """Print runs as a table, and why runs failed; `resumable` holds MLflow's ids."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    wide = out.width >= _WIDE  # else the target needs the room
    figures = ("baseline", "optimized", "gain") if wide else ("optimized", "gain")
    for column in ("run", "target", "status", *figures, "verdict", "started, UTC"):
        side: Any = "right" if column in figures else "left"
        wraps = column in ("target", "status")
        table.add_column(
            column, justify=side, no_wrap=not wraps, min_width=9 if wraps else None, overflow="fold"
        )
    for item in runs:
        info, metrics = item.info, item.data.metrics
        gain = metrics.get("quality_improvement")
        table.add_row(
            escape(shown_id(item)),
            escape(item.data.tags.get("target_id", info.run_name or "")),
            f"{info.status}, resumable" if info.run_id in resumable else info.status,
            *([_shown(metrics.get("baseline_quality_score"), "{:.3f}", "")] if wide else []),
            _shown(metrics.get("optimized_quality_score"), "{:.3f}", ""),
            _shown(gain, "{:+.3f}", ""),
            escape(item.data.tags.get("verdict", "")),
            f"{utc(info.start_time):%m-%d %H:%M}" if info.start_time else "",
        )
    out.print(table)
    for item in runs:
        if item.info.status == "FAILED" and (error := item.data.tags.get("error")):
            shown = error if len(error) <= _ERROR else error[: _ERROR - 1] + "…"
            out.print(f"[red]{escape(shown_id(item))} failed:[/] {escape(shown)}", soft_wrap=True)


def shown_id(run: Any) -> str:
    """The id that `journal ls`, `resume` and `show` use too; MLflow's for another client's run."""
    return short_id(run.data.tags.get(KEY_TAG) or run.info.run_id)


def print_run(run: Any, result: Any = None) -> None:
    """Print a run, and its result; without one, its metrics."""
    info, tags = run.info, run.data.tags
    name = escape(info.run_name or "")
    told = f"[bold]{name}[/]  {info.status}  {escape(shown_id(run))}  (MLflow {info.run_id})"
    out.print(told, soft_wrap=True)
    if tags.get("error"):
        out.print(f"[red]{escape(tags['error'])}[/]", soft_wrap=True)
    if revealed := tags.get("agentcore.test_revealed"):
        out.print(f"[yellow]note:[/] its test examples were shown: {escape(revealed)}", soft_wrap=True)
    if result is not None:
        print_summary(result)  # and its warnings
        return
    for key in ("agentcore.offline_lm", "warnings"):
        if key in tags:
            out.print(f"[yellow]note:[/] {escape(tags[key])}", soft_wrap=True)
    if verdict := tags.get("verdict"):
        flipped = [tags.get(f"examples_{kind}") for kind in ("fixed", "broken")]
        counts = "" if None in flipped else f" ({flipped[0]} examples fixed, {flipped[1]} broken)"
        out.print(f"verdict: {escape(verdict + counts)}")
    if winner := tags.get("winning_optimizer"):
        out.print(f"found by: {escape(winner)}")
    table = Table(show_header=False)
    for name, value in sorted(run.data.metrics.items()):
        table.add_row(name, f"{value:.6g}")
    out.print(table)


def print_prompt(predictors: dict[str, Any]) -> None:
    """Print the instruction and demonstrations of each predictor as plain text."""
    for name, part in predictors.items():
        out.print(
            f"\n[bold]predictor {escape(name)}[/]: {escape(', '.join(part['inputs']))} → "
            f"{escape(', '.join(part['outputs']))}"
        )
        out.print("[bold]instruction[/]")
        out.print(escape(part["instruction"]), soft_wrap=True)
        if part["demos"]:
            out.print(f"[bold]{len(part['demos'])} demonstrations[/]")
        for number, demo in enumerate(part["demos"], 1):
            asked = {field: value for field, value in demo.items() if field in part["inputs"]}
            answered = {field: value for field, value in demo.items() if field in part["outputs"]}
            line = f"{_fields(asked, 400)} → {_fields(answered, 400)}"
            out.print(f"  {number}. {escape(line)}", soft_wrap=True)


def print_flipped(content: dict[str, Any], limit: int, split: str) -> None:
    """Print examples that the optimized program fixed or broke."""
    for kind in ("fixed", "broken"):
        indices = content[kind]
        first = f" (first {limit})" if len(indices) > limit else ""
        out.print(f"\n[bold]{len(indices)} {split} examples {kind}[/]{first}")
        for index in indices[:limit]:
            item = content["examples"][index]
            before, after = (item[side]["prediction"] for side in ("baseline", "optimized"))
            out.print(
                f"  {escape(_fields(item['inputs']))} | label {escape(_fields(item['labels']))} | "
                f"{escape(_answer(before, item['labels']))} → {escape(_answer(after, item['labels']))}",
                soft_wrap=True,
            )


def _fields(values: dict[str, Any], limit: int = 100) -> str:
    text = ", ".join(f"{name}={value}" for name, value in values.items())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _answer(prediction: dict[str, Any] | None, labels: dict[str, Any]) -> str:
    if prediction is None:
        return "(failed)"
    shown = {name: value for name, value in prediction.items() if name in labels} or prediction
    return _fields(shown)
