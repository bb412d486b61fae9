"""Runs, metrics and models in MLflow, without its fluent API and without pickle."""

from agentcore.settings import MLflowConfig
from agentcore.tracking._plots import TrialPoint
from agentcore.tracking._program_files import load_program, program_state, save_program
from agentcore.tracking._runs import TrackedRun
from agentcore.tracking._tracker import MLflowTracker

__all__ = [
    "MLflowConfig",
    "MLflowTracker",
    "TrackedRun",
    "TrialPoint",
    "load_program",
    "program_state",
    "save_program",
]
