"""Everything that can be wrong before the first LM call is found here."""

import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import dspy
from pydantic import ValidationError

from agentcore._imports import importable
from agentcore.data import Dataset, Splits, given_splits, load_dataset
from agentcore.dspy_optimization._frozen import Frozen
from agentcore.dspy_optimization._history import state_digest
from agentcore.dspy_optimization._program import (
    check_fit,
    checked_program,
    input_fields_for,
    program_from_data,
    resolve_program,
    unseen_labels,
)
from agentcore.dspy_optimization.models import OptimizationRequest, PerformanceMetrics
from agentcore.dspy_optimization.optimizers import Optimizer, Several, make_optimizer
from agentcore.errors import ConfigurationError, DataError
from agentcore.evaluation import ExactMatch, Metric, ScoredMetric, resolve_metric
from agentcore.lm import OFFLINE_NOTE, is_offline, lm_secrets, remembering, resolve_lm
from agentcore.settings import Settings, explain

_CONNECTION = re.compile(r"key|token|secret|header|api_|base_url|password", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """How the user named what was resolved; None where it was an object that has no name."""

    program: str | None
    from_data: bool
    metric: str | None


@dataclass(frozen=True)
class Job:
    """One optimization, with all that it needs resolved and checked."""

    optimization_id: str
    request: OptimizationRequest
    program: Any
    program_path: str | None
    data: Dataset
    splits: Splits
    metric: ScoredMetric
    lm: Any
    prompt_lm: Any
    optimizer: Optimizer
    frozen: Frozen
    given_baseline: PerformanceMetrics | None
    seed: int
    warnings: tuple[str, ...]
    source: Source

    @property
    def secrets(self) -> list[str]:
        return lm_secrets(self.lm, self.prompt_lm, *(item.lm for item in self.program.predictors()))

    @contextmanager
    def context(self) -> Iterator[None]:
        """DSPy's settings for this job's LM calls."""
        # ReAct's asynchronous tools run while DSPy's own optimizers call the program synchronously.
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
            "lm": self.lm.model,
            "prompt_lm": self.prompt_lm.model,
            "metric": self.metric.name,
            "program": self.program_path
            or f"{type(self.program).__module__}:{type(self.program).__qualname__}",
            **{
                key if "." in key else f"{optimizer.name}.{key}": value
                for key, value in optimizer.settings().items()
            },
            **{f"objective.{item.metric}": item.weight for item in request.objectives},
            **{f"constraint.{key}": value for key, value in request.constraints.model_dump().items()},
            "dataset": self.data.name,
            "dataset_digest": self.data.digest,
            **{f"{name}_digest": part.digest for name, part in self.splits._asdict().items()},
            **{f"{name}_size": len(part) for name, part in self.splits._asdict().items()},
        }

    def spec(self) -> dict[str, Any]:
        """What a resumed run must have in common with this one, and what the command line makes it of."""
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
            "splits": {name: part.digest for name, part in self.splits._asdict().items()},
            "seed": self.seed,
            "baseline": self.given_baseline.model_dump() if self.given_baseline else None,
            "source": asdict(self.source),
        }


def _lm_spec(lm: Any) -> dict[str, Any]:
    """A model and its sampling settings: neither key nor address."""
    plain = {
        key: value
        for key, value in (getattr(lm, "kwargs", None) or {}).items()
        if isinstance(value, (int, float, str, bool)) and not _CONNECTION.search(key)
    }
    return {"model": lm.model, "settings": plain}


def prepare(
    request: OptimizationRequest | Mapping[str, Any],
    *,
    program: Any,
    program_path: str | None,
    metric: Metric | str | None,
    lm: Any,
    prompt_lm: Any,
    seed: int,
    training_data: Any,
    validation_data: Any,
    test_data: Any,
    baseline_metrics: PerformanceMetrics | Mapping[str, float] | None,
    optimization_id: str | None = None,
    splits: Splits | None = None,
) -> Job:
    """Resolve and check a request.

    Raises:
        ConfigurationError: no LM, an unknown optimizer, program or metric, wrong settings.
        DataError: examples that can't be used, or don't fit the program.
    """
    try:
        request = OptimizationRequest.model_validate(request)
        given = None if baseline_metrics is None else PerformanceMetrics.model_validate(baseline_metrics)
    except ValidationError as error:
        raise ConfigurationError(f"request or baseline_metrics: {explain(error)}") from None
    constraints = request.constraints
    source = Source(
        program=program if isinstance(program, str) else None,
        from_data=program is None,
        metric=metric if isinstance(metric, str) or metric is None else importable(metric),
    )
    if isinstance(program, str):
        program, program_path = resolve_program(program)
    if program is not None:
        checked_program(program)
    optimizer = _optimizer(request)
    resolved_metric = resolve_metric(metric, success_threshold=constraints.success_threshold)
    if splits is None:
        data, splits = _splits(program, training_data, validation_data, test_data, seed)
    else:
        data = training_data
    if program is None:
        program = program_from_data(data)
    check_fit(program, data)
    frozen = Frozen.of(request.freeze, program)
    task_lm = resolve_lm(lm)
    proposer = prompt_lm or Settings().prompt_lm
    prompt_lm = resolve_lm(proposer) if proposer else task_lm
    warnings = unseen_labels(program, splits)
    resolved_metric, ignored = _only_outputs(resolved_metric, program, data)
    if ignored:
        warnings.append(
            f"exact_match does not compare {', '.join(ignored)}: neither input nor output of the program"
        )
    if is_offline(task_lm) or is_offline(prompt_lm):
        warnings.append(OFFLINE_NOTE)
    return Job(
        optimization_id=optimization_id or uuid.uuid4().hex,
        request=request,
        program=program,
        program_path=program_path,
        data=data,
        splits=splits,
        metric=resolved_metric,
        lm=task_lm,
        prompt_lm=prompt_lm,
        optimizer=optimizer,
        frozen=frozen,
        given_baseline=given,
        seed=seed,
        warnings=tuple(warnings),
        source=Source(source.program or program_path, source.from_data, source.metric),
    )


def _only_outputs(metric: ScoredMetric, program: Any, data: Dataset) -> tuple[ScoredMetric, list[str]]:
    """Exact match over the labels that the program can predict; and the fields that are left out."""
    produced = {name for item in program.predictors() for name in item.signature.output_fields}
    compared = tuple(name for name in data.output_fields if name in produced)
    ignored = [name for name in data.output_fields if name not in produced]
    if not isinstance(metric.metric, ExactMatch) or not compared or not ignored:
        return metric, []
    return ScoredMetric(ExactMatch(compared), metric.success_threshold), ignored


def _optimizer(request: OptimizationRequest) -> Optimizer:
    twice = {name for name in request.algorithms if request.algorithms.count(name) > 1}
    if twice:
        raise ConfigurationError(f"algorithms names {', '.join(sorted(twice))} more than once")
    unused = [name for name in request.optimizer_settings if name not in request.algorithms]
    if unused:
        raise ConfigurationError(f"optimizer_settings for {', '.join(unused)}, which algorithms doesn't name")
    found = [make_optimizer(name, request.optimizer_settings.get(name)) for name in request.algorithms]
    unable = [item.name for item in found if not getattr(item, "freezes", False)]
    if request.freeze and unable:
        raise ConfigurationError(f"freeze: {', '.join(unable)} can't keep parts of a program as they are")
    return found[0] if len(found) == 1 else Several(found)


def _splits(program: Any, training: Any, validation: Any, test: Any, seed: int) -> tuple[Dataset, Splits]:
    if training is None:
        raise DataError("no training_data: give labelled examples (a list of dicts, a file, a DataFrame)")
    data = _load(program, training)
    if validation is None and test is None:
        return data, data.split(seed=seed)
    if validation is None or test is None:
        raise DataError("give both validation_data and test_data, or neither (training_data is then split)")
    others = [
        load_dataset(source, input_fields=data.input_fields, name=f"{data.name}-{suffix}")
        for source, suffix in ((validation, "validation"), (test, "test"))
    ]
    splits = given_splits(data.part("train", data.examples), *others)
    everything = Dataset.from_rows(
        [row for part in splits for row in part.rows()], input_fields=data.input_fields, name=data.name
    )
    return everything, splits


def _load(program: Any, source: Any) -> Dataset:
    """Load data; where neither it nor the caller says which fields are inputs, the program's own do."""
    if program is None:
        return load_dataset(source)
    return load_dataset(source, input_fields=lambda fields: input_fields_for(program, fields))
