"""Is everything there that a run needs? Each check says ok, or what to do."""

from agentcore.doctor._checks import CHECKS, Places, diagnose
from agentcore.doctor._finding import Finding

__all__ = ["CHECKS", "Finding", "Places", "diagnose"]
