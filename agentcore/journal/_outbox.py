"""What a tracking server is to be told, as events; no event here knows which server that is."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from agentcore.journal._events import Event


class TrackingEvent(Event):
    """Something to deliver. Repeating a delivery changes nothing."""


class RunCreated(TrackingEvent):
    kind: Literal["run_created"] = "run_created"
    name: str
    tags: dict[str, str]
    experiment: str
    artifact_location: str | None = None


class MetricsLogged(TrackingEvent):
    """All at `timestamp_ms`."""

    kind: Literal["metrics_logged"] = "metrics_logged"
    metrics: dict[str, float]
    step: int = 0


class ParamsLogged(TrackingEvent):
    kind: Literal["params_logged"] = "params_logged"
    params: dict[str, str]


class TagsSet(TrackingEvent):
    kind: Literal["tags_set"] = "tags_set"
    tags: dict[str, str]


class DatasetUsed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    rows: int
    context: str


class InputsLogged(TrackingEvent):
    kind: Literal["inputs_logged"] = "inputs_logged"
    datasets: list[DatasetUsed]


class ArtifactLogged(TrackingEvent):
    kind: Literal["artifact_logged"] = "artifact_logged"
    path: str
    """Within the run's artifacts: `models/optimized_model.json`."""
    sha256: str
    size: int
    """Bytes."""

    def payloads(self) -> list[str]:
        return [self.sha256]


class ModelLogged(TrackingEvent):
    """A program's files, to be registered as a model that the server can serve."""

    kind: Literal["model_logged"] = "model_logged"
    name: str
    files: dict[str, str]
    """sha256 by file name."""
    requirements: list[str]
    default_lm: str | None = None

    def payloads(self) -> list[str]:
        return list(self.files.values())


class TrialPoint(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: int
    score: float
    best: float
    full: bool


class PlotsLogged(TrackingEvent):
    """The figures of the plots, which are drawn when they are delivered."""

    kind: Literal["plots_logged"] = "plots_logged"
    trials: list[TrialPoint]
    baseline: float
    optimized: float
    interval: tuple[float, float]
    p_value: float
    examples: int


class RunEnded(TrackingEvent):
    kind: Literal["run_ended"] = "run_ended"
    status: Literal["FINISHED", "FAILED", "KILLED"]
    interim: bool = False
    """The run's process died, and the run may go on."""


class RunReopened(TrackingEvent):
    """A run that had ended goes on."""

    kind: Literal["run_reopened"] = "run_reopened"
