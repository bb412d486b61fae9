"""The results of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class PerformanceMetrics(BaseModel):
    """Aggregate metrics of one program on one dataset, computed from per-example records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    success_rate: float = Field(ge=0, le=1)
    """Share of examples, 0–1, whose score reached the success threshold."""
    quality_score: float = Field(ge=0, le=1)
    """Mean score, 0–1."""
    avg_cost: float | None = Field(default=None, ge=0)
    """USD per example without a cache hit; None if there is no such example or a price is unknown."""
    avg_latency_ms: float | None = Field(default=None, ge=0)
    """Mean milliseconds per example without a cache hit; None if there is no such example."""
    median_latency_ms: float | None = Field(default=None, ge=0)
    """The median of the same."""


@dataclass(frozen=True)
class ExampleRecord:
    """One example's outcome. `score` is None if the LM failed, and 0 if the program failed."""

    index: int
    digest: str
    prediction: dict[str, Any] | None
    score: float | None
    feedback: str | None
    latency_ms: float | None
    """Wall-clock milliseconds of the program; None if every LM call was a cache hit."""
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    lm_calls: int
    cache_hits: int
    error: str | None = None
    failed: Literal["lm", "program"] | None = None
    draws: int = 1
    """How often the program ran: `score` and `latency_ms` are means over the runs, the rest are sums."""
    lm_failures: int = 0
    """How many of these runs the LM failed; they have no score."""

    @property
    def answered(self) -> int:
        """The runs that have a score."""
        return self.draws - self.lm_failures

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True)
class EvaluationReport:
    """All records of one evaluation, in the dataset's order."""

    records: tuple[ExampleRecord, ...]
    success_threshold: float

    @property
    def scores(self) -> list[float | None]:
        return [record.score for record in self.records]

    @property
    def all_scores(self) -> list[float]:
        """The scores of the examples that have one."""
        return [score for score in self.scores if score is not None]

    def only(self, numbers: Sequence[int]) -> "EvaluationReport":
        """The records at these positions."""
        return EvaluationReport(tuple(self.records[number] for number in numbers), self.success_threshold)

    @property
    def failures(self) -> list[ExampleRecord]:
        return [record for record in self.records if record.failed]

    @property
    def mean_score(self) -> float:
        """Mean over the examples that have a score, 0–1."""
        return _mean(self.all_scores)

    @property
    def metrics(self) -> PerformanceMetrics:
        scored = self.all_scores
        # Cache hits say nothing about the program's cost or latency.
        fresh = [record for record in self.records if not record.cache_hits]
        costs = [
            None if record.cost_usd is None else record.cost_usd / record.draws
            for record in fresh
            if record.failed != "lm"
        ]
        latencies = [record.latency_ms for record in fresh if record.latency_ms is not None]
        known = [cost for cost in costs if cost is not None]
        return PerformanceMetrics(
            success_rate=_mean([float(score >= self.success_threshold) for score in scored]),
            quality_score=self.mean_score,
            avg_cost=_mean(known) if known and len(known) == len(costs) else None,
            avg_latency_ms=_mean(latencies) if latencies else None,
            median_latency_ms=median(latencies) if latencies else None,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
