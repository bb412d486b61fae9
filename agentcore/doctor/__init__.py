"""Checks everything that a run needs. Each check reports ok, or how to fix the problem."""

from agentcore.doctor._checks import CHECKS, Places, diagnose
from agentcore.doctor._finding import Finding

__all__ = ["CHECKS", "Finding", "Places", "diagnose"]
