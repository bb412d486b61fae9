"""Runs a program over examples in the event loop."""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy
from dspy.utils.exceptions import AdapterParseError

from agentcore._json import jsonable
from agentcore._redaction import first_line
from agentcore.data import Example
from agentcore.errors import (
    ConfigurationError,
    DataError,
    EvaluationError,
    ExecutorError,
    LMUnavailableError,
)
from agentcore.evaluation._executor import Local, Place, Ran, Runner, first_error, place_of
from agentcore.evaluation._interface import check_reserved
from agentcore.evaluation._metric import Score, ScoredMetric
from agentcore.evaluation._records import EvaluationReport, ExampleRecord
from agentcore.lm import Spend, collect_spend, described, is_lm_failure, lm_secrets, program_secrets, uncached

RecordSink = Callable[[ExampleRecord], None]


MAX_LM_FAILURES = 0.5
"""The largest share of examples that the LM may fail on: more is an outage, whatever `max_error_rate`
says."""


def tolerable(share: float, examples: int) -> int:
    """The largest number of examples that is at most a share of them."""
    return math.floor(share * examples + 1e-9)


@dataclass(frozen=True)
class EvaluationLimits:
    """Bounds of an evaluation.

    Attributes:
        max_concurrency: examples in flight at once.
        max_error_rate: share of examples, 0–1, that may fail before the evaluation raises. With 1, a program
            that often fails is measured as the failure it is; the LM may fail on at most half of the
            examples.
        only_lm_failures: count only failures of the LM. A candidate whose program fails is simply a bad
            candidate, which its scores of 0 already reflect.
        tolerated: how many examples may fail; None means `max_error_rate` of them.
        gate: semaphore held while an example runs; share it between evaluations to limit them jointly.
    """

    max_concurrency: int = 16
    max_error_rate: float = 0.1
    only_lm_failures: bool = False
    tolerated: int | None = None
    gate: asyncio.Semaphore | None = None


async def evaluate(
    program: dspy.Module,
    examples: Sequence[Example],
    metric: ScoredMetric,
    *,
    lm: dspy.BaseLM,
    limits: EvaluationLimits | None = None,
    on_record: RecordSink | None = None,
    known: Mapping[int, ExampleRecord] | None = None,
    judging: Callable[[], AbstractContextManager[None]] = nullcontext,
    place: Place | None = None,
    repeats: int = 1,
) -> EvaluationReport:
    """Run `program` on every example, concurrently, and score what it predicts.

    Programs with `aforward` are awaited, others run in their own threads. A failed example
    does not raise: it scores 0 if the program failed and has no score if the LM failed. Cancelling cancels
    every example.

    Args:
        program: a `dspy.Module`.
        examples: at least one.
        metric: see `ScoredMetric`.
        lm: the `dspy.LM` for predictors without their own.
        limits: concurrency and tolerated failures.
        on_record: called in the event loop as each example ends.
        known: records of an earlier evaluation, by index; these examples are not run again.
        judging: entered while the metric runs.
        place: where the program runs; None means this process.
        repeats: how often each example is run, its score being the mean; without DSPy's cache if more than
            once, since a cached answer is no further draw.

    Raises:
        DataError: no examples, or an input that DSPy takes for its own argument.
        MetricError: the metric raised, or did not return a score in 0–1.
        EvaluationError: more than `max_error_rate` of the examples failed; includes the first errors.
        LMUnavailableError: as above, if most of the failures were the LM's.
    """
    if not examples:
        raise DataError("no examples to evaluate")
    limits = limits or EvaluationLimits()
    check_reserved(program, examples[0].input_fields, "examples")
    with dspy.context(lm=lm):
        runner = await (place or Local()).prepare(program)
    run = _Run(
        program=program,
        runner=runner,
        metric=metric,
        lm=lm,
        limits=limits,
        total=len(examples),
        on_record=on_record or (lambda record: None),
        judging=judging,
        repeats=repeats,
    )
    known = known or {}
    run.records += known.values()
    pending = iter([(index, item) for index, item in enumerate(examples) if index not in known])
    workers = min(limits.max_concurrency, len(examples))
    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(run.work(pending))
    except BaseExceptionGroup as errors:
        failed = first_error(errors)
    if failed is not None:
        raise failed  # here, to keep its own cause, and the group out of its context
    return EvaluationReport(
        tuple(sorted(run.records, key=lambda record: record.index)), metric.success_threshold
    )


@dataclass
class _Run:
    """A running evaluation."""

    program: dspy.Module
    runner: Runner
    metric: ScoredMetric
    lm: dspy.BaseLM
    limits: EvaluationLimits
    total: int
    on_record: RecordSink
    judging: Callable[[], AbstractContextManager[None]]
    repeats: int = 1
    records: list[ExampleRecord] = field(default_factory=list)
    errors: list[tuple[int, Exception]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.secrets = [*lm_secrets(self.lm), *program_secrets(self.program)]
        limits = self.limits
        if limits.tolerated is not None:
            self.tolerated = self.tolerated_of_lm = limits.tolerated
        else:
            self.tolerated = tolerable(limits.max_error_rate, self.total)
            self.tolerated_of_lm = min(self.tolerated, tolerable(MAX_LM_FAILURES, self.total))
        self.failed_by_lm = 0
        self.gate: AbstractAsyncContextManager[Any] = self.limits.gate or nullcontext()

    async def work(self, pending: Iterator[tuple[int, Example]]) -> None:
        for index, example in pending:
            async with self.gate:
                record = await self.one(index, example)
            self.records.append(record)
            self.on_record(record)

    async def one(self, index: int, example: Example) -> ExampleRecord:
        if self.repeats == 1:
            draws = [await self.draw(example)]
        else:
            with uncached():
                draws = [await self.draw(example) for _ in range(self.repeats)]
        record = _record(index, example, draws, lambda error: first_line(error, secrets=self.secrets))
        if record.failed == "lm" or (record.failed and not self.limits.only_lm_failures):
            self.errors.append((index, next(draw.error for draw in draws if draw.error is not None)))
            self.failed_by_lm += record.failed == "lm"
            if len(self.errors) > self.tolerated or self.failed_by_lm > self.tolerated_of_lm:
                self.give_up()
        return record

    async def draw(self, example: Example) -> "_Draw":
        # The metric may call a judge LM, whose cost counts towards the run, not the program.
        with dspy.context(lm=self.lm):
            with collect_spend() as sink:
                ran = await self.predict(example)
            if isinstance(ran, Exception):
                return _Draw(sink.spend, error=ran)
            with self.judging():
                return _Draw(sink.spend, ran, await self.metric.score(example.dspy, ran.prediction))

    async def predict(self, example: Example) -> Ran | Exception:
        try:
            return await self.runner(example.inputs)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Raised by the program itself. Re-raised, the task group would silently drop the example.
            return RuntimeError(f"the program raised CancelledError: {error}")
        except (ConfigurationError, ExecutorError):
            raise  # not this example's fault
        except Exception as error:  # noqa: BLE001 - a failed example is data
            return error

    def give_up(self) -> None:
        shown = "; ".join(f"example {index + 1}: {self.describe(error)}" for index, error in self.errors[:3])
        allowed = self.tolerated if len(self.errors) > self.tolerated else self.tolerated_of_lm
        message = (
            f"{len(self.errors)} of {self.total} examples failed, more than the {allowed} allowed by "
            f"max_error_rate={self.limits.max_error_rate:g}"
        )
        if self.failed_by_lm * 2 > len(self.errors) or self.failed_by_lm > self.tolerated_of_lm:
            raise LMUnavailableError(
                f"the language model failed ({described(self.lm)}): {message}. First errors: {shown}"
            )
        advice = ""
        if all(isinstance(error, AdapterParseError) for _, error in self.errors if not is_lm_failure(error)):
            advice = (
                ". To measure such a program as it is, with a score of 0 for each failure, set "
                "max_error_rate to 1 (--max-error-rate 1)"
            )
        raise EvaluationError(f"{message}{advice}. First errors: {shown}")

    def describe(self, error: Exception) -> str:
        place = "" if isinstance(error, AdapterParseError) or is_lm_failure(error) else place_of(error)
        return first_line(error, secrets=self.secrets) + place


@dataclass(frozen=True)
class _Draw:
    """One run of the program on an example."""

    spend: Spend
    ran: Ran | None = None
    score: Score | None = None
    error: Exception | None = None

    @property
    def failed(self) -> Literal["lm", "program"] | None:
        return None if self.error is None else "lm" if is_lm_failure(self.error) else "program"

    @property
    def value(self) -> float | None:
        """A program's failure scores 0, the LM's is no score."""
        return self.score.value if self.score else 0.0 if self.failed == "program" else None

    @property
    def seconds(self) -> float | None:
        only_cache = self.spend.cache_hits > 0 and self.spend.calls == 0
        return None if only_cache or self.ran is None else self.ran.seconds


def _record(
    index: int, example: Example, draws: Sequence[_Draw], describe: Callable[[Exception], str]
) -> ExampleRecord:
    """The mean of the draws; failed only if all of them did."""
    spend = Spend.total([draw.spend for draw in draws])
    values = [draw.value for draw in draws if draw.value is not None]
    seconds = [draw.seconds for draw in draws if draw.seconds is not None]
    first = next((draw for draw in draws if draw.score is not None), draws[0])
    failed: Literal["lm", "program"] | None = None
    if all(draw.error is not None for draw in draws):
        failed = "program" if values else "lm"
    error = next((draw.error for draw in draws if draw.error is not None), None)
    prediction = first.ran.prediction if first.ran else None
    return ExampleRecord(
        index=index,
        digest=example.digest,
        prediction=None if prediction is None else _as_dict(prediction),
        score=sum(values) / len(values) if values else None,
        feedback=first.score.feedback if first.score else None,
        latency_ms=1000 * sum(seconds) / len(seconds) if seconds else None,
        input_tokens=spend.input_tokens,
        output_tokens=spend.output_tokens,
        cost_usd=spend.cost_usd,
        lm_calls=spend.calls,
        cache_hits=spend.cache_hits,
        error=None if error is None else describe(error),
        failed=failed,
        draws=len(draws),
        lm_failures=sum(draw.failed == "lm" for draw in draws),
    )


def _as_dict(prediction: Any) -> dict[str, Any]:
    values = prediction.toDict() if hasattr(prediction, "toDict") else {"output": prediction}
    return {str(key): jsonable(value) for key, value in values.items()}
