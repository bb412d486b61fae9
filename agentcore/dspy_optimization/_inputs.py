"""What a caller passes in: the options of a pipeline, and the inputs of one run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentcore.dspy_optimization._log import ProgressSink
from agentcore.dspy_optimization.models import OptimizationRequest, PerformanceMetrics
from agentcore.evaluation import Executor, Local, Metric
from agentcore.journal import EventSink
from agentcore.lm import Prices

if TYPE_CHECKING:
    import dspy


@dataclass(frozen=True)
class RunOptions:
    """Options of a pipeline, documented in `OptimizationPipeline`."""

    program: "dspy.Module | type[dspy.Module] | str | None" = None
    metric: Metric | str | None = None
    lm: "dspy.BaseLM | str | None" = None
    prompt_lm: "dspy.BaseLM | str | None" = None
    program_path: str | None = None
    seed: int = 0
    split_seed: int = 0
    cluster: str | None = None
    repeats: int = 1
    start_from: str | None = None
    sealed: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    max_concurrency: int = 16
    executor: Executor = field(default_factory=Local)
    on_event: EventSink | None = None
    on_progress: ProgressSink | None = None
    progress: bool = False
    prices: Prices = field(default_factory=dict)


@dataclass(frozen=True)
class RunInputs:
    """Inputs of one run, documented in `OptimizationPipeline.run_optimization`."""

    request: OptimizationRequest | Mapping[str, Any]
    training_data: Any = None
    validation_data: Any = None
    test_data: Any = None
    baseline_metrics: PerformanceMetrics | Mapping[str, float] | None = None
