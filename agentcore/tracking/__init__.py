"""Runs, metrics, artifacts and models in MLflow, without its fluent API and without pickle.

`RunTracker` is generic; `agentcore.dspy_optimization.tracking.MLflowTracker` adds what an optimization logs.
Importing this package imports neither MLflow nor DSPy.
"""

from typing import TYPE_CHECKING

from agentcore._imports import lazy
from agentcore._process import limit_exit
from agentcore.settings import MLflowConfig
from agentcore.tracking._alive import is_alive
from agentcore.tracking._archive import Archive, archive, plan_archive
from agentcore.tracking._best import best_proven, best_run_query, newest_proven
from agentcore.tracking._connection import Rejected, connection_to, prepare_environment, remove_unfinished
from agentcore.tracking._delivery import (
    Delivery,
    delivery_for,
    destination_of,
    finish_deliveries,
    stop_deliveries,
)
from agentcore.tracking._digests import digests_of
from agentcore.tracking._entries import Draft, Entries, RunRequest, user_name
from agentcore.tracking._evaluation_data import EvaluationDatasets, SyncEvaluationDatasets
from agentcore.tracking._events import (
    ArtifactLogged,
    DatasetUsed,
    FilesRendered,
    InputsLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    RunCreated,
    RunEnded,
    RunReopened,
    RunTaken,
    TagsSet,
    TraceRecord,
    TracesLogged,
    TrackingEvent,
    VersionRegistered,
)
from agentcore.tracking._experiments import Experiments, StageRun, SyncExperiments
from agentcore.tracking._gateway import Gateway, model_versions
from agentcore.tracking._layout import STAGES, check_agent, purpose_name
from agentcore.tracking._layout_check import Violation
from agentcore.tracking._requests import ANOTHER_COPY, KEY_TAG, TAKEN_TAG, serving_code
from agentcore.tracking._run_models import model_drafts, model_names, program_digests, scratch
from agentcore.tracking._run_tracker import RunStatus, RunTracker, SyncRunTracker
from agentcore.tracking._signing import new_keys
from agentcore.tracking._writer import RunWriter

if TYPE_CHECKING:
    from agentcore.tracking._demos import dump_demos, load_demos
    from agentcore.tracking._program_files import (
        load_program,
        program_attributes,
        program_state,
        save_program,
    )
    from agentcore.tracking._trust import stored_type

_NEEDS_DSPY = {
    "dump_demos": "_demos",
    "load_demos": "_demos",
    "load_program": "_program_files",
    "program_attributes": "_program_files",
    "program_state": "_program_files",
    "save_program": "_program_files",
    "stored_type": "_trust",
}

__all__ = [
    "ANOTHER_COPY",
    "KEY_TAG",
    "STAGES",
    "TAKEN_TAG",
    "Archive",
    "ArtifactLogged",
    "DatasetUsed",
    "Delivery",
    "Draft",
    "Entries",
    "EvaluationDatasets",
    "Experiments",
    "FilesRendered",
    "Gateway",
    "InputsLogged",
    "MLflowConfig",
    "MetricsLogged",
    "ModelLogged",
    "ParamsLogged",
    "Rejected",
    "RunCreated",
    "RunEnded",
    "RunReopened",
    "RunRequest",
    "RunStatus",
    "RunTaken",
    "RunTracker",
    "RunWriter",
    "StageRun",
    "SyncEvaluationDatasets",
    "SyncExperiments",
    "SyncRunTracker",
    "TagsSet",
    "TraceRecord",
    "TracesLogged",
    "TrackingEvent",
    "VersionRegistered",
    "Violation",
    "archive",
    "best_proven",
    "best_run_query",
    "check_agent",
    "connection_to",
    "delivery_for",
    "destination_of",
    "digests_of",
    "dump_demos",
    "finish_deliveries",
    "is_alive",
    "limit_exit",
    "load_demos",
    "load_program",
    "model_drafts",
    "model_names",
    "model_versions",
    "new_keys",
    "newest_proven",
    "plan_archive",
    "prepare_environment",
    "program_attributes",
    "program_digests",
    "program_state",
    "purpose_name",
    "remove_unfinished",
    "save_program",
    "scratch",
    "serving_code",
    "stop_deliveries",
    "stored_type",
    "user_name",
]

__getattr__ = lazy(__name__, _NEEDS_DSPY)
