"""Results, runs and prompts as tables and text."""

from collections.abc import Container, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from agentcore._naming import short_id, utc
from agentcore.cli._console import out
from agentcore.cli._live import cost_text
from agentcore.tracking import KEY_TAG

_ROWS = (
    ("success_rate", "success rate", "{:.3f}"),
    ("quality_score", "quality score", "{:.3f}"),
    ("avg_cost", "cost per example", "${:.6f}"),
    ("avg_latency_ms", "latency, mean", "{:.0f} ms"),
    ("median_latency_ms", "latency, median", "{:.0f} ms"),
)
_CLAIMS = {
    "quality_score": ("gain in quality score", "{:+.3f}"),
    "success_rate": ("gain in success rate", "{:+.3f}"),
    "avg_cost": ("saved per example", "${:+.6f}"),
    "avg_latency_ms": ("latency saved", "{:+.1%}"),
}
_ERROR = 200
"""Characters of a failed run's error in a list."""
_VERDICTS = {"better": "bold green", "worse": "bold red", "not proven": "bold yellow"}


def print_result(result: Any, tracking: str | None) -> None:
    """Print baseline and optimized metrics, what is proven, and the next commands."""
    before, after = result.measured_baseline, result.optimized_performance
    count = result.comparison.examples
    table = Table(title=f"Test split, {count} examples that no optimizer saw", title_justify="left")
    for column, justify in (("", "left"), ("baseline", "right"), ("optimized", "right"), ("change", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, label, form in _ROWS:
        old, new = getattr(before, name), getattr(after, name)
        table.add_row(label, _shown(old, form), _shown(new, form), _change(old, new, form))
    out.print(table)
    for claim in result.claims:
        _print_claim(claim)
    _print_verdict(result)
    spend = result.spend
    out.print(
        f"spent {spend.calls:,} LM calls, {spend.total_tokens:,} tokens, {cost_text(spend.cost_usd)}, "
        f"{result.optimization_details['duration_seconds']:.1f} s ({result.status.replace('_', ' ')})",
        soft_wrap=True,
    )
    for warning in result.warnings:
        out.print(f"[yellow]note:[/] {escape(warning)}", soft_wrap=True)
    if result.run_id:
        short = short_id(result.optimization_id)
        known = "" if result.run_id.startswith("local-") else f", {result.run_id} in MLflow"
        out.print(f"\nrun {short} ({escape(tracking or '')}{known})", soft_wrap=True)
        if result.run_id.startswith("local-"):
            out.print("next, once MLflow is back: [bold]agentcore sync[/] · [bold]agentcore runs[/]")
        else:
            out.print(
                f"next: [bold]agentcore show {short}[/] · [bold]agentcore runs[/] · [bold]agentcore ui[/]"
            )


def _print_claim(claim: Any) -> None:
    label, form = _CLAIMS[claim.figure]
    low, high = claim.interval
    out.print(
        f"{label} {form.format(claim.gain)}, 95% interval {form.format(low)} to {form.format(high)}, "
        f"p = {claim.p_value:.2g}: {claim.verdict}",
        soft_wrap=True,
    )


def _print_verdict(result: Any) -> None:
    """The verdict in one word, and what would change it."""
    found = result.comparison
    out.print(
        f"verdict: [{_VERDICTS[result.verdict]}]{result.verdict}[/] ({len(found.fixed)} examples fixed, "
        f"{len(found.broken)} broken)"
    )
    if found.clusters is not None:
        out.print(f"the examples come in {found.clusters} clusters, which the tests take as units")
    if found.verdict == "not proven" and found.examples_needed is not None and found.interval != (-1.0, 1.0):
        out.print(f"about {found.examples_needed:,} test examples would show this gain in quality")
    smallest = result.smallest_detectable_gain
    if smallest is None:
        out.print(f"{found.examples} test examples like these can't show any gain reliably")
    else:
        out.print(
            f"smallest gain that {found.examples} examples like these show in 4 of 5 runs: {smallest:.3f}"
        )
    if result.verdict == "better" and not result.meets_threshold:
        out.print("[yellow]the improvement is proven, but below min_improvement_threshold[/]")


def print_estimate(estimate: Any, max_concurrency: int) -> None:
    """Print the estimated cost of a run."""
    out.print("estimate, if every answer parses and each predictor is called once per example")
    table = Table()
    table.add_column("stage")
    table.add_column("LM calls", justify="right")
    for stage, calls in estimate.calls.items():
        table.add_row(stage, f"{calls:,}")
    table.add_section()
    table.add_row("total, about", f"{estimate.total_calls:,}")
    if estimate.max_calls is not None:
        table.add_row("total, at most", f"{estimate.max_calls:,}")
    out.print(table)
    cost = cost_text(estimate.cost_usd)
    if estimate.unpriced:
        cost += f" (no price known for {', '.join(estimate.unpriced)}: pass --price)"
    out.print(f"tokens {estimate.tokens:,}; cost {cost}", soft_wrap=True, markup=False)
    out.print(
        f"time {_duration(estimate.seconds)} at {estimate.latency:g} s per call with {max_concurrency} in "
        "flight"
    )
    of_clusters = "" if estimate.clusters is None else f" in {estimate.clusters} clusters"
    tested = f"{estimate.test_examples} test examples{of_clusters}"
    if estimate.smallest_gain is None:
        out.print(
            f"{tested} can't show any gain reliably, even if a quarter of them improved and none got worse: "
            "add examples",
            soft_wrap=True,
        )
    else:
        out.print(
            f"{tested} show a gain of {estimate.smallest_gain:.3f} in 4 of 5 runs (if a quarter of them "
            "change)",
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
    """Print runs as a table, and why runs failed; `resumable` holds MLflow's ids."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    figures = ("baseline", "optimized", "gain", "p")
    for column in ("run", "target", "status", *figures, "verdict", "started, UTC"):
        side: Any = "right" if column in figures else "left"
        table.add_column(column, justify=side, no_wrap=column != "target")
    for item in runs:
        info, metrics = item.info, item.data.metrics
        gain = metrics.get("quality_improvement")
        table.add_row(
            escape(shown_id(item)),
            escape(item.data.tags.get("target_id", info.run_name or "")),
            f"{info.status}, resumable" if info.run_id in resumable else info.status,
            _shown(metrics.get("baseline_quality_score"), "{:.3f}", ""),
            _shown(metrics.get("optimized_quality_score"), "{:.3f}", ""),
            _shown(gain, "{:+.3f}", ""),
            _shown(metrics.get("statistical_significance"), "{:.2g}", ""),
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


def print_run(run: Any) -> None:
    """Print a run's metrics."""
    info, tags = run.info, run.data.tags
    name = escape(info.run_name or "")
    out.print(f"[bold]{name}[/]  {info.status}  {escape(shown_id(run))}  (MLflow {info.run_id})")
    if tags.get("error"):
        out.print(f"[red]{escape(tags['error'])}[/]", soft_wrap=True)
    if verdict := tags.get("verdict"):
        out.print(f"verdict: {escape(verdict)}")
    if revealed := tags.get("agentcore.test_revealed"):
        out.print(f"[yellow]note:[/] its test examples were shown: {escape(revealed)}", soft_wrap=True)
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
