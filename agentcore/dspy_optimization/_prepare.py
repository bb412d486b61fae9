"""Resolves and validates a request before the first LM call."""

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dspy
from pydantic import ValidationError

from agentcore._imports import importable
from agentcore._redaction import Redactor
from agentcore.data import (
    Dataset,
    Splits,
    given_splits,
    load_dataset,
    shared_questions,
    too_few_clusters,
)
from agentcore.dspy_optimization._fit import fitted, input_fields_for, unseen_labels, unusual_labels
from agentcore.dspy_optimization._frozen import Frozen
from agentcore.dspy_optimization._inputs import RunInputs, RunOptions
from agentcore.dspy_optimization._job import Job, Source, program_text
from agentcore.dspy_optimization._program import (
    checked_program,
    instance_of,
    program_from_data,
    resolve_program,
)
from agentcore.dspy_optimization._provenance import command_line, git_commit
from agentcore.dspy_optimization._start import Start, check_test, with_own_demos
from agentcore.dspy_optimization.models import (
    OptimizationConstraints,
    OptimizationRequest,
    PerformanceMetrics,
)
from agentcore.dspy_optimization.optimizers import Optimizer, Several, make_optimizer
from agentcore.errors import ConfigurationError, DataError
from agentcore.evaluation import ExactMatch, ScoredMetric, interface_of, resolve_metric
from agentcore.lm import OFFLINE_NOTE, is_offline, resolve_lm
from agentcore.settings import Settings, explain
from agentcore.tracking import program_attributes, program_state


def prepare(
    inputs: RunInputs,
    options: RunOptions,
    *,
    optimization_id: str | None = None,
    splits: Splits | None = None,
    start: Start | None = None,
) -> Job:
    """Resolve and check a request.

    Args:
        optimization_id: of an existing run; None creates a new id.
        splits: of a resumed run; `training_data` is then its whole `Dataset`.
        start: the program to start from.

    Raises:
        ConfigurationError: no LM, an unknown optimizer, program or metric, wrong settings.
        DataError: examples that can't be used, don't fit the program, or contain a secret.
    """
    request, given_baseline = _validated(inputs)
    constraints = request.constraints
    program, program_path = options.program, options.program_path
    source = Source(
        program=program if isinstance(program, str) else None,
        from_data=program is None,
        metric=_metric_source(options.metric),
        start_from=start.run_id if start else None,
    )
    if start is not None:
        program, program_path = start.program, start.program_path or program_path
    elif isinstance(program, str):
        program, program_path = resolve_program(program)
    elif isinstance(program, type) and issubclass(program, dspy.Module):
        program_path = program_path or importable(program)
        program = instance_of(program, program.__qualname__)
    if program is not None:
        checked_program(program)
    optimizer = _optimizer(request)
    metric = resolve_metric(options.metric, success_threshold=constraints.success_threshold)
    if splits is None:
        data, splits = _splits(program, inputs, options, start)
    else:
        data = inputs.training_data
        if program is not None:
            fitted(program, data)
    built = program is None
    if program is None:
        program = program_from_data(data)
        fitted(program, data)
    frozen = Frozen.of(request.freeze, program)
    task_lm, prompt_lm = _models(options)
    warnings = [f"built the program {program_text(program)} from the data's fields"] if built else []
    warnings += [
        *unusual_labels(program, data),
        *unseen_labels(program, splits),
        *shared_questions(splits),
        *too_few_clusters(splits),
    ]
    metric, told = only_outputs(metric, program, data)
    warnings += told
    if is_offline(task_lm) or is_offline(prompt_lm):
        warnings.append(OFFLINE_NOTE)
    job = Job(
        optimization_id=optimization_id or uuid.uuid4().hex,
        request=request,
        program=program,
        program_path=program_path,
        data=data,
        splits=splits,
        metric=metric,
        lm=task_lm,
        prompt_lm=prompt_lm,
        optimizer=optimizer,
        frozen=frozen,
        given_baseline=given_baseline,
        seed=options.seed,
        repeats=options.repeats,
        warnings=(),
        source=replace(source, program=source.program or program_path),
        attributes=program_attributes(program),
        tags=options.tags,
        commit=git_commit(),
        command=command_line(),
    )
    return replace(job, warnings=(*warnings, *_secrets_in(job)))


def _validated(inputs: RunInputs) -> tuple[OptimizationRequest, PerformanceMetrics | None]:
    baseline = inputs.baseline_metrics
    try:
        request = OptimizationRequest.model_validate(inputs.request)
        return request, None if baseline is None else PerformanceMetrics.model_validate(baseline)
    except ValidationError as error:
        known = [*OptimizationRequest.model_fields, *OptimizationConstraints.model_fields]
        raise ConfigurationError(f"request or baseline_metrics: {explain(error, known)}") from None


def _metric_source(metric: Any) -> str | None:
    return metric if isinstance(metric, str) or metric is None else importable(metric)


def _models(options: RunOptions) -> tuple[Any, Any]:
    """The task model and the one that proposes instructions."""
    task_lm = resolve_lm(options.lm)
    proposer = options.prompt_lm or Settings().prompt_lm
    return task_lm, resolve_lm(proposer) if proposer else task_lm


def _secrets_in(job: Job) -> list[str]:
    """Warnings about passwords that look like ordinary words and stay in the data or the prompt.

    Raises:
        DataError: a row or the prompt contains an unmistakable secret. Redacting it would make the run
            impossible to resume; keeping it would send it to MLflow.
    """
    redactor = Redactor(job.secrets).snapshot()
    unmistakable, warnings = redactor.for_content(), dict[str, str]()
    places = [
        *((f"{job.data.name}, row {number}", item.json) for number, item in enumerate(job.data, 1)),
        ("the program's prompt", program_state(job.program)),
    ]
    for where, content in places:
        if found := unmistakable.names_in(content):
            raise DataError(
                f"{where} contains the value of {', '.join(found)}: remove it, or unset the variable if the "
                "value is not a secret"
            )
        for name in redactor.names_in(content):
            warnings.setdefault(
                name,
                f"{where} contains the value of {name}. It looks like an ordinary word, so it is not "
                "redacted from the data, the prompt or what is logged of them",
            )
    return [*warnings.values(), *_looks_like_keys(places)]


_KEY = re.compile(
    r"\b(sk-(proj-|ant-)?[\w-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_\w{30,}|hf_\w{30,}"
    r"|AIza[\w-]{30,}|xox[abprs]-[\w-]{20,})"
)
"""Keys as well-known services write them."""


def _looks_like_keys(places: Sequence[tuple[str, Any]]) -> list[str]:
    """A warning about the first place that holds what looks like a key, though no variable has it."""
    for where, content in places:
        if found := _KEY.search(json.dumps(content, ensure_ascii=False)):
            return [
                f"{where} contains what looks like a key ({found[0][:6]}…). It is logged with the data: "
                "remove it if it is one"
            ]
    return []


def only_outputs(
    metric: ScoredMetric, program: "dspy.Module", data: Dataset
) -> tuple[ScoredMetric, list[str]]:
    """Exact match over the labels that the program predicts, and warnings about the others."""
    produced = {name for item in program.predictors() for name in item.signature.output_fields}
    compared = tuple(name for name in data.output_fields if name in produced)
    ignored = [name for name in data.output_fields if name not in produced]
    if not isinstance(metric.metric, ExactMatch) or not ignored:
        return metric, []
    if not compared:
        return metric, [
            f"exact_match compares {', '.join(ignored)}, but the program's predictors give "
            f"{', '.join(sorted(produced))}: unless forward returns {', '.join(ignored)}, the run will fail"
        ]
    told = f"exact_match does not compare {', '.join(ignored)}: not an output of the program"
    return ScoredMetric(ExactMatch(compared), metric.success_threshold), [told]


def _optimizer(request: OptimizationRequest) -> Optimizer:
    twice = {name for name in request.algorithms if request.algorithms.count(name) > 1}
    if twice:
        raise ConfigurationError(f"algorithms lists {', '.join(sorted(twice))} more than once")
    unused = [name for name in request.optimizer_settings if name not in request.algorithms]
    if unused:
        raise ConfigurationError(f"optimizer_settings for {', '.join(unused)}, which algorithms doesn't list")
    found = [make_optimizer(name, request.optimizer_settings.get(name)) for name in request.algorithms]
    unable = [item.name for item in found if not item.freezes]
    if request.freeze and unable:
        raise ConfigurationError(f"freeze: {', '.join(unable)} can't leave parts of a program unchanged")
    return found[0] if len(found) == 1 else Several(found)


def _splits(
    program: "dspy.Module", inputs: RunInputs, options: RunOptions, start: Start | None
) -> tuple[Dataset, Splits]:
    training, validation, test = inputs.training_data, inputs.validation_data, inputs.test_data
    if training is None:
        raise DataError("no training_data: pass labelled examples (a list of dicts, a file or a DataFrame)")
    data = _fitted(program, _load(program, training, options.cluster))
    members = start.members if start else {}
    if validation is None and test is None:
        keep = with_own_demos(members, program, data) if program is not None else members
        splits = data.split(seed=options.split_seed, keep=keep, sealed=options.sealed)
        return data, replace(splits, inherited=members)
    if options.sealed:
        raise DataError("sealed= splits training_data: leave it out when you pass your own splits")
    if validation is None or test is None:
        raise DataError("pass both validation_data and test_data, or neither (training_data is then split)")
    others = [
        _fitted(
            program,
            load_dataset(
                source, input_fields=data.input_fields, name=f"{data.name}-{suffix}", cluster=options.cluster
            ),
        )
        for source, suffix in ((validation, "validation"), (test, "test"))
    ]
    splits = given_splits(data.part("train", data.examples), *others)
    if program is not None:
        check_test(members, program, splits)
    everything = Dataset.from_rows(
        [row for part in splits.parts.values() for row in part.rows()],
        input_fields=data.input_fields,
        name=data.name,
        cluster=data.cluster_field,
    )
    return everything, replace(splits, inherited=members)


def _fitted(program: "dspy.Module", data: Dataset) -> Dataset:
    return data if program is None else fitted(program, data)


def _load(program: "dspy.Module", source: Any, cluster: str | None) -> Dataset:
    """Load data; if neither it nor the caller names the input fields, use the program's inputs."""
    if program is None:
        return load_dataset(source, cluster=cluster)
    if cluster is not None and cluster in (interface_of(program).inputs or ()):
        loaded = load_dataset(source, input_fields=lambda fields: input_fields_for(program, fields))
        return Dataset.from_rows(
            loaded.rows(),
            input_fields=list(loaded.input_fields),
            name=loaded.name,
            description=loaded.description,
            cluster=cluster,
        )
    return load_dataset(
        source, input_fields=lambda fields: input_fields_for(program, fields), cluster=cluster
    )
