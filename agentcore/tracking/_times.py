"""Distinct times for metrics: MLflow keeps one row per run, name, value, time and step."""

import threading
from collections.abc import Sequence

from agentcore.journal import Event
from agentcore.tracking._events import MetricsLogged, RunEnded

_Point = tuple[int, float]
"""Step and value."""


class MetricTimes:
    """The latest time of each metric, by run. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, dict[str, tuple[int, set[_Point]]]] = {}

    def distinct(self, stream: str, events: Sequence[Event]) -> list[Event]:
        """The events, with metrics that MLflow would take for one another moved to later milliseconds."""
        with self._lock:
            return [
                self._moved(stream, event) if isinstance(event, MetricsLogged) else event for event in events
            ]

    def forget(self, stream: str, events: Sequence[Event]) -> None:
        """Drop a run's times once its end is written."""
        if any(isinstance(event, RunEnded) for event in events):
            with self._lock:
                self._runs.pop(stream, None)

    def _moved(self, stream: str, event: MetricsLogged) -> MetricsLogged:
        times = self._runs.setdefault(stream, {})
        at = event.timestamp_ms
        for name, value in event.metrics.items():
            last, points = times.get(name, (0, set()))
            if at <= last:
                at = last + 1 if (event.step, value) in points else last
        for name, value in event.metrics.items():
            last, points = times.get(name, (0, set()))
            if at != last:
                points = set()
                times[name] = at, points
            points.add((event.step, value))
        return event if at == event.timestamp_ms else event.model_copy(update={"timestamp_ms": at})
