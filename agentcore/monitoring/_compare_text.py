"""A comparison of runs as text, Markdown or a page."""

import html
import math
import re
from collections.abc import Callable, Sequence

from agentcore.monitoring._compare import Change, RunComparison
from agentcore.monitoring._report import cell
from agentcore.monitoring._units import shown, unit_of

_BARS = "▁▂▃▄▅▆▇█"
_FLIPS = 5
_SHORT = 110

Table = tuple[str, list[str], list[list[str]]]


def sparkline(values: Sequence[float | None]) -> str:
    """The values as a line of bars, oldest first; a dot where there is none."""
    values = [value if value is not None and math.isfinite(value) else None for value in values]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    return "".join(
        "·"
        if value is None
        else _BARS[3 if high == low else round((value - low) / (high - low) * (len(_BARS) - 1))]
        for value in values
    )


def comparison_tables(found: RunComparison) -> list[Table]:
    """Title, header and rows of each table."""
    grouped = any(run.group is not None for run in found.runs)
    unfinished = any(run.status != "FINISHED" for run in found.runs)
    runs = [
        [
            run.name,
            run.mode,
            run.started,
            run.id[:8],
            *([run.status] if unfinished else []),
            *([run.group or ""] if grouped else []),
        ]
        for run in found.runs
    ]
    header = ["Run Name", "Mode", "Date", "Id"]
    header += [*(["Status"] if unfinished else []), *(["Group"] if grouped else [])]
    several = len(found.runs) > 2
    metrics = []
    for name in found.metrics:
        values = found.values(name)
        cells = [
            f"{shown(name, value)}{' *' if found.best.get(name) == number else ''}"
            for number, value in enumerate(values)
        ]
        by_time = sorted(range(len(values)), key=lambda number: found.runs[number].started_ms)
        metrics.append(
            [name, *cells, *([sparkline([values[number] for number in by_time])] if several else [])]
        )
    titles = [run.name if len(found.runs) == 1 else _head(run.name, run.id) for run in found.runs]
    result: list[Table] = [
        ("MLflow Evaluation Run Comparison", header, runs),
        ("Metrics Comparison", ["Metric", *titles, *(["Old → new"] if several else [])], metrics),
    ]
    if found.changes:
        rows = [
            [
                change.metric,
                shown(change.metric, change.latest),
                shown(change.metric, change.previous),
                relative_change(change),
                absolute_change(change),
                {True: "better", False: "worse", None: ""}[change.better],
            ]
            for change in found.changes
        ]
        result.append(
            ("Latest vs Previous Run", ["Metric", "Latest", "Previous", "Change", "Difference", ""], rows)
        )
    if found.params:
        rows = [[name, *(value or "" for value in values)] for name, values in found.params.items()]
        result.append(("Parameters and data sets that differ", ["", *titles], rows))
    return result


def relative_change(change: Change) -> str:
    """`+5.9%`; without a previous value to relate it to, nothing."""
    return "" if change.relative is None else f"{100 * change.relative:+.1f}%"


def absolute_change(change: Change) -> str:
    """The difference in the metric's unit; of shares in percentage points."""
    if unit_of(change.metric) == "percent":
        return f"{100 * change.absolute:+.2f} points"
    sign = "+" if change.absolute >= 0 else "-"
    return f"{sign}{shown(change.metric, abs(change.absolute))}"


def comparison_notes(found: RunComparison) -> list[str]:
    """What the tables don't say."""
    lines = []
    if found.best:
        lines.append("* marks the best run.")
    paired = found.paired
    if paired is not None:
        test = paired.test
        lines.append(
            f"Latest against previous on the same {paired.examples} examples ({paired.source}): "
            f"{test.difference:+.3f} ({test.interval.low:+.3f} to {test.interval.high:+.3f}), "
            f"p = {test.p_value:.2g}: {test.verdict}. {len(paired.fixed)} fixed, {len(paired.broken)} broken."
        )
        for word, texts in (("fixed", paired.fixed), ("broken", paired.broken)):
            lines += [f"  {word}: {_cut(text)}" for text in texts[:_FLIPS]]
            if len(texts) > _FLIPS:
                lines.append(f"  … and {len(texts) - _FLIPS} more {word}")
    elif not found.comparable:
        lines.append(
            "The latest run and the one before are of different data or targets: neither is better or worse."
        )
    elif len(found.runs) > 1:
        lines.append(
            "Without scores of the same examples in both runs, no difference between them is proven."
        )
    return lines


def comparison_markdown(found: RunComparison) -> str:
    """The comparison as Markdown."""
    parts = []
    for title, header, rows in comparison_tables(found):
        lines = [
            f"## {title}",
            "",
            f"| {' | '.join(map(cell, header))} |",
            f"|---|{'---:|' * (len(header) - 1)}",
        ]
        lines += [f"| {' | '.join(map(cell, row))} |" for row in rows]
        parts.append("\n".join(lines))
    parts.append("\n".join(f"- {cell(line, 10_000)}" for line in comparison_notes(found)))
    if found.prompts:
        longest = max((len(run) for run in re.findall(r"`+", found.prompts)), default=0)
        fence = "`" * max(3, longest + 1)
        parts.append(f"## Prompts\n\n{fence}diff\n{found.prompts}\n{fence}")
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison_page(found: RunComparison) -> str:
    """The comparison as a self-contained HTML page."""
    clean: Callable[[str], str] = html.escape
    parts = []
    for title, header, rows in comparison_tables(found):
        head = "".join(f'<th scope="col">{clean(item)}</th>' for item in header)
        body = "".join(
            f'<tr><th scope="row">{clean(row[0])}</th>'
            + "".join(f"<td>{clean(item)}</td>" for item in row[1:])
            + "</tr>"
            for row in rows
        )
        parts.append(
            f"<h2>{clean(title)}</h2><div><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )
    parts += [f"<p>{clean(line)}</p>" for line in comparison_notes(found)]
    if found.prompts:
        parts.append(f"<h2>Prompts</h2><pre>{clean(found.prompts)}</pre>")
    return _PAGE.format(body="\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Run comparison</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; }}
h2 {{ font-size: 1.15rem; margin: 2rem 0 .5rem; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid #e4e7eb; }}
th:first-child {{ text-align: left; font-weight: 500; }}
thead th {{ color: #52606d; font-weight: 600; }}
pre {{ background: #f5f7fa; padding: 1rem; overflow-x: auto; }}
</style>
</head>
<body>
<h1>Run comparison</h1>
{body}
</body>
</html>
"""


def _head(name: str, run_id: str) -> str:
    """A run's name that fits above a column: long ones are cut, and told apart by their id."""
    return name if len(name) <= 18 else f"{name[:12]}… {run_id[:4]}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"
