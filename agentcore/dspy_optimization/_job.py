"""`Job`: one optimization with all its inputs resolved and validated."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import dspy

from agentcore.data import Dataset, Splits
from agentcore.dspy_optimization._frozen import Frozen
from agentcore.dspy_optimization._history import state_digest
from agentcore.dspy_optimization.models import OptimizationRequest, PerformanceMetrics
from agentcore.dspy_optimization.optimizers import Optimizer
from agentcore.evaluation import ScoredMetric
from agentcore.lm import GENERATION_SETTINGS, endpoint_of, lm_secrets, program_secrets, remembering


@dataclass(frozen=True)
class Source:
    """How the user specified each part; None for an object that can't be imported by name."""

    program: str | None
    from_data: bool
    metric: str | None
    start_from: str | None = None
    """The run whose optimized program this one starts from."""


@dataclass(frozen=True)
class Job:
    """One optimization, resolved and validated."""

    optimization_id: str
    request: OptimizationRequest
    program: dspy.Module
    program_path: str | None
    data: Dataset
    splits: Splits
    metric: ScoredMetric
    lm: dspy.BaseLM
    prompt_lm: dspy.BaseLM
    optimizer: Optimizer
    frozen: Frozen
    given_baseline: PerformanceMetrics | None
    seed: int
    repeats: int
    warnings: tuple[str, ...]
    source: Source
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """`program_attributes` of the program before it ran."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the run, in addition to the request's."""
    commit: str | None = None
    command: str | None = None

    @property
    def importable(self) -> bool:
        """Whether the command line can rebuild the job."""
        source = self.source
        program = source.program is not None or source.from_data or source.start_from is not None
        return program and (source.metric is not None or self.metric.name == "exact_match")

    @property
    def interleaved(self) -> bool:
        """Whether baseline and winner are measured at the same time, because an objective needs it."""
        return any(item.metric in ("avg_cost", "avg_latency_ms") for item in self.request.objectives)

    @property
    def secrets(self) -> list[str]:
        return [*lm_secrets(self.lm, self.prompt_lm), *program_secrets(self.program)]

    @contextmanager
    def context(self) -> Iterator[None]:
        """DSPy's settings for this job's LM calls."""
        # DSPy's own optimizers call programs synchronously; ReAct's async tools then need this setting.
        adapter = remembering(dspy.settings.adapter)
        with dspy.context(lm=self.lm, adapter=adapter, allow_tool_async_sync_conversion=True):
            yield

    def params(self) -> dict[str, Any]:
        """The run's parameters in MLflow."""
        request, optimizer = self.request, self.optimizer
        return {
            "algorithm": optimizer.name,
            "target_id": request.target.id,
            "target_type": request.target.type,
            "seed": self.seed,
            "repeats": self.repeats,
            "cluster": self.data.cluster_field,
            "start_from": self.source.start_from,
            **_lm_params("lm", self.lm),
            **_lm_params("prompt_lm", self.prompt_lm),
            "metric": self.source.metric or self.metric.name,
            "program": self.program_path or self.source.program or program_text(self.program),
            "git_commit": self.commit,
            "command": self.command,
            **{
                key if "." in key else f"{optimizer.name}.{key}": value
                for key, value in optimizer.settings().items()
            },
            **{f"objective.{item.metric}": item.weight for item in request.objectives},
            **{f"constraint.{key}": value for key, value in request.constraints.model_dump().items()},
            "dataset": self.data.name,
            "dataset_digest": self.data.digest,
            **{f"{name}_digest": part.digest for name, part in self.splits.parts.items()},
            **{f"{name}_size": len(part) for name, part in self.splits.parts.items()},
        }

    def spec(self) -> dict[str, Any]:
        """What a resumed run must match, and what the command line rebuilds it from."""
        return {
            "request": self.request.model_dump(mode="json"),
            "program": {
                "class": f"{type(self.program).__module__}:{type(self.program).__qualname__}",
                "state": state_digest(self.program),
            },
            "metric": self.metric.name,
            "lm": _lm_spec(self.lm),
            "prompt_lm": _lm_spec(self.prompt_lm),
            "optimizer": {"name": self.optimizer.name, "settings": self.optimizer.settings()},
            "dataset": self.data.digest,
            "splits": {name: part.digest for name, part in self.splits.parts.items()},
            "seed": self.seed,
            "repeats": self.repeats,
            "cluster": self.data.cluster_field,
            "baseline": self.given_baseline.model_dump() if self.given_baseline else None,
            "source": asdict(self.source),
        }


def program_text(program: dspy.Module) -> str:
    """A program that has no import path: its class, and its fields if that is one of DSPy's."""
    kind = type(program)
    if not kind.__module__.startswith("dspy."):
        return f"{kind.__module__}:{kind.__qualname__}"
    fields = program.predictors()[-1].signature
    return f"{kind.__name__}({', '.join(fields.input_fields)} -> {', '.join(fields.output_fields)})"


def _lm_params(name: str, lm: dspy.BaseLM) -> dict[str, Any]:
    spec = _lm_spec(lm)
    return {
        name: spec["model"],
        f"{name}.endpoint": spec["endpoint"] or "the provider's",
        **{f"{name}.{key}": value for key, value in spec["settings"].items()},
    }


def _lm_spec(lm: dspy.BaseLM) -> dict[str, Any]:
    """A model, its generation settings, and where its calls go unless that is the provider's own address;
    no keys."""
    plain = {
        key: value
        for key, value in (getattr(lm, "kwargs", None) or {}).items()
        if isinstance(value, (int, float, str, bool)) and key in GENERATION_SETTINGS
    }
    return {"model": lm.model, "settings": plain, "endpoint": endpoint_of(lm)}
