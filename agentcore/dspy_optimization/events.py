"""The events that `OptimizationPipeline(on_event=…)` receives."""

from agentcore.dspy_optimization._events import (
    BaselineMeasured,
    CandidateProposed,
    ExampleMeasured,
    JobRecorded,
    OptimizationEvent,
    ResultRecorded,
    RunFinished,
    RunResumed,
    RunStarted,
    SpendCounted,
    SpendReserved,
    StageStarted,
    StepFinished,
    TrialFinished,
    WarningRaised,
    WinnerMeasured,
)

__all__ = [
    "BaselineMeasured",
    "CandidateProposed",
    "ExampleMeasured",
    "JobRecorded",
    "OptimizationEvent",
    "ResultRecorded",
    "RunFinished",
    "RunResumed",
    "RunStarted",
    "SpendCounted",
    "SpendReserved",
    "StageStarted",
    "StepFinished",
    "TrialFinished",
    "WarningRaised",
    "WinnerMeasured",
]
