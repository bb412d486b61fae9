"""AgentCore: optimize DSPy programs, prove the gain, track it in your own MLflow.

Importing this package imports neither DSPy nor MLflow; the names below load on first use.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentcore._version import __version__

# litellm asks the network for its price map when it is imported (seconds without a network);
# this has to stand before anything imports it.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

if TYPE_CHECKING:
    from agentcore.data import Dataset
    from agentcore.dspy_optimization import OptimizationPipeline, OptimizationRequest, OptimizationResult
    from agentcore.errors import AgentCoreError
    from agentcore.settings import MLflowConfig
    from agentcore.tracking import MLflowTracker

_HOMES = {
    "AgentCoreError": "agentcore.errors",
    "Dataset": "agentcore.data",
    "MLflowConfig": "agentcore.settings",
    "MLflowTracker": "agentcore.tracking",
    "OptimizationPipeline": "agentcore.dspy_optimization",
    "OptimizationRequest": "agentcore.dspy_optimization",
    "OptimizationResult": "agentcore.dspy_optimization",
}

__all__ = [
    "AgentCoreError",
    "Dataset",
    "MLflowConfig",
    "MLflowTracker",
    "OptimizationPipeline",
    "OptimizationRequest",
    "OptimizationResult",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'agentcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
