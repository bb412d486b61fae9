"""Results, runs and prompts as tables and text."""

from collections.abc import Container, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from agentcore._naming import utc
from agentcore.cli._console import out
from agentcore.cli._live import cost_text

_ROWS = (
    ("success_rate", "success rate", "{:.3f}"),
    ("quality_score", "quality score", "{:.3f}"),
    ("avg_cost", "cost per example", "${:.6f}"),
    ("avg_latency_ms", "latency", "{:.0f} ms"),
)


def print_result(result: Any, tracking: str | None) -> None:
    """Print baseline and optimized metrics, the uncertainty of the gain, and the next commands."""
    before, after = result.measured_baseline, result.optimized_performance
    count = result.comparison.examples
    table = Table(title=f"Test split, {count} examples that no optimizer saw", title_justify="left")
    for column, justify in (("", "left"), ("baseline", "right"), ("optimized", "right"), ("change", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, label, form in _ROWS:
        old, new = getattr(before, name), getattr(after, name)
        table.add_row(label, _shown(old, form), _shown(new, form), _change(old, new, form))
    out.print(table)
    low, high = result.interval
    out.print(
        f"gain in quality score {result.comparison.difference:+.3f}, 95% interval {low:+.3f} to {high:+.3f}, "
        f"p = {result.statistical_significance:.2g}; {len(result.comparison.fixed)} examples fixed, "
        f"{len(result.comparison.broken)} broken",
        soft_wrap=True,
    )
    out.print(f"smallest gain that {count} examples reliably show: {result.smallest_detectable_gain:.3f}")
    spend = result.spend
    out.print(
        f"spent {spend.calls:,} LM calls, {spend.total_tokens:,} tokens, {cost_text(spend.cost_usd)}, "
        f"{result.optimization_details['duration_seconds']:.1f} s ({result.status.replace('_', ' ')})",
        soft_wrap=True,
    )
    if not result.meets_threshold:
        out.print("[yellow]the improvement is below min_improvement_threshold[/]")
    for warning in result.warnings:
        out.print(f"[yellow]note:[/] {escape(warning)}", soft_wrap=True)
    if result.run_id:
        out.print(f"\nrun {result.run_id} in {escape(tracking or '')}")
        if result.run_id.startswith("local-"):
            out.print("next, once MLflow is back: [bold]agentcore sync[/] · [bold]agentcore runs[/]")
        else:
            out.print(
                f"next: [bold]agentcore show {result.run_id[:8]}[/] · "
                "[bold]agentcore runs[/] · [bold]agentcore ui[/]"
            )


def print_estimate(estimate: Any, max_concurrency: int) -> None:
    """Print the estimated cost of a run."""
    out.print("estimate, an upper bound")
    table = Table()
    table.add_column("stage")
    table.add_column("LM calls", justify="right")
    for stage, calls in estimate.calls.items():
        table.add_row(stage, f"{calls:,}")
    table.add_section()
    table.add_row("total", f"{estimate.total_calls:,}")
    out.print(table)
    cost = cost_text(estimate.cost_usd)
    if estimate.unpriced:
        cost += f" (no price known for {', '.join(estimate.unpriced)}: pass --price)"
    out.print(f"tokens {estimate.tokens:,}; cost {cost}", soft_wrap=True, markup=False)
    out.print(
        f"time {_duration(estimate.seconds)} at {estimate.latency:g} s per call with {max_concurrency} in "
        "flight"
    )
    out.print(
        f"{estimate.test_examples} test examples reliably show a gain of {estimate.smallest_gain:.3f} "
        "or more (if a quarter of them change)",
        soft_wrap=True,
    )
    for note in estimate.notes:
        out.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    out.print("no LM call was made")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _shown(value: float | None, form: str, missing: str = "unknown") -> str:
    return missing if value is None else form.format(value)


def _change(old: float | None, new: float | None, form: str) -> str:
    if old is None or new is None:
        return "unknown"
    sign = "+" if new >= old else "-"
    return sign + form.format(abs(new - old))


def print_runs(runs: Sequence[Any], resumable: Container[str | None] = ()) -> None:
    """Print runs as a table; `resumable` holds the ids of runs whose process died."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    figures = ("baseline", "optimized", "change", "p")
    for column in ("run", "target", "status", *figures, "started, UTC"):
        side: Any = "right" if column in figures else "left"
        table.add_column(column, justify=side, no_wrap=column != "target")
    for item in runs:
        info, metrics = item.info, item.data.metrics
        gain = metrics.get("improvement_percentage")
        table.add_row(
            info.run_id[:8],
            escape(item.data.tags.get("target_id", info.run_name or "")),
            "resumable" if info.run_id in resumable else info.status,
            _shown(metrics.get("baseline_quality_score"), "{:.3f}", ""),
            _shown(metrics.get("optimized_quality_score"), "{:.3f}", ""),
            _shown(gain, "{:+.1%}", ""),
            _shown(metrics.get("statistical_significance"), "{:.2g}", ""),
            f"{utc(info.start_time):%m-%d %H:%M}" if info.start_time else "",
        )
    out.print(table)


def print_run(run: Any) -> None:
    """Print a run's metrics."""
    info, tags = run.info, run.data.tags
    out.print(f"[bold]{escape(info.run_name or '')}[/]  {info.status}  {info.run_id}")
    if tags.get("error"):
        out.print(f"[red]{escape(tags['error'])}[/]", soft_wrap=True)
    for key in ("agentcore.offline_lm", "warnings"):
        if key in tags:
            out.print(f"[yellow]note:[/] {escape(tags[key])}", soft_wrap=True)
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


def print_flipped(content: dict[str, Any], limit: int) -> None:
    """Print examples that the optimized program fixed or broke."""
    for kind in ("fixed", "broken"):
        indices = content[kind]
        out.print(f"\n[bold]{len(indices)} {kind}[/]" + (f" (first {limit})" if len(indices) > limit else ""))
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
