"""A result in words and as a table: for the terminal, for MLflow's description of a run, and for
notebooks."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from agentcore._naming import short_id

VERDICTS = {
    "better": "the optimized program is better, and the gain is proven",
    "worse": "the optimized program is worse, which is proven: keep the original",
    "not proven": "these examples prove neither a gain nor a loss",
    None: "unknown",
}
HEADER = ("", "baseline", "optimized", "change")


def number(value: float) -> str:
    return f"{value:.3f}"


def usd(value: float) -> str:
    return f"${value:.2g}" if 0 < value < 0.01 else f"${value:.4f}" if value else "$0"


def seconds(milliseconds: float) -> str:
    value = milliseconds / 1000
    return f"{value:.3f} s" if value < 1 else f"{value:.1f} s"


def duration(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min"


def cost(value: float | None) -> str:
    return "cost unknown" if value is None else usd(value)


_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("quality_score", "quality score", number),
    ("success_rate", "success rate", number),
    ("avg_cost", "cost per example", usd),
    ("avg_latency_ms", "latency, mean", seconds),
    ("median_latency_ms", "latency, median", seconds),
)
_GAINS: dict[str, tuple[str, Callable[[float], str]]] = {
    "quality_score": ("gain in quality score", number),
    "success_rate": ("gain in success rate", number),
    "avg_cost": ("saved per example", usd),
    "avg_latency_ms": ("latency saved", lambda value: f"{value:.1%}"),
}


def figures(result: Any) -> list[tuple[str, str, str, str]]:
    """Rows of label, baseline, optimized and change, which is absolute with the relative one beside it."""
    before, after = result.measured_baseline, result.optimized_performance
    return [
        (label, *_values(getattr(before, name), getattr(after, name), form)) for name, label, form in _FIGURES
    ]


def _values(old: float | None, new: float | None, form: Callable[[float], str]) -> tuple[str, str, str]:
    if old is None or new is None:
        shown = ["unknown" if value is None else form(value) for value in (old, new)]
        return shown[0], shown[1], "unknown"
    change = signed(new - old, form)
    return form(old), form(new), f"{change} ({(new - old) / old:+.0%})" if old else change


def signed(value: float, form: Callable[[float], str]) -> str:
    return ("-" if value < 0 else "+") + form(abs(value))


def headline(result: Any) -> str:
    """The verdict in words."""
    return f"{result.verdict}: {VERDICTS[result.verdict]}"


def details(result: Any) -> list[str]:
    """What the verdict rests on, and what would change it, a line each."""
    found = result.comparison
    lines = [_claim(claim) for claim in result.claims]
    lines.append(
        f"{len(found.fixed)} examples fixed, {len(found.broken)} broken, of {found.examples} test examples "
        "that no optimizer saw"
    )
    if found.clusters is not None:
        lines.append(f"the examples come in {found.clusters} clusters, which the tests treat as units")
    if found.verdict == "not proven" and found.examples_needed is not None and found.interval != (-1.0, 1.0):
        lines.append(
            f"about {found.examples_needed:,} test examples would be needed to prove this gain in quality"
        )
    smallest = result.smallest_detectable_gain
    if smallest is None:
        lines.append(f"{found.examples} test examples like these can't show any gain reliably")
    else:
        lines.append(
            f"smallest gain that {found.examples} examples like these show in 4 of 5 runs: {smallest:.3f}"
        )
    if result.verdict == "better" and not result.meets_threshold:
        lines.append("the improvement is proven, but below min_improvement_threshold")
    return lines


def _claim(claim: Any) -> str:
    label, form = _GAINS[claim.figure]
    low, high = claim.interval
    return (
        f"{label} {signed(claim.gain, form)}, 95% interval {signed(low, form)} to {signed(high, form)}, "
        f"p = {claim.p_value:.2g}: {claim.verdict}"
    )


def spent(result: Any) -> str:
    spend = result.spend
    cached = f" ({spend.cache_hits:,} more answers from the cache)" if spend.cache_hits else ""
    return (
        f"spent {spend.calls:,} LM calls{cached}, {spend.total_tokens:,} tokens, {cost(spend.cost_usd)}, "
        f"{duration(result.optimization_details['duration_seconds'])} ({result.status.replace('_', ' ')})"
    )


def optimizers(result: Any) -> list[tuple[str, str, str, str]]:
    """Of several optimizers: name, validation score, LM calls and time of each; empty for one."""
    return [
        (
            name + (" (winner)" if name == result.winning_optimizer else ""),
            number(item["validation_score"]),
            f"{item['lm_calls']:,}",
            duration(item["seconds"]),
        )
        for name, item in (result.optimization_details.get("optimizers") or {}).items()
    ]


OPTIMIZERS = ("optimizer", "validation score", "LM calls", "time")


def text(result: Any) -> str:
    """The result as plain text."""
    parts = [headline(result), *(f"  {line}" for line in details(result)), "", *_columns(figures(result))]
    if compared := optimizers(result):
        parts += ["", *_columns([OPTIMIZERS, *compared], header=False)]
    parts += ["", spent(result), *(f"note: {item}" for item in result.warnings)]
    return "\n".join([*parts, *run_line(result)])


def run_line(result: Any) -> list[str]:
    """Which run it is; nothing without tracking."""
    if result.run_id is None:
        return []
    known = "" if result.run_id.startswith("local-") else f" ({result.run_id} in MLflow)"
    return [f"run {short_id(result.optimization_id)}{known}"]


def _columns(rows: Sequence[Sequence[str]], *, header: bool = True) -> list[str]:
    table = [HEADER, *rows] if header else list(rows)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def markdown(result: Any) -> str:
    """The result as Markdown, for a run's description."""
    parts = [f"**{_plain(headline(result))}**", "", *_markdown([HEADER, *figures(result)]), ""]
    parts += [f"- {_plain(line)}" for line in details(result)]
    if compared := optimizers(result):
        parts += ["", *_markdown([OPTIMIZERS, *compared])]
    parts += ["", spent(result)]
    return "\n".join([*parts, *(f"\n> {_plain(item)}" for item in result.warnings)])


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(_plain, row))} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _plain(value: str) -> str:
    """Text that Markdown shows as it is: warnings quote models and data."""
    for mark in "\\`*_[]<>|!":
        value = value.replace(mark, "\\" + mark if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return " ".join(value.split())


def html(result: Any) -> str:
    """The result as HTML, for notebooks.

    Every `result` here is an `OptimizationResult`, whose module imports this one."""
    parts = [f"<p><b>{escape(headline(result))}</b></p>", _html([HEADER, *figures(result)])]
    parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in details(result)) + "</ul>")
    if compared := optimizers(result):
        parts.append(_html([OPTIMIZERS, *compared]))
    parts += [f"<p>{escape(line)}</p>" for line in (spent(result), *run_line(result))]
    return "".join([*parts, *(f"<p>note: {escape(item)}</p>" for item in result.warnings)])


def _html(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for row, tag in [(rows[0], "th"), *((row, "td") for row in rows[1:])]
    )
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in body) + "</table>"
