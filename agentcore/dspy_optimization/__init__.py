"""Optimize a DSPy program and prove the gain."""

from agentcore.dspy_optimization._plan import Estimate
from agentcore.dspy_optimization._program import resolve_program
from agentcore.dspy_optimization.models import (
    OptimizationConstraints,
    OptimizationObjective,
    OptimizationRequest,
    OptimizationResult,
    OptimizationTarget,
    PerformanceMetrics,
)
from agentcore.dspy_optimization.pipeline import OptimizationPipeline

__all__ = [
    "Estimate",
    "OptimizationConstraints",
    "OptimizationObjective",
    "OptimizationPipeline",
    "OptimizationRequest",
    "OptimizationResult",
    "OptimizationTarget",
    "PerformanceMetrics",
    "resolve_program",
]
