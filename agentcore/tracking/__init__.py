"""Runs, metrics and models in MLflow, without its fluent API and without pickle."""

from agentcore.journal import TrialPoint
from agentcore.settings import MLflowConfig
from agentcore.tracking._archive import Archive
from agentcore.tracking._client import connection_to, set_client_environment
from agentcore.tracking._delivery import (
    Delivery,
    delivery_for,
    destination_of,
    limit_exit,
    stop_deliveries,
)
from agentcore.tracking._entries import Draft, Entries
from agentcore.tracking._interrupted import interrupted_runs, mark_interrupted
from agentcore.tracking._program_files import load_program, program_state, save_program
from agentcore.tracking._runs import TrackedRun
from agentcore.tracking._tracker import MLflowTracker

__all__ = [
    "Archive",
    "Delivery",
    "Draft",
    "Entries",
    "MLflowConfig",
    "MLflowTracker",
    "TrackedRun",
    "TrialPoint",
    "connection_to",
    "delivery_for",
    "destination_of",
    "interrupted_runs",
    "limit_exit",
    "load_program",
    "mark_interrupted",
    "program_state",
    "save_program",
    "set_client_environment",
    "stop_deliveries",
]
