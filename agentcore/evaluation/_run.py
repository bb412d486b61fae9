"""Runs a program over examples in the event loop."""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import dspy
from pydantic import BaseModel

from agentcore.data import Example
from agentcore.errors import (
    ConfigurationError,
    DataError,
    EvaluationError,
    ExecutorError,
    LMUnavailableError,
    first_line,
)
from agentcore.evaluation._executor import Local, Place, Ran, Runner
from agentcore.evaluation._first_error import first_error
from agentcore.evaluation._metric import ScoredMetric
from agentcore.evaluation._records import EvaluationReport, ExampleRecord
from agentcore.lm import Spend, collect_spend, is_lm_failure, lm_secrets

RecordSink = Callable[[ExampleRecord], None]


@dataclass(frozen=True)
class Limits:
    """How an evaluation may run.

    Attributes:
        max_concurrency: examples in flight at once.
        max_error_rate: share of examples, 0–1, that may fail before the evaluation raises.
        only_lm_failures: count the LM's failures only towards it: a candidate whose program fails is
            a bad candidate, which its scores of 0 say.
        tolerated: how many examples may fail; None for `max_error_rate` of them.
        gate: held while an example runs; shared by evaluations that together stay under one limit.
    """

    max_concurrency: int = 16
    max_error_rate: float = 0.1
    only_lm_failures: bool = False
    tolerated: int | None = None
    gate: asyncio.Semaphore | None = None


async def evaluate(
    program: Any,
    examples: Sequence[Example],
    metric: ScoredMetric,
    *,
    lm: Any,
    limits: Limits | None = None,
    on_record: RecordSink | None = None,
    known: Mapping[int, ExampleRecord] | None = None,
    judging: Callable[[], AbstractContextManager[None]] = nullcontext,
    place: Place | None = None,
) -> EvaluationReport:
    """Run `program` on every example, concurrently, and score what it predicts.

    Programs with `aforward` are awaited, others run in threads of their own. A failed example is data:
    the program's failure scores 0, the LM's has no score. Cancelling cancels every example.

    Args:
        program: a `dspy.Module`.
        examples: at least one.
        metric: see `ScoredMetric`.
        lm: the `dspy.LM` for predictors that have none of their own.
        limits: concurrency and tolerated failures.
        on_record: called in the event loop as each example ends, in the order of ending.
        known: records of an earlier evaluation, by index, that are not to be made again.
        judging: entered while the metric runs.
        place: where the program runs; None for this process.

    Raises:
        DataError: no examples.
        MetricError: the metric raised, or returned no score in 0–1.
        EvaluationError: more than `max_error_rate` of the examples failed; names the first errors.
        LMUnavailableError: the same, where it was the LM that failed.
    """
    if not examples:
        raise DataError("nothing to evaluate: no examples")
    limits = limits or Limits()
    with dspy.context(lm=lm):
        runner = await (place or Local()).prepare(program)
    run = _Run(
        program, runner, metric, lm, limits, len(examples), on_record or (lambda record: None), judging
    )
    known = known or {}
    run.records += known.values()
    pending = iter([(index, item) for index, item in enumerate(examples) if index not in known])
    workers = min(limits.max_concurrency, len(examples))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(run.work(pending))
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None
    return EvaluationReport(
        tuple(sorted(run.records, key=lambda record: record.index)), metric.success_threshold
    )


class _Run:
    def __init__(
        self,
        program: Any,
        runner: Runner,
        metric: ScoredMetric,
        lm: Any,
        limits: Limits,
        total: int,
        on_record: RecordSink,
        judging: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.runner = runner
        self.metric = metric
        self.lm = lm
        self.secrets = lm_secrets(lm, *(predictor.lm for predictor in program.predictors()))
        self.on_record = on_record
        self.judging = judging
        self.records: list[ExampleRecord] = []
        self.errors: list[tuple[int, Exception]] = []
        self.total = total
        self.only_lm_failures = limits.only_lm_failures
        share = math.floor(limits.max_error_rate * total + 1e-9)
        self.tolerated = share if limits.tolerated is None else limits.tolerated
        self.gate: AbstractAsyncContextManager[Any] = limits.gate or nullcontext()

    async def work(self, pending: Iterator[tuple[int, Example]]) -> None:
        for index, example in pending:
            async with self.gate:
                record = await self.one(index, example)
            self.records.append(record)
            self.on_record(record)

    async def one(self, index: int, example: Example) -> ExampleRecord:
        # The metric may ask a judge: its calls are the run's spend, not the program's.
        with dspy.context(lm=self.lm):
            with collect_spend() as sink:
                ran = await self.predict(example)
            if isinstance(ran, Exception):
                return self.failed(index, example, ran, sink.spend)
            with self.judging():
                score = await self.metric.score(example.dspy, ran.prediction)
        return _record(index, example, sink.spend, ran=ran, score=score)

    async def predict(self, example: Example) -> Ran | Exception:
        try:
            return await self.runner(example.inputs)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The program's own: a task group would drop the example without a word.
            return RuntimeError(f"the program raised CancelledError: {error}")
        except (ConfigurationError, ExecutorError):
            raise  # no example's fault
        except Exception as error:  # noqa: BLE001 - a failed example is data
            return error

    def failed(self, index: int, example: Example, error: Exception, spend: Spend) -> ExampleRecord:
        kind: Literal["lm", "program"] = "lm" if is_lm_failure(error) else "program"
        if kind == "lm" or not self.only_lm_failures:
            self.errors.append((index, error))
        if len(self.errors) > self.tolerated:
            self.give_up()
        return _record(index, example, spend, error=self.describe(error), failed=kind)

    def give_up(self) -> None:
        shown = "; ".join(f"example {index + 1}: {self.describe(error)}" for index, error in self.errors[:3])
        failed_by_lm = sum(is_lm_failure(error) for _, error in self.errors)
        message = (
            f"{len(self.errors)} of {self.total} examples failed, {self.tolerated} are tolerated "
            f"(max_error_rate). First errors: {shown}"
        )
        if failed_by_lm * 2 > len(self.errors):
            raise LMUnavailableError(f"the language model failed: {message}")
        raise EvaluationError(message)

    def describe(self, error: Exception) -> str:
        return first_line(error, secrets=self.secrets)


def _record(
    index: int,
    example: Example,
    spend: Spend,
    *,
    ran: Ran | None = None,
    score: Any = None,
    error: str | None = None,
    failed: Literal["lm", "program"] | None = None,
) -> ExampleRecord:
    only_cache = spend.cache_hits > 0 and spend.calls == 0
    return ExampleRecord(
        index=index,
        digest=example.digest,
        prediction=None if ran is None or ran.prediction is None else _as_dict(ran.prediction),
        score=score.value if score else 0.0 if failed == "program" else None,
        feedback=score.feedback if score else None,
        latency_ms=None if only_cache or ran is None else ran.seconds * 1000,
        input_tokens=spend.input_tokens,
        output_tokens=spend.output_tokens,
        cost_usd=spend.cost_usd,
        lm_calls=spend.calls,
        cache_hits=spend.cache_hits,
        error=error,
        failed=failed,
    )


def _as_dict(prediction: Any) -> dict[str, Any]:
    values = prediction.toDict() if hasattr(prediction, "toDict") else {"output": prediction}
    return {str(key): _jsonable(value) for key, value in values.items()}


def _jsonable(value: Any) -> Any:
    """The value as JSON can hold it; what JSON doesn't know, as text."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(item) for item in value]
    if isinstance(value, BaseModel):
        return _jsonable(value.model_dump())
    return str(value)
