"""The events of an optimization. Timestamps are fixed when an event is made."""

import time
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Event(BaseModel):
    """What every event carries. `schema_version` changes when a field changes its meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    optimization_id: str
    timestamp_ms: int = Field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Unix time in milliseconds."""


class RunStarted(Event):
    kind: Literal["run_started"] = "run_started"
    run_id: str | None
    target_type: str
    target_id: str
    seed: int
    split_sizes: dict[str, int]


class StageStarted(Event):
    kind: Literal["stage_started"] = "stage_started"
    stage: str


class BaselineMeasured(Event):
    kind: Literal["baseline_measured"] = "baseline_measured"
    metrics: dict[str, float | None]


class CandidateProposed(Event):
    """The search space of one optimizer: how many instructions and demo sets each predictor has."""

    kind: Literal["candidate_proposed"] = "candidate_proposed"
    instructions: dict[str, list[str]]
    demo_sets: dict[str, int]


class TrialFinished(Event):
    kind: Literal["trial_finished"] = "trial_finished"
    trial: int
    score: float
    """Mean score, 0–1, over the examples of this trial."""
    best_score: float
    full: bool
    """True where the whole validation split was scored, False for a minibatch."""
    examples: int


class WinnerMeasured(Event):
    kind: Literal["winner_measured"] = "winner_measured"
    metrics: dict[str, float | None]
    improvement: float
    p_value: float


class WarningRaised(Event):
    kind: Literal["warning"] = "warning"
    message: str


class RunFinished(Event):
    kind: Literal["run_finished"] = "run_finished"
    status: Literal["completed", "failed", "cancelled", "budget_exhausted"]
    error: str | None = None
    summary: dict[str, Any] = Field(default_factory=dict)


EventSink = Callable[[Event], None]
"""Called in the event loop, in order; must return at once."""
