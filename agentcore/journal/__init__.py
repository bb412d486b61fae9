"""What happens during an optimization, as typed events handed to one sink."""

from agentcore.journal._events import (
    BaselineMeasured,
    CandidateProposed,
    Event,
    EventSink,
    RunFinished,
    RunStarted,
    StageStarted,
    TrialFinished,
    WarningRaised,
    WinnerMeasured,
)

__all__ = [
    "BaselineMeasured",
    "CandidateProposed",
    "Event",
    "EventSink",
    "RunFinished",
    "RunStarted",
    "StageStarted",
    "TrialFinished",
    "WarningRaised",
    "WinnerMeasured",
]
