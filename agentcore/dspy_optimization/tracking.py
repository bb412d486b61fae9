"""Tracking, where the pipeline's users look for it."""

from agentcore.tracking import MLflowConfig, MLflowTracker

__all__ = ["MLflowConfig", "MLflowTracker"]
