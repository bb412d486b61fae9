"""Evaluation and drift reports as Markdown."""

from typing import TYPE_CHECKING, Any

from agentcore.monitoring._models import EvaluationMetrics
from agentcore.monitoring._units import shown

if TYPE_CHECKING:
    from agentcore.monitoring._drift import DriftReport

_WRONG = 10
_CELL = 80


def markdown(metrics: EvaluationMetrics) -> str:
    """The report of an evaluation."""
    lines = [
        f"# {metrics.agent} on {metrics.dataset}",
        "",
        f"{metrics.examples:,} rows compared with `{metrics.target_field}`"
        + (f", each run {metrics.repeats} times" if metrics.repeats > 1 else "")
        + f"; data set digest `{metrics.digest[:12]}`.",
        "",
        "| figure | value | 95% interval |",
        "|---|---:|---|",
    ]
    for name, value in metrics.figures().items():
        bounds = metrics.intervals.get(name)
        told = "" if bounds is None else f"{shown(name, bounds.low)} – {shown(name, bounds.high)}"
        lines.append(f"| {name} | {shown(name, value)} | {told} |")
    if metrics.per_class:
        lines += [
            "",
            "| class | precision | recall | F1 | rows |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {cell(label)} | {part['precision']:.3f} | {part['recall']:.3f} | "
                f"{part['f1_score']:.3f} | {part['support']:g} |"
                for label, part in metrics.per_class.items()
            ),
        ]
    wrong = [row for row in metrics.rows if row.score is None or row.score < 1]
    if wrong:
        first = f", the first {_WRONG}" if len(wrong) > _WRONG else ""
        lines += [
            "",
            f"## {len(wrong):,} rows not right in every run{first}",
            "",
            "| expected | answer | inputs |",
            "|---|---|---|",
            *(
                f"| {cell(row.expected)} | {cell(row.error if row.answer is None else row.answer)} | "
                f"{cell(', '.join(f'{name}={value}' for name, value in row.inputs.items()))} |"
                for row in (item.shown for item in wrong[:_WRONG])
            ),
        ]
    return "\n".join(lines) + "\n"


def drift_markdown(report: "DriftReport") -> str:
    """The report of a drift check."""
    lines = [
        f"# {report.current.agent}: {report.baseline.dataset} → {report.current.dataset}",
        "",
        cell(report.headline(), 10_000),
        "",
        "| figure | baseline | current | degradation | 95% interval | p | |",
        "|---|---:|---:|---:|---|---:|---|",
    ]
    for item in report.metrics:
        lines.append(
            f"| {item.name} | {shown(item.name, item.baseline)} | {shown(item.name, item.current)} | "
            f"{item.degradation:+.3f} | {item.interval.low:+.3f} – {item.interval.high:+.3f} | "
            f"{item.p_value:.2g} | {'**drift**' if item.drifted else ''} |"
        )
    lines += ["", "| field | test | effect | p | PSI | |", "|---|---|---:|---:|---:|---|"]
    for field in report.fields:
        p = "" if field.p_value is None else f"{field.p_value:.2g}"
        psi = "" if field.psi is None else f"{field.psi:.2f}"
        lines.append(
            f"| {cell(field.name)} | {field.test} | {field.effect:.3f} | {p} | {psi} | "
            f"{'**drift**' if field.drifted else ''} |"
        )
    if report.canary is not None:
        lines += ["", cell(report.canary, 10_000)]
    return "\n".join(lines) + "\n"


def cell(value: Any, limit: int = _CELL) -> str:
    """A value within a Markdown table: one line, without markup, of at most `limit` characters."""
    text = " ".join(str(value).split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    for mark in "\\|`<>[]*_":
        text = text.replace(mark, f"\\{mark}")
    return text
