"""Bodies of requests and replies. Requests have no text that could name a program, a path or an address."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from agentcore.api._events import Kind

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
DatasetName = Annotated[
    str,
    Field(
        max_length=257, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}(/[A-Za-z0-9][A-Za-z0-9_.\-]{0,127})?$"
    ),
]
FieldName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
Figure = Literal["quality_score", "success_rate", "avg_cost", "avg_latency_ms"]
Status = Literal["queued", "running", "cancelling", "completed", "failed", "cancelled"]
Setting = bool | Annotated[int, Field(ge=0, le=1_000_000)] | Annotated[float, Field(ge=0, le=1_000_000)]

LARGEST = 1_000_000_000


def _as_text(value: Any) -> Any:
    """A version's number as its text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_MOST_PARTS = 1000


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _not_too_many(cls, value: Any) -> Any:
        """Refuse at once what would take seconds to refuse part by part."""
        parts = [value, *value.values()] if isinstance(value, dict) and len(value) <= _MOST_PARTS else [value]
        if any(isinstance(part, (dict, list)) and len(part) > _MOST_PARTS for part in parts):
            raise ValueError(f"more than {_MOST_PARTS} fields or items")
        return value


class EvaluateRequest(_Request):
    """Evaluate an agent on a data set."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"dataset_name": "loan_approval_test_set", "target_field": "expected_outcome"}]
        }
    )

    dataset_name: DatasetName
    """`name`, or `name/version`."""
    target_field: FieldName | None = None
    """The field of the expected answer; default: as `agents.toml` says, else the only one that is named like
    a label."""
    prediction_field: FieldName | None = None
    """The field of the answer; default: the target's name, also without `expected_`."""
    repeats: int = Field(default=1, ge=1, le=20)


class DriftRequest(_Request):
    """Compare an agent on current data with a baseline."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"baseline_dataset": "baseline_v1", "current_dataset": "current_month"}]
        }
    )

    baseline_dataset: DatasetName
    current_dataset: DatasetName
    threshold: float = Field(default=0.05, ge=0, lt=1)
    """How much worse a figure may get."""
    target_field: FieldName | None = None
    prediction_field: FieldName | None = None


class OptimizeRequest(_Request):
    """Optimize an agent's program."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "agent": "loan_approval",
                    "dataset_name": "loan_approval_train",
                    "algorithms": ["miprov2"],
                    "max_lm_calls": 5000,
                }
            ]
        }
    )

    agent: Name
    dataset_name: DatasetName
    algorithms: list[Name] = Field(default_factory=lambda: ["miprov2"], min_length=1, max_length=6)
    auto: Literal["light", "medium", "heavy", "none"] | None = None
    """How much to search; `none` uses `num_candidates` and `num_trials` of the settings."""
    settings: dict[Name, Setting] = Field(default_factory=dict, max_length=20)
    """The optimizer's own settings: numbers and booleans."""
    objectives: list[Figure] = Field(default=["quality_score"], min_length=1, max_length=4)
    seed: int = Field(default=0, ge=0, le=LARGEST)
    sealed: int = Field(default=0, ge=0, le=LARGEST)
    """Minimum number of examples to keep sealed for the gate."""
    max_optimization_time: float | None = Field(default=None, gt=0, le=LARGEST)
    """Seconds of the search. This limit and the next three are at most those of `agents.toml`, which are the
    defaults."""
    max_lm_calls: int | None = Field(default=None, gt=0, le=LARGEST)
    max_tokens: int | None = Field(default=None, gt=0, le=10**12)
    max_cost_usd: float | None = Field(default=None, gt=0, le=LARGEST)


class PromoteRequest(_Request):
    """Move an alias to a run's program if it passes the gate."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"run": "best", "to": "production"}]})

    run: str = Field(max_length=64, pattern=r"^(best|[0-9a-f]{4,32})$")
    """An optimization's id, a prefix of it, or `best`: what `agentcore best` shows."""
    to: Literal["production", "staging"] = "production"
    dry_run: bool = False
    """Only say what the gate's look would cost; measure nothing."""


class RollbackRequest(_Request):
    """Move `champion` back to a version that has been champion."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"to": None}]})

    to: Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^\d{1,9}$")] | None = None
    """Its number; default: the previous one."""


class PredictRequest(_Request):
    """Ask an agent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": {"annual_income": 85000, "credit_score": 750, "loan_amount": 250000},
                    "key": "customer-17",
                }
            ]
        }
    )

    inputs: dict[str, Any] = Field(max_length=200)
    """The program's inputs by name."""
    key: str | None = Field(default=None, min_length=1, max_length=256)
    """Who asks. A key gets the same version until the versions or their shares change."""


class FeedbackRequest(_Request):
    """How good an answer was. The last one for a request counts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"request_id": "4a1f6c0e2b7d4f58a9c3e1d2b4f60718", "version": "3", "score": 1.0}]
        }
    )

    request_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    version: Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^\d{1,9}$")]
    score: float = Field(ge=0, le=1, strict=True)
    """1 for a right answer, 0 for a wrong one, or anything between."""
    key: str | None = Field(default=None, min_length=1, max_length=256)
    """The key of the request, if it had one."""


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True)


class OptimizationProgress(_Reply):
    """How far an optimization is."""

    stage: str
    trials: int
    """Trials scored so far."""
    best_score: float | None
    """The best score on validation examples so far, 0–1."""
    lm_calls: int
    total_tokens: int
    cost_usd: float | None
    seconds: float


class OperationReply(_Reply):
    """Something that takes longer than a request: it is carried out once, by whichever replica is free."""

    id: str
    kind: Kind
    agent: str
    status: Status
    created: str
    """UTC, ISO 8601."""
    changed: str
    by: str
    """The name of the token that asked for it."""
    request: dict[str, Any]
    run_id: str | None = None
    """In MLflow; a local id while MLflow doesn't have the run."""
    progress: OptimizationProgress | None = None
    result: dict[str, Any] | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")


class PredictReply(_Reply):
    """An agent's answer."""

    request_id: str
    outputs: dict[str, Any]
    version: str
    """The number of the version that answered."""
    arm: Literal["champion", "challenger"]
    duration_ms: float


class ChampionReply(_Reply):
    """The version in production."""

    agent: str
    version: str
    semantic_version: str | None = None
    run_id: str
    since: str | None = None
    """UTC, ISO 8601."""
    by: str | None = None
    """Who promoted it."""
    serving: str | None = None
    """The version that this replica serves; it follows within 30 s."""


class Check(_Reply):
    """Whether something that the API depends on can be reached."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    message: str


class ReadyReply(_Reply):
    """Whether everything that the API depends on can be reached."""

    ready: bool
    checks: list[Check]


class Problem(_Reply):
    """An error, after RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
