"""The two plots of a run, rendered on delivery: its trials, and baseline vs. optimized."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from agentcore.tracking import FilesRendered

_INK, _MUTED, _ACCENT = "#1f2933", "#9aa5b1", "#0b7285"


class TrialPoint(BaseModel):
    """One trial as it is plotted: its validation score, and the best score so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: int
    score: float
    best: float
    full: bool


class PlotsLogged(FilesRendered):
    """The data of a run's two plots."""

    kind: Literal["plots_logged"] = "plots_logged"
    trials: list[TrialPoint]
    baseline: float
    optimized: float
    interval: tuple[float, float]
    p_value: float
    examples: int

    folder: ClassVar[str] = "plots"

    def render(self, directory: Path) -> None:
        if self.trials:
            plot_trials(self.trials, directory / "trials.png")
        plot_comparison(self, directory / "comparison.png")


def plot_trials(trials: Sequence[TrialPoint], path: Path) -> None:
    """Score by trial with the best so far; hollow points were scored on a minibatch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.step(
        [point.trial for point in trials],
        [point.best for point in trials],
        where="post",
        color=_ACCENT,
        label="best so far",
    )
    for full, face, label in ((True, _INK, "full validation split"), (False, "white", "minibatch")):
        shown = [point for point in trials if point.full is full]
        if shown:
            axes.scatter(
                [point.trial for point in shown],
                [point.score for point in shown],
                s=28,
                facecolor=face,
                edgecolor=_INK,
                zorder=3,
                label=label,
            )
    axes.set(xlabel="trial (0 is the original program)", ylabel="mean score", ylim=(-0.03, 1.03))
    axes.set_title("Candidates on the validation split", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(path, dpi=130)


def plot_comparison(figures: PlotsLogged, path: Path) -> None:
    """Mean test score of both programs, and the gain with its 95% interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    bars, gain = figure.subplots(1, 2, width_ratios=(3, 2))
    drawn = bars.bar(
        ["baseline", "optimized"], [figures.baseline, figures.optimized], color=[_MUTED, _ACCENT], width=0.55
    )
    bars.bar_label(drawn, fmt="%.3f", padding=2)
    bars.set(ylabel="mean score", ylim=(0, 1.12))
    bars.set_title(f"Test split, {figures.examples} examples", loc="left")
    difference = figures.optimized - figures.baseline
    low, high = figures.interval
    gain.errorbar(
        [0],
        [difference],
        yerr=[[max(0.0, difference - low)], [max(0.0, high - difference)]],
        fmt="o",
        color=_ACCENT,
        capsize=6,
    )
    gain.axhline(0, color=_MUTED, linewidth=1)
    gain.set(xticks=[], ylabel="gain in mean score", xlim=(-1, 1))
    gain.set_title(f"95% interval, p = {figures.p_value:.2g}", loc="left")
    for axes in (bars, gain):
        _finish(axes)
    figure.savefig(path, dpi=130)


def _finish(axes: object) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)  # type: ignore[attr-defined]
