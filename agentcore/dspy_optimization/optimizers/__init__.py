"""Optimizers behind one protocol, discovered through the entry points `agentcore.optimizers`."""

from agentcore.dspy_optimization.optimizers._base import (
    BaseOptimizer,
    Optimizer,
    OptimizerSettings,
    WorkEstimate,
)
from agentcore.dspy_optimization.optimizers._make import Several, available_optimizers, make_optimizer
from agentcore.dspy_optimization.optimizers._task import Lead, SearchTask, Trial

__all__ = [
    "BaseOptimizer",
    "Lead",
    "Optimizer",
    "OptimizerSettings",
    "SearchTask",
    "Several",
    "Trial",
    "WorkEstimate",
    "available_optimizers",
    "make_optimizer",
]
