"""Optimizers behind one Protocol, found by entry point `agentcore.optimizers`."""

from agentcore.dspy_optimization.optimizers._base import Optimizer, SearchTask, Trial
from agentcore.dspy_optimization.optimizers._find import available_optimizers, make_optimizer

__all__ = ["Optimizer", "SearchTask", "Trial", "available_optimizers", "make_optimizer"]
