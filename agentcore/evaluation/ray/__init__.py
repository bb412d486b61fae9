"""Evaluation on a Ray cluster. Needs the extra `agentcore[ray]`."""

from importlib.util import find_spec

from agentcore.errors import ConfigurationError

if find_spec("ray") is None:
    raise ConfigurationError("executor 'ray' needs Ray: pip install 'agentcore[ray]'")

from agentcore.evaluation.ray._executor import RayExecutor

__all__ = ["RayExecutor"]
