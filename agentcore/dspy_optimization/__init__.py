"""Optimize a DSPy program and prove the gain. Names load on first use: DSPy takes seconds to import."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentcore.dspy_optimization import _summary as summary
    from agentcore.dspy_optimization._candidate import Candidate, candidate_of, sealed_rows
    from agentcore.dspy_optimization._fit import fitted
    from agentcore.dspy_optimization._interrupted import interrupted_runs, mark_interrupted, resumable_runs
    from agentcore.dspy_optimization._log import Progress
    from agentcore.dspy_optimization._once import run_named
    from agentcore.dspy_optimization._plan import ASSUMPTION, Estimate
    from agentcore.dspy_optimization._prepare import only_outputs
    from agentcore.dspy_optimization._printer import STAGES, Printer, figures, line_of
    from agentcore.dspy_optimization._program import resolve_program
    from agentcore.dspy_optimization._resume import recorded_lm
    from agentcore.dspy_optimization.models import (
        OptimizationConstraints,
        OptimizationObjective,
        OptimizationRequest,
        OptimizationResult,
        OptimizationTarget,
        PerformanceMetrics,
    )
    from agentcore.dspy_optimization.pipeline import OptimizationPipeline, SyncPipeline
    from agentcore.dspy_optimization.tracking import MLflowTracker, SyncMLflowTracker

_MODULES = {
    "ASSUMPTION": "_plan",
    "STAGES": "_printer",
    "Candidate": "_candidate",
    "candidate_of": "_candidate",
    "sealed_rows": "_candidate",
    "Estimate": "_plan",
    "MLflowTracker": "tracking",
    "OptimizationConstraints": "models",
    "OptimizationObjective": "models",
    "OptimizationPipeline": "pipeline",
    "OptimizationRequest": "models",
    "OptimizationResult": "models",
    "OptimizationTarget": "models",
    "PerformanceMetrics": "models",
    "Printer": "_printer",
    "Progress": "_log",
    "SyncMLflowTracker": "tracking",
    "SyncPipeline": "pipeline",
    "figures": "_printer",
    "fitted": "_fit",
    "interrupted_runs": "_interrupted",
    "line_of": "_printer",
    "mark_interrupted": "_interrupted",
    "only_outputs": "_prepare",
    "recorded_lm": "_resume",
    "resolve_program": "_program",
    "resumable_runs": "_interrupted",
    "run_named": "_once",
}

__all__ = [
    "ASSUMPTION",
    "STAGES",
    "Candidate",
    "Estimate",
    "MLflowTracker",
    "OptimizationConstraints",
    "OptimizationObjective",
    "OptimizationPipeline",
    "OptimizationRequest",
    "OptimizationResult",
    "OptimizationTarget",
    "PerformanceMetrics",
    "Printer",
    "Progress",
    "SyncMLflowTracker",
    "SyncPipeline",
    "candidate_of",
    "figures",
    "fitted",
    "interrupted_runs",
    "line_of",
    "mark_interrupted",
    "only_outputs",
    "recorded_lm",
    "resolve_program",
    "resumable_runs",
    "run_named",
    "sealed_rows",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name == "summary":
        return import_module(f"{__name__}._summary")
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
