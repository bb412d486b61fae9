"""AgentCore: optimize DSPy programs, prove the gain, track it in your own MLflow.

Importing this package imports neither DSPy nor MLflow; the names below load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentcore._process import keep_litellm_offline
from agentcore._version import __version__

keep_litellm_offline()

if TYPE_CHECKING:
    from agentcore.data import Dataset, load_dataset
    from agentcore.dspy_optimization import (
        Estimate,
        MLflowTracker,
        OptimizationConstraints,
        OptimizationObjective,
        OptimizationPipeline,
        OptimizationRequest,
        OptimizationResult,
        OptimizationTarget,
        PerformanceMetrics,
        Progress,
    )
    from agentcore.errors import AgentCoreError
    from agentcore.lm import offline_lm
    from agentcore.registry import GatePolicy, Registry
    from agentcore.settings import MLflowConfig
    from agentcore.tracking import Experiments, RunTracker

_MODULES = {
    "AgentCoreError": "agentcore.errors",
    "Dataset": "agentcore.data",
    "Estimate": "agentcore.dspy_optimization",
    "Experiments": "agentcore.tracking",
    "GatePolicy": "agentcore.registry",
    "MLflowConfig": "agentcore.settings",
    "MLflowTracker": "agentcore.dspy_optimization",
    "OptimizationConstraints": "agentcore.dspy_optimization",
    "OptimizationObjective": "agentcore.dspy_optimization",
    "OptimizationPipeline": "agentcore.dspy_optimization",
    "OptimizationRequest": "agentcore.dspy_optimization",
    "OptimizationResult": "agentcore.dspy_optimization",
    "OptimizationTarget": "agentcore.dspy_optimization",
    "PerformanceMetrics": "agentcore.dspy_optimization",
    "Progress": "agentcore.dspy_optimization",
    "Registry": "agentcore.registry",
    "RunTracker": "agentcore.tracking",
    "load_dataset": "agentcore.data",
    "offline_lm": "agentcore.lm",
}

__all__ = [
    "AgentCoreError",
    "Dataset",
    "Estimate",
    "Experiments",
    "GatePolicy",
    "MLflowConfig",
    "MLflowTracker",
    "OptimizationConstraints",
    "OptimizationObjective",
    "OptimizationPipeline",
    "OptimizationRequest",
    "OptimizationResult",
    "OptimizationTarget",
    "PerformanceMetrics",
    "Progress",
    "Registry",
    "RunTracker",
    "__version__",
    "load",
    "load_dataset",
    "offline_lm",
]


class _Load:
    """`await agentcore.load("agent@champion")`, or blocking: `agentcore.load.sync("agent@champion")`. See
    `agentcore.registry.load`."""

    async def __call__(self, which: str, **options: Any) -> Any:
        from agentcore.registry import load as loading

        return await loading(which, **options)

    def sync(self, which: str, **options: Any) -> Any:
        from agentcore.registry import load_blocking

        return load_blocking(which, **options)


load = _Load()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
