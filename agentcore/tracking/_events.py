"""Journal events to be sent to a tracking server, independent of which server that is."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from agentcore.journal import Event


class TrackingEvent(Event):
    """An event to deliver. Delivery is idempotent."""

    deliverable: ClassVar[bool] = True


class RunCreated(TrackingEvent):
    """The run to create in MLflow; the first entry of its stream."""

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
    """Parameters of a run."""

    kind: Literal["params_logged"] = "params_logged"
    params: dict[str, str]


class TagsSet(TrackingEvent):
    """Tags of a run."""

    kind: Literal["tags_set"] = "tags_set"
    tags: dict[str, str]


class DatasetUsed(BaseModel):
    """A dataset that a run used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    rows: int
    context: str


class InputsLogged(TrackingEvent):
    """Datasets of a run."""

    kind: Literal["inputs_logged"] = "inputs_logged"
    datasets: list[DatasetUsed]


class ArtifactLogged(TrackingEvent):
    """A file to upload, stored as a payload."""

    kind: Literal["artifact_logged"] = "artifact_logged"
    path: str
    """Within the run's artifacts: `models/optimized_model.json`."""
    sha256: str
    size: int
    """Bytes."""

    def payloads(self) -> list[str]:
        return [self.sha256]


class ModelLogged(TrackingEvent):
    """A program's files, to become a LoggedModel that MLflow can serve."""

    kind: Literal["model_logged"] = "model_logged"
    name: str
    files: dict[str, str]
    """sha256 by file name."""
    requirements: list[str]
    default_lm: str | None = None

    def payloads(self) -> list[str]:
        return list(self.files.values())


class TraceRecord(BaseModel):
    """One request of an agent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """32 hexadecimal digits."""
    request_id: str
    name: str
    start_ms: int
    duration_ms: float
    request: str
    """JSON."""
    response: str
    """JSON."""
    failed: bool = False
    tags: dict[str, str] = {}


class TracesLogged(TrackingEvent):
    """Requests that become traces of the run's experiment, linked to the run."""

    kind: Literal["traces_logged"] = "traces_logged"
    traces: list[TraceRecord]


class VersionRegistered(TrackingEvent):
    """A program of the run, logged before, to become a version of a registered model, without an alias."""

    kind: Literal["version_registered"] = "version_registered"
    model: str
    artifact_name: str


class FilesRendered(TrackingEvent):
    """Artifacts that are rendered on delivery, from data in the event. Base class for events of higher-level
    packages."""

    folder: ClassVar[str] = ""
    """Where they go within the run's artifacts."""

    def render(self, directory: Path) -> None:
        """Write the files into an empty directory."""
        raise NotImplementedError


class RunEnded(TrackingEvent):
    """The run ended. `interim`: it may be resumed."""

    kind: Literal["run_ended"] = "run_ended"
    status: Literal["FINISHED", "FAILED", "KILLED"]
    interim: bool = False
    """The run's process died, and the run may be resumed."""

    def finishes(self) -> bool | None:
        return None if self.interim else True


class RunTaken(TrackingEvent):
    """A process goes on with the run. Delivered only if MLflow has the token of the process before it:
    another copy of the journal may have been resumed too."""

    kind: Literal["run_taken"] = "run_taken"
    token: str
    previous: str | None = None


class RunReopened(TrackingEvent):
    """An ended run is resumed."""

    kind: Literal["run_reopened"] = "run_reopened"

    def finishes(self) -> bool:
        return False
