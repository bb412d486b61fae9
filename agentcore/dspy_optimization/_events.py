"""Journal events of an optimization."""

from typing import Any, Literal

from pydantic import Field

from agentcore.journal import Event

STREAM_KIND = "optimization"
"""Kind of an optimization's journal stream."""


class OptimizationEvent(Event):
    """A step of an optimization."""

    optimization_id: str


class JobRecorded(OptimizationEvent):
    """The spec and data of a run: what a resumed run must match, and what it is rebuilt from."""

    kind: Literal["job_recorded"] = "job_recorded"
    spec: dict[str, Any]
    data: str
    """sha256 of the payload with the examples and their splits."""

    def payloads(self) -> list[str]:
        return [self.data]


class RunStarted(OptimizationEvent):
    """The run began."""

    kind: Literal["run_started"] = "run_started"
    run_id: str | None
    target_type: str
    target_id: str
    seed: int
    split_sizes: dict[str, int]


class RunResumed(OptimizationEvent):
    """Another process continues the run, after `trials` finished trials."""

    kind: Literal["run_resumed"] = "run_resumed"
    trials: int = 0
    """Trials finished by earlier processes."""
    examples: int = 0
    """Examples measured by earlier processes."""


class StageStarted(OptimizationEvent):
    """A stage of the run began."""

    kind: Literal["stage_started"] = "stage_started"
    stage: str


class ExampleMeasured(OptimizationEvent):
    """One measured example of an evaluation."""

    kind: Literal["example_measured"] = "example_measured"
    evaluation: str
    """`baseline`, `winner`, `search`, or `trial-N` for a trial that re-evaluates known results."""
    candidate: str
    """Digest of the program's state."""
    record: dict[str, Any]
    account: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The run's spend by stage at that moment."""


class StepFinished(OptimizationEvent):
    """The outcome of a step that a resumed run must not pay for again, such as a proposed instruction."""

    kind: Literal["step_finished"] = "step_finished"
    step: str
    value: Any


class SpendCounted(OptimizationEvent):
    """Spend so far by stage, and the duration of the run and of its search in seconds."""

    kind: Literal["spend_counted"] = "spend_counted"
    by_stage: dict[str, dict[str, Any]]
    seconds: float
    search_seconds: float
    settled: bool = False
    """Whether no call was in flight, so that nothing else is reserved."""


class SpendReserved(OptimizationEvent):
    """What the run may have spent at most from here on, written before the calls are made.

    If the process dies, it counts as spent."""

    kind: Literal["spend_reserved"] = "spend_reserved"
    calls: float
    tokens: float
    usd: float


class BaselineMeasured(OptimizationEvent):
    """The original program was measured on the test split."""

    kind: Literal["baseline_measured"] = "baseline_measured"
    metrics: dict[str, float | None]


class CandidateProposed(OptimizationEvent):
    """The search space of one optimizer: how many instructions and demo sets each predictor has."""

    kind: Literal["candidate_proposed"] = "candidate_proposed"
    instructions: dict[str, list[str]]
    demo_sets: dict[str, int]


class TrialFinished(OptimizationEvent):
    """A candidate was scored."""

    kind: Literal["trial_finished"] = "trial_finished"
    trial: int
    score: float
    """Mean score, 0–1, over the examples of this trial."""
    best_score: float
    full: bool
    """True if the whole validation split was scored, False for a minibatch."""
    examples: int
    candidate: str = ""
    """Digest of the program's state."""
    stopped: bool = False
    """Whether racing stopped the candidate."""


class WinnerMeasured(OptimizationEvent):
    """The winner was measured on the test split."""

    kind: Literal["winner_measured"] = "winner_measured"
    metrics: dict[str, float | None]
    improvement: float
    p_value: float
    verdict: str | None = None


class ResultRecorded(OptimizationEvent):
    """The finished run's `OptimizationResult`, without the program."""

    kind: Literal["result_recorded"] = "result_recorded"
    result: dict[str, Any]


class WarningRaised(OptimizationEvent):
    """Something the user should know."""

    kind: Literal["warning"] = "warning"
    message: str


class RunFinished(OptimizationEvent):
    """The run ended, one way or another."""

    kind: Literal["run_finished"] = "run_finished"
    status: Literal["completed", "failed", "cancelled", "budget_exhausted"]
    error: str | None = None
    resumable: bool = True
    """Whether resuming it could end otherwise."""
    summary: dict[str, Any] = Field(default_factory=dict)

    def finishes(self) -> bool:
        return True
