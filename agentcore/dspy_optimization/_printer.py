"""Prints a run's progress as lines: each stage, each trial, and what is going on while neither ends."""

import sys
import threading
import time
from typing import Any

from agentcore._naming import short_id
from agentcore.dspy_optimization import _summary
from agentcore.dspy_optimization._events import (
    OptimizationEvent,
    RunFinished,
    RunResumed,
    StageStarted,
    TrialFinished,
    WarningRaised,
)
from agentcore.journal import Event

STAGES = {
    "preparing": "preparing",
    "baseline": "measuring the baseline on the test split",
    "search": "searching on train and validation",
    "winner": "measuring the winner on the test split",
    "logging": "logging the result",
    "delivering": "delivering to MLflow",
}
_SILENCE = 15.0
"""Seconds without a line after which the figures are printed."""


class Printer:
    """Prints events and progress of one run to stderr. Thread-safe.

    Attributes:
        progress: the run's, once it has begun.
    """

    def __init__(self) -> None:
        self.progress: Any = None
        self.optimization_id = ""
        self._failures = 0
        self._said = time.monotonic()
        self._ended = threading.Event()

    def say(self, line: str) -> None:
        """Print one line."""
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the user asked for it

    def note(self, message: str) -> None:
        """Print a warning."""
        self.say(f"note: {message}")

    def started(self, progress: Any) -> None:
        """Watch a run's progress from a thread of its own until the run ends."""
        self.progress = progress
        threading.Thread(target=self._watch, name="agentcore-progress", daemon=True).start()

    def event(self, event: Event) -> None:
        """Print what the event tells, if anything; for `on_event`."""
        if isinstance(event, OptimizationEvent):
            self.optimization_id = event.optimization_id
        if isinstance(event, WarningRaised):
            self.warned(event.message)
        elif isinstance(event, RunFinished):
            self.end()
            self.finished(event)
        elif (line := line_of(event)) is not None:
            self._tell(line)

    def warned(self, message: str) -> None:
        """Print a warning as it comes."""
        self.note(message)

    def finished(self, event: RunFinished) -> None:
        """Print what to do about a run that was stopped."""
        if event.status == "cancelled":
            self.note(f"stopped. Continue it with pipeline.resume({short_id(self.optimization_id)!r})")

    def end(self) -> None:
        """Print nothing more by itself."""
        self._ended.set()

    def _tell(self, line: str) -> None:
        self._said = time.monotonic()
        self.say(line)

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            progress = self.progress
            if not self._failures and progress.failed:
                self._failures = progress.failed
                self._tell(f"  a call failed: {progress.last_error}")
            elif time.monotonic() - self._said > _SILENCE:
                self._tell("  " + " · ".join(figures(progress)))


def line_of(event: Event) -> str | None:
    """The line that tells of an event; None for most."""
    if isinstance(event, RunResumed):
        known = f"{event.trials} trials finished, {event.examples} examples measured"
        return f"resuming run {short_id(event.optimization_id)}: {known}"
    if isinstance(event, StageStarted):
        return f"{STAGES.get(event.stage, event.stage)} …"
    if isinstance(event, TrialFinished):
        part = "" if event.full else f" on {event.examples} examples"
        given_up = ", stopped" if event.stopped else ""
        return f"  trial {event.trial}: {event.score:.3f}{part}{given_up} (best {event.best_score:.3f})"
    return None


def figures(progress: Any) -> list[str]:
    """What is going on, and what it has taken so far."""
    spend, found = progress.meter.total, []
    if progress.total:
        found.append(f"{progress.done} of {progress.total} examples")
    if progress.stage == "search" and progress.trials:
        found.append(f"trial {progress.trial} of {progress.trials}")
    if progress.best_score is not None:
        found.append(f"best so far {progress.best_score:.3f}")
    found.append(f"{progress.in_flight} calls in flight, {spend.calls - spend.unanswered:,} answered")
    if spend.cache_hits:
        found.append(f"{spend.cache_hits:,} from the cache")
    if progress.failed:
        found.append(f"{progress.failed:,} failed (last: {progress.last_error})")
    found.append(f"{spend.total_tokens:,} tokens")
    found.append(_summary.cost(spend.cost_usd))
    found.append(_summary.duration(progress.seconds))
    return found
