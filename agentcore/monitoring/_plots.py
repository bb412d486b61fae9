"""Pictures of evaluations, rendered when they are delivered to MLflow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentcore.monitoring._units import shown, unit_of

_INK, _MUTED, _ACCENT, _ALARM = "#1f2933", "#9aa5b1", "#0b7285", "#c92a2a"
_MOST_FIELDS = 30
_MOST_TRENDS = 12
_NUMBERED = 12
"""Classes up to which every cell of a confusion matrix shows its count."""


def plot_confusion(title: str, labels: Sequence[str], counts: Sequence[Sequence[float]], path: Path) -> None:
    """Expected classes by row, answered ones by column, shaded by the share of the row."""
    import numpy as np
    from matplotlib.figure import Figure

    cells = np.asarray(counts, dtype=float)
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1e-12)
    size = max(4.0, 0.5 * len(labels) + 2.5)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="GnBu", vmin=0, vmax=1)
    names = [_short(label) for label in labels]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="answered", ylabel="expected")
    axes.set_title(_short(title, 90), loc="left", fontsize=10)
    if len(names) <= _NUMBERED:
        for (row, column), value in np.ndenumerate(cells):
            color = "white" if shares[row, column] > 0.6 else _INK
            axes.text(column, row, f"{value:g}", ha="center", va="center", color=color, fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the expected class")
    figure.savefig(path, dpi=130)


def plot_degradations(
    title: str, threshold: float, metrics: Sequence[tuple[str, float, float, float, bool]], path: Path
) -> None:
    """Each metric's degradation with its interval: name, value, bounds, and whether it drifted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.4 + 0.42 * len(metrics)), layout="constrained")
    axes = figure.subplots()
    for number, (_, value, low, high, drifted) in enumerate(metrics):
        axes.errorbar(
            [value],
            [number],
            xerr=[[max(0.0, value - max(low, -1.0))], [max(0.0, min(high, 2.0) - value)]],
            fmt="o",
            color=_ALARM if drifted else _ACCENT,
            capsize=4,
        )
    axes.axvline(0, color=_MUTED, linewidth=1)
    axes.axvline(threshold, color=_ALARM, linewidth=1, linestyle="--", label="threshold")
    axes.set_yticks(range(len(metrics)), [item[0] for item in metrics])
    axes.invert_yaxis()
    axes.set_xlabel("degradation with 95% interval (right is worse)")
    axes.set_title(_short(title, 90), loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    _finish(axes)
    figure.savefig(path, dpi=130)


def plot_fields(fields: Sequence[tuple[str, float, float, bool]], path: Path) -> None:
    """How much each field differs: name, p-value, effect, and whether it drifted."""
    from matplotlib.figure import Figure

    shown_fields = sorted(fields, key=lambda item: -item[2])[:_MOST_FIELDS]
    figure = Figure(figsize=(7, 1.4 + 0.32 * len(shown_fields)), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        [_short(item[0]) for item in shown_fields],
        [item[2] for item in shown_fields],
        color=[_ALARM if item[3] else _MUTED for item in shown_fields],
    )
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="difference of the distributions (0 to 1); red: proven")
    axes.set_title("Fields", loc="left", fontsize=10)
    _finish(axes)
    figure.savefig(path, dpi=130)


def plot_trends(runs: Sequence[str], metrics: Mapping[str, Sequence[float | None]], path: Path) -> None:
    """One small plot for each metric that varies, oldest run at the left; the first 12 of them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    varies = [name for name, values in metrics.items() if len({*values} - {None}) > 1]
    names = (varies or list(metrics))[:_MOST_TRENDS]
    if not names:
        raise ValueError("the runs have no metrics")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.1 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, names, strict=False):
        points = [(number, value) for number, value in enumerate(metrics[name], 1) if value is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", color=_ACCENT, markersize=4)
        axes.set_title(_short(name, 40), loc="left", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if unit_of(name) != "number":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, name=name: shown(name, value)))
        axes.tick_params(labelsize=8)
        axes.margins(y=0.2)
        axes.set_xlim(0.7, len(runs) + 0.3)
        _finish(axes)
    figure.supxlabel(f"run, oldest first ({len(runs)} runs)", fontsize=9)
    figure.savefig(path, dpi=130)


def _short(text: str, limit: int = 24) -> str:
    """A text that fits, and isn't taken for a formula."""
    text = " ".join(text.split())
    return (text if len(text) <= limit else text[: limit - 1] + "…").replace("$", r"\$")


def _finish(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
