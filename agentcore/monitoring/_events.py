"""What monitoring writes to the journal."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from agentcore.journal import Event
from agentcore.tracking import FilesRendered


class ConfusionPlotted(FilesRendered):
    """A confusion matrix, drawn on delivery: rows by expected (first axis) and answered class."""

    kind: Literal["confusion_plotted"] = "confusion_plotted"
    title: str
    labels: list[str]
    counts: list[list[float]]

    folder: ClassVar[str] = ""

    def render(self, directory: Path) -> None:
        from agentcore.monitoring._plots import plot_confusion

        plot_confusion(self.title, self.labels, self.counts, directory / "confusion_matrix.png")


class DriftPlotted(FilesRendered):
    """A drift report's figures and fields, drawn on delivery.

    Attributes:
        metrics: name, degradation and its interval, relative to the threshold.
        fields: name, p-value, effect (0–1) and whether it drifted.
    """

    kind: Literal["drift_plotted"] = "drift_plotted"
    title: str
    threshold: float
    metrics: list[tuple[str, float, float, float, bool]]
    fields: list[tuple[str, float, float, bool]]

    folder: ClassVar[str] = "plots"

    def render(self, directory: Path) -> None:
        from agentcore.monitoring._plots import plot_degradations, plot_fields

        if self.metrics:
            plot_degradations(self.title, self.threshold, self.metrics, directory / "drift_metrics.png")
        if self.fields:
            plot_fields(self.fields, directory / "drift_fields.png")


class WindowRecorded(Event):
    """What a collector recorded in one window; kept here only, to merge processes and windows."""

    kind: Literal["window_recorded"] = "window_recorded"
    process: str
    window: int
    state: dict[str, Any]


class AlertRaised(Event):
    """An alert was sent."""

    kind: Literal["alert_raised"] = "alert_raised"
    key: str
    title: str
    text: str


class AlertResolved(Event):
    """The reason of an alert is gone."""

    kind: Literal["alert_resolved"] = "alert_resolved"
    key: str
