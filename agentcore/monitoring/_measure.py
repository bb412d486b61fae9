"""Runs an agent over rows, and computes the figures of what it answered."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentcore._json import json_text, jsonable
from agentcore._threads import run_in_thread
from agentcore.data import Example
from agentcore.errors import DataError, EvaluationError
from agentcore.evaluation import (
    EvaluationLimits,
    EvaluationReport,
    ExampleRecord,
    ScoredMetric,
    equal,
    evaluate,
    first_error,
)
from agentcore.monitoring._agents import Agent, answer_fields, answer_in
from agentcore.monitoring._models import EvaluationMetrics, Row
from agentcore.monitoring._personal import REDACTED, scrubbed, texts_in
from agentcore.monitoring._quality import Labelled, Task, measure, number_in, task_of

Progress = Callable[[int, int], None]
"""Called with the number of rows done and their total."""


@dataclass(frozen=True)
class Data:
    """Rows to evaluate on."""

    name: str
    digest: str
    rows: Sequence[dict[str, Any]]
    personal: frozenset[str] = frozenset()
    """Fields that are kept out of reports."""


@dataclass(frozen=True)
class Question:
    """What to compare: the target of each row, and the field of the answer."""

    target: str
    prediction_field: str | None = None
    task: Task | None = None
    repeats: int = 1


class _Judge:
    """Compares answers with the target, and keeps all of them."""

    def __init__(self, question: Question) -> None:
        self.target = question.target
        self.fields = answer_fields(question.target, question.prediction_field)
        self.only = question.prediction_field is None
        self.answers: dict[int, list[Any]] = {}
        self.seen: set[str] = set()
        self.found = 0
        self._number: dict[int, int] = {}

    def number(self, examples: Sequence[Example]) -> None:
        """Remember the position of each example, by the object that a metric gets."""
        self._number = {id(item.dspy): position for position, item in enumerate(examples)}

    async def __call__(self, example: Any, prediction: Any) -> float:
        values = dict(prediction.items()) if hasattr(prediction, "items") else {"output": prediction}
        self.seen.update(values)
        found, answer = answer_in(values, self.fields, only=self.only)
        self.found += found
        if not _has_json(answer):
            answer = None  # nothing that a data set could expect
        self.answers.setdefault(self._number[id(example)], []).append(answer)
        return float(found and answer is not None and equal(example[self.target], answer))


def _has_json(value: Any) -> bool:
    try:
        json_text(value)
    except (TypeError, ValueError):
        return False
    return True


async def measure_agent(
    agent: Agent,
    name: str,
    parts: Sequence[Data],
    question: Question,
    *,
    max_concurrency: int,
    on_progress: Progress | None = None,
) -> list[EvaluationMetrics]:
    """Evaluate an agent on several data sets at once: their calls are interleaved, so that their latencies
    can be compared.

    Raises:
        DataError: a row without a target, or without an input that the program needs; or no answer has the
            field to compare.
        EvaluationError: the agent failed on every row.
        LMUnavailableError: the language model failed on more than half of the rows.
    """
    program, lm = await agent.program(), await agent.lm()
    if question.task is None and parts:  # one for all: figures of different tasks can't be compared
        targets = [
            row[question.target]
            for part in parts
            for row in part.rows
            if row.get(question.target) is not None
        ]
        question = replace(question, task=task_of(targets) if targets else None)
    examples = [await agent.examples(part.rows, question.target, part.name) for part in parts]
    judges = [_Judge(question) for _ in parts]
    gate = asyncio.Semaphore(max_concurrency)
    limits = EvaluationLimits(max_concurrency, max_error_rate=1.0, gate=gate)
    total = sum(map(len, examples))
    done = itertools.count(1)

    def told(record: ExampleRecord) -> None:
        if on_progress is not None:
            on_progress(next(done), total)

    began = time.perf_counter()
    tasks = []
    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for judge, own in zip(judges, examples, strict=True):
                judge.number(own)
                work = evaluate(
                    program,
                    own,
                    ScoredMetric(judge),
                    lm=lm,
                    limits=limits,
                    repeats=question.repeats,
                    on_record=told,
                )
                tasks.append(group.create_task(work))
    except BaseExceptionGroup as errors:
        failed = first_error(errors)
    if failed is not None:
        raise failed
    seconds = time.perf_counter() - began
    found = []
    for part, judge, task in zip(parts, judges, tasks, strict=True):
        report = task.result()
        _check(part, judge, report)
        found.append(
            await run_in_thread(
                lambda part=part, judge=judge, report=report: _metrics(  # type: ignore[misc]
                    name, part, question, judge, report, seconds
                )
            )
        )
    return found


def _check(part: Data, judge: _Judge, report: EvaluationReport) -> None:
    if all(record.failed for record in report.records):
        first = next(record for record in report.records if record.failed)
        raise EvaluationError(f"the agent failed on every row of {part.name}. The first error: {first.error}")
    if not judge.found:
        raise DataError(
            f"no answer has a field {' or '.join(map(repr, judge.fields))} to compare with {judge.target!r}; "
            f"the answers have {', '.join(sorted(judge.seen)) or 'no fields'}. Name the field with "
            "prediction_field (--prediction)"
        )


def _metrics(
    agent: str, part: Data, question: Question, judge: _Judge, report: EvaluationReport, seconds: float
) -> EvaluationMetrics:
    counted = [record for record in report.records if record.failed != "lm"]
    labelled = [
        Labelled(part.rows[record.index][question.target], _answers(judge, record)) for record in counted
    ]
    quality = measure(labelled, question.task)
    latencies = [record.latency_ms for record in report.records if record.latency_ms is not None]
    costs = [record.cost_usd for record in counted]
    cost = None if None in costs else float(sum(item for item in costs if item is not None))
    fresh = [
        record.cost_usd / record.draws
        for record in counted
        if record.cost_usd is not None and not record.cache_hits
    ]
    runs = sum(record.draws for record in report.records)
    figures = quality.figures
    return EvaluationMetrics(
        agent=agent,
        dataset=part.name,
        digest=part.digest,
        target_field=question.target,
        task=quality.task,
        accuracy=figures["accuracy"],
        precision=figures.get("precision"),
        recall=figures.get("recall"),
        f1_score=figures.get("f1_score"),
        intervals=quality.intervals,
        per_class=quality.per_class,
        errors={name: figures[name] for name in ("mae", "rmse", "r2") if name in figures},
        examples=len(counted),
        failures=sum(_failed(row.answers[0], quality.task) for row in labelled),
        lm_failures=len(report.records) - len(counted),
        avg_latency_ms=float(np.mean(latencies)) if latencies else None,
        p50_latency_ms=_quantile(latencies, 50),
        p95_latency_ms=_quantile(latencies, 95),
        p99_latency_ms=_quantile(latencies, 99),
        throughput=runs / seconds if seconds else 0.0,
        input_tokens=sum(record.input_tokens for record in report.records),
        output_tokens=sum(record.output_tokens for record in report.records),
        cost_usd=cost,
        avg_cost=float(np.mean(fresh)) if fresh and cost is not None else None,
        repeats=question.repeats,
        quality=quality,
        rows=tuple(_row(part, question, judge, record) for record in report.records),
    )


def _failed(answer: Any, task: Task) -> bool:
    return answer is None or (task == "numbers" and number_in(answer) is None)


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if values else None


def _answers(judge: _Judge, record: ExampleRecord) -> tuple[Any, ...]:
    """The answer of each run that the model didn't fail; None where the agent failed."""
    found = judge.answers.get(record.index, [])
    return (*found, *[None] * (record.answered - len(found)))


def _row(part: Data, question: Question, judge: _Judge, record: ExampleRecord) -> Row:
    row = part.rows[record.index]
    answers = judge.answers.get(record.index, [])
    removed = {text for name in part.personal for text in texts_in(row.get(name))}
    inputs = {name: value for name, value in row.items() if name != question.target}
    target = question.target
    return Row(
        digest=record.digest,
        inputs={
            name: REDACTED if name in part.personal else scrubbed(value, removed)
            for name, value in inputs.items()
        },
        expected=REDACTED if target in part.personal else scrubbed(row[target], removed),
        answer=jsonable(answers[0]) if answers else None,
        removed=frozenset(removed),
        output=record.prediction,
        score=record.score,
        latency_ms=record.latency_ms,
        tokens=record.input_tokens + record.output_tokens,
        cost_usd=record.cost_usd,
        error=record.error,
    )
