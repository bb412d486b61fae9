"""What an evaluation measured."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from agentcore._json import json_text
from agentcore.evaluation import Interval
from agentcore.monitoring._personal import scrubbed
from agentcore.monitoring._quality import Quality, Task

FIGURES = (
    *("accuracy", "precision", "recall", "f1_score", "mae", "rmse", "r2"),
    *("avg_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms", "throughput"),
    *("examples", "failures", "lm_failures", "input_tokens", "output_tokens", "total_tokens"),
    *("cost_usd", "avg_cost"),
)
"""The names of all figures; which of them there are depends on the targets."""
_ERRORS = 3
_LATENCIES = ("avg_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms")


@dataclass(frozen=True)
class Row:
    """One row's outcome.

    Attributes:
        digest: of the inputs and the target.
        inputs, expected: without personal data.
        answer, output, error: as they were; `shown` has them without personal data.
        removed: the personal data of the row.
        score: share of its runs that were right; None if the language model failed.
    """

    digest: str
    inputs: dict[str, Any]
    expected: Any
    answer: Any
    output: dict[str, Any] | None
    score: float | None
    latency_ms: float | None
    tokens: int
    cost_usd: float | None
    error: str | None = None
    removed: frozenset[str] = frozenset()

    @property
    def shown(self) -> "Row":
        """The row as reports show it."""
        return replace(
            self,
            answer=scrubbed(self.answer, self.removed),
            output=scrubbed(self.output, self.removed),
            error=scrubbed(self.error, self.removed),
            removed=frozenset(),
        )


@dataclass(frozen=True)
class EvaluationMetrics:
    """The figures of one agent on one data set.

    Attributes:
        accuracy: share of right answers, 0–1.
        precision, recall, f1_score: for classes, the mean over the classes (macro); for text, the mean over
            the rows, by shared words; None for numbers.
        intervals: 95% interval of each figure that has one, by its name.
        per_class: the same by class, with their support.
        errors: mae, rmse and r2 of numbers.
        examples: rows with an answer or a failure of the agent; those on which the language model failed are
            in `lm_failures` and in no figure of quality.
        failures: rows on which the agent raised or returned no answer; they count as wrong.
        avg_latency_ms, p50_latency_ms, p95_latency_ms, p99_latency_ms: of the agent's calls; None if all
            answers came from a cache.
        throughput: calls per second, of the whole evaluation.
        cost_usd: None if the price of a call is unknown.
        run_id: of the evaluation run; None without one.
    """

    agent: str
    dataset: str
    digest: str
    target_field: str
    task: Task
    accuracy: float
    precision: float | None
    recall: float | None
    f1_score: float | None
    intervals: dict[str, Interval]
    per_class: dict[str, dict[str, Any]]
    errors: dict[str, float]
    examples: int
    failures: int
    lm_failures: int
    avg_latency_ms: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None
    throughput: float
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    avg_cost: float | None
    repeats: int = 1
    run_id: str | None = None
    quality: Quality | None = field(default=None, repr=False, compare=False)
    rows: tuple[Row, ...] = field(default=(), repr=False, compare=False)

    @property
    def first_errors(self) -> tuple[str, ...]:
        """The most frequent errors of the agent and the language model, with their numbers."""
        counts = Counter(row.shown.error for row in self.rows if row.error)
        return tuple(f"{count} × {error}" for error, count in counts.most_common(_ERRORS))

    @property
    def notes(self) -> tuple[str, ...]:
        """What makes the figures mean less than they seem to."""
        found = []
        answered = {json_text(row.answer) for row in self.rows if row.answer is not None}
        if self.accuracy == 0 and self.task == "classes" and answered:
            shown = ", ".join(sorted(answered)[:3])
            found.append(
                f"no answer is right: the answers are {shown}{', …' if len(answered) > 3 else ''}. Is this "
                f"the field to compare with {self.target_field!r}? Name the right one with prediction_field "
                "(--prediction)"
            )
        if self.task == "numbers" and self.failures:
            found.append(f"mae, rmse and r2 leave out the {self.failures} rows without a number")
        return tuple(found)

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def figures(self) -> dict[str, float]:
        """Every figure that was measured, by the name it has in MLflow."""
        found = {
            "accuracy": self.accuracy,
            "precision": self.precision,
            "recall": self.recall,
            "f1_score": self.f1_score,
            **self.errors,
            **{name: getattr(self, name) for name in _LATENCIES},
            "throughput": self.throughput,
            "examples": float(self.examples),
            "failures": float(self.failures),
            "lm_failures": float(self.lm_failures),
            "input_tokens": float(self.input_tokens),
            "output_tokens": float(self.output_tokens),
            "total_tokens": float(self.total_tokens),
            "cost_usd": self.cost_usd,
            "avg_cost": self.avg_cost,
        }
        return {name: value for name, value in found.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """What the report holds: everything but the rows."""
        return {
            "agent": self.agent,
            "dataset": self.dataset,
            "digest": self.digest,
            "target_field": self.target_field,
            "task": self.task,
            "repeats": self.repeats,
            "metrics": self.figures(),
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "per_class": self.per_class,
            "errors": list(self.first_errors),
            "notes": list(self.notes),
            "run_id": self.run_id,
        }
