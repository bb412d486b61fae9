"""`RunLog`: sends each event of a run to the journal and the caller's listener, and updates the progress."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from agentcore._redaction import first_line
from agentcore.dspy_optimization._events import (
    BaselineMeasured,
    OptimizationEvent,
    SpendCounted,
    StageStarted,
    StepFinished,
    TrialFinished,
    WarningRaised,
)
from agentcore.dspy_optimization._history import History
from agentcore.journal import Event, EventSink
from agentcore.lm import Control, Meter
from agentcore.tracking import RunWriter

E = TypeVar("E", bound=OptimizationEvent)

_WITH_ACCOUNT = (BaselineMeasured, StepFinished, TrialFinished)
"""Events after which the spend is written: between evaluations, when no call is in flight."""


@dataclass
class Progress:
    """Progress of a running optimization. The pipeline updates it; it may be read at any time."""

    stage: str = "preparing"
    done: int = 0
    total: int = 0
    trial: int = 0
    trials: int = 0
    best_score: float | None = None
    meter: Meter = field(default_factory=Meter)
    started: float = field(default_factory=time.monotonic)
    control: Control | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def in_flight(self) -> int:
        """Number of LM calls being made."""
        return self.control.in_flight if self.control else 0

    @property
    def failed(self) -> int:
        """Number of failed attempts to call a model in this process, most of which were retried."""
        return self.control.failures if self.control else 0

    @property
    def last_error(self) -> str | None:
        """The last of these failures."""
        return self.control.last_failure if self.control else None

    def begin(self, stage: str, total: int = 0) -> None:
        """Start a stage of `total` examples; 0 if their number is unknown."""
        self.stage, self.done, self.total = stage, 0, total


ProgressSink = Callable[[Progress], None]
"""Called once when a run starts, with its `Progress`."""


class RunClock:
    """Seconds spent on a run and on its search, including earlier processes."""

    def __init__(self, history: History) -> None:
        self._before, self._search_before = history.seconds, history.search_seconds
        self._began = time.monotonic()
        self._search_began: float | None = None

    @property
    def in_this_process(self) -> float:
        return time.monotonic() - self._began

    @property
    def seconds(self) -> float:
        return self._before + self.in_this_process

    @property
    def search_seconds(self) -> float:
        running = time.monotonic() - self._search_began if self._search_began is not None else 0.0
        return self._search_before + running

    def start_search(self) -> None:
        self._search_began = time.monotonic()

    def stop_search(self) -> None:
        self._search_before, self._search_began = self.search_seconds, None


class RunLog:
    """The event log of one run. Must be used from a single event loop.

    Args:
        history: what earlier processes of the run have logged.
        listener: called with every event, until it raises.

    Attributes:
        writer: writes to the journal; None until the run is created there, and without tracking.
    """

    def __init__(
        self, optimization_id: str, history: History, progress: Progress, listener: EventSink | None
    ) -> None:
        self.optimization_id = optimization_id
        self.history = history
        self.progress = progress
        self.clock = RunClock(history)
        self.warnings: list[str] = []
        self.writer: RunWriter | None = None
        self.is_settled: Callable[[], bool] = lambda: False
        """Whether no LM call is in flight."""
        self._listener = listener

    def event(self, kind: type[E], **values: Any) -> E:
        return kind(optimization_id=self.optimization_id, **values)

    def emit(self, kind: type[OptimizationEvent], *also: Event, known: bool = False, **values: Any) -> None:
        """Create an event, write it unless an earlier process did, and pass it to the listener.

        Args:
            also: written in the same commit.
        """
        event = self.event(kind, **values)
        if not known and self.writer is not None:
            self.writer.post([event, *also])
            if kind in _WITH_ACCOUNT:
                self.writer.post([self.account()])
        self.tell(event)

    def tell(self, event: Event) -> None:
        """Pass an event to the listener only."""
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception as error:  # noqa: BLE001 - a broken listener must not fail the run
            self._listener = None
            self.warn(f"on_event raised {first_line(error)} and won't be called again")

    def stage(self, name: str, total: int = 0) -> None:
        self.progress.begin(name, total)
        self.emit(StageStarted, stage=name)

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            self.emit(WarningRaised, known=message in self.history.warnings, message=message)

    def account(self) -> SpendCounted:
        return self.event(
            SpendCounted,
            by_stage=self.spend_by_stage(),
            seconds=self.clock.seconds,
            search_seconds=self.clock.search_seconds,
            settled=self.is_settled(),
        )

    def spend_by_stage(self) -> dict[str, dict[str, Any]]:
        return {name: asdict(part) for name, part in self.progress.meter.by_stage().items()}

    async def durable(self) -> None:
        """Wait until everything emitted so far is stored in the journal; raises `JournalError`."""
        if self.writer is not None:
            await self.writer.durable()
