"""Journal events of operations and of served versions. None of them is delivered to MLflow."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentcore.journal import Event

OPERATION = "operation"
"""Kind of an operation's stream."""
TRAFFIC = "traffic"
"""Kind of the stream of two versions that share an agent's requests."""

BUCKETS = 100
"""Of keys; see `_arms.py`."""
Count = Annotated[int, Field(ge=0, le=10**12)]
LogSum = Annotated[float, Field(ge=-1e14, le=1e14, allow_inf_nan=False)]

Kind = Literal["optimization", "evaluation", "drift", "promotion", "rollback"]
Outcome = Literal["completed", "failed", "cancelled"]


class OperationRequested(Event):
    """A request was accepted. It names an agent of the allow-list, never a program or a path."""

    kind: Literal["operation_requested"] = "operation_requested"
    operation: Kind
    agent: str
    request: dict[str, Any]
    by: str


class OperationStarted(Event):
    """A replica began to work on it, or continued it."""

    kind: Literal["operation_started"] = "operation_started"
    replica: str


class OperationReleased(Event):
    """A replica left it to another one: it was shut down, or the journal couldn't be reached."""

    kind: Literal["operation_released"] = "operation_released"
    reason: str


class CancelRequested(Event):
    """Somebody asked to stop it."""

    kind: Literal["operation_cancel_requested"] = "operation_cancel_requested"
    by: str


class OperationEnded(Event):
    """It ended."""

    kind: Literal["operation_ended"] = "operation_ended"
    status: Outcome
    run_id: str | None = None
    result: dict[str, Any] | None = None
    error: str | None = None

    def finishes(self) -> bool:
        return True


class ArmCount(BaseModel):
    """What one version has answered, by bucket of keys; see `_arms.py`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: list[Count] = Field(min_length=BUCKETS, max_length=BUCKETS)
    """Requests of each bucket."""
    errors: list[Count] = Field(min_length=BUCKETS, max_length=BUCKETS)
    log_ms: list[LogSum] = Field(min_length=BUCKETS, max_length=BUCKETS)
    """Sum of the natural logarithms of the durations in milliseconds of those that succeeded."""

    @model_validator(mode="after")
    def _possible(self) -> "ArmCount":
        if any(failed > asked for failed, asked in zip(self.errors, self.requests, strict=True)):
            raise ValueError("more errors than requests")
        return self


class ArmsCounted(Event):
    """Totals of one process since it began to serve these two versions."""

    kind: Literal["arms_counted"] = "arms_counted"
    process: str
    versions: dict[str, ArmCount] = Field(default_factory=dict)


class FeedbackGiven(Event):
    """How good an answer was."""

    kind: Literal["feedback_given"] = "feedback_given"
    request_id: str
    version: str
    bucket: int = Field(ge=0, lt=BUCKETS)
    score: float = Field(ge=0, le=1)


class ArmsClosed(Event):
    """Other versions share the requests now."""

    kind: Literal["arms_closed"] = "arms_closed"

    def finishes(self) -> bool:
        return True
