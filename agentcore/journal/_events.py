"""What happened, as typed events. Timestamps are fixed when an event is made."""

import time
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Event(BaseModel):
    """What every event carries. `schema_version` changes when a field changes its meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    timestamp_ms: int = Field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Unix time in milliseconds."""

    def payloads(self) -> list[str]:
        """sha256 of the payloads that the event refers to."""
        return []


class OptimizationEvent(Event):
    """A step of an optimization."""

    optimization_id: str


class JobRecorded(OptimizationEvent):
    """All that a resumed run has to have in common with the one that died, and what rebuilds it."""

    kind: Literal["job_recorded"] = "job_recorded"
    spec: dict[str, Any]
    data: str
    """sha256 of the payload with the examples and their splits."""

    def payloads(self) -> list[str]:
        return [self.data]


class RunStarted(OptimizationEvent):
    kind: Literal["run_started"] = "run_started"
    run_id: str | None
    target_type: str
    target_id: str
    seed: int
    split_sizes: dict[str, int]


class RunResumed(OptimizationEvent):
    kind: Literal["run_resumed"] = "run_resumed"
    trials: int = 0
    """Finished before; `examples` were measured."""
    examples: int = 0


class StageStarted(OptimizationEvent):
    kind: Literal["stage_started"] = "stage_started"
    stage: str


class ExampleMeasured(OptimizationEvent):
    """One example of an evaluation, paid for."""

    kind: Literal["example_measured"] = "example_measured"
    evaluation: str
    """`baseline`, `winner`, `search`, or `trial-N` where what was measured before is asked again."""
    candidate: str
    """Digest of the program's state."""
    record: dict[str, Any]
    account: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The run's account by stage when it was measured."""


class StepFinished(OptimizationEvent):
    """The outcome of a step that is not to be paid for again, such as the proposed candidates."""

    kind: Literal["step_finished"] = "step_finished"
    step: str
    value: Any


class SpendCounted(OptimizationEvent):
    """The account so far, and the seconds that the run and its search took so far."""

    kind: Literal["spend_counted"] = "spend_counted"
    by_stage: dict[str, dict[str, Any]]
    seconds: float
    search_seconds: float


class BaselineMeasured(OptimizationEvent):
    kind: Literal["baseline_measured"] = "baseline_measured"
    metrics: dict[str, float | None]


class CandidateProposed(OptimizationEvent):
    """The search space of one optimizer: how many instructions and demo sets each predictor has."""

    kind: Literal["candidate_proposed"] = "candidate_proposed"
    instructions: dict[str, list[str]]
    demo_sets: dict[str, int]


class TrialFinished(OptimizationEvent):
    kind: Literal["trial_finished"] = "trial_finished"
    trial: int
    score: float
    """Mean score, 0–1, over the examples of this trial."""
    best_score: float
    full: bool
    """True where the whole validation split was scored, False for a minibatch."""
    examples: int
    candidate: str = ""
    """Digest of the program's state."""
    stopped: bool = False
    """Whether racing gave it up."""


class WinnerMeasured(OptimizationEvent):
    kind: Literal["winner_measured"] = "winner_measured"
    metrics: dict[str, float | None]
    improvement: float
    p_value: float


class WarningRaised(OptimizationEvent):
    kind: Literal["warning"] = "warning"
    message: str


class RunFinished(OptimizationEvent):
    kind: Literal["run_finished"] = "run_finished"
    status: Literal["completed", "failed", "cancelled", "budget_exhausted"]
    error: str | None = None
    summary: dict[str, Any] = Field(default_factory=dict)


EventSink = Callable[[Event], None]
"""Called in the event loop, in order; must return at once."""
