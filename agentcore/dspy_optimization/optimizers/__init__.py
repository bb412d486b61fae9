"""Optimizers behind one Protocol, found by entry point `agentcore.optimizers`."""

from agentcore.dspy_optimization.optimizers._base import Lead, Optimizer, Trial, Work
from agentcore.dspy_optimization.optimizers._find import available_optimizers, make_optimizer
from agentcore.dspy_optimization.optimizers._several import Several
from agentcore.dspy_optimization.optimizers._task import SEARCH, Host, SearchTask

__all__ = [
    "SEARCH",
    "Host",
    "Lead",
    "Optimizer",
    "SearchTask",
    "Several",
    "Trial",
    "Work",
    "available_optimizers",
    "make_optimizer",
]
