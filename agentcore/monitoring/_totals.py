"""Sums of what an agent did: counts, tokens, and distributions. Mergeable over windows and processes."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ddsketch import DDSketch

ACCURACY = 0.004
"""Largest relative error of a quantile (DDSketch: Masson, Rim and Lee 2019)."""
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = math.log(_GAMMA)
_SMALLEST, _LARGEST = 1e-6, 1e12
"""Values are kept within these, which bounds the number of bins."""
MAX_NAMES = 100
"""Statuses, models, errors and scores beyond this number count as `other`: their names may come from
requests."""
OTHER = "other"


def value_of(key: int) -> float:
    """The value that stands for a bin: at most `ACCURACY` from each that is in it."""
    return float(2 * _GAMMA**key / (_GAMMA + 1))


@dataclass
class Distribution:
    """Values by bin: bin k holds those in (γᵏ⁻¹, γᵏ]. Count, sum and extremes are exact."""

    bins: Counter[int] = field(default_factory=Counter)
    negative: Counter[int] = field(default_factory=Counter)
    zeros: int = 0
    sum: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @property
    def count(self) -> int:
        return self.bins.total() + self.negative.total() + self.zeros

    @property
    def mean(self) -> float:
        return self.sum / self.count

    def add(self, values: "np.ndarray") -> None:
        """Add finite values."""
        if not values.size:
            return
        self.sum += float(values.sum())
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        sizes = np.abs(values)
        some = sizes > _SMALLEST
        self.zeros += int(values.size - some.sum())
        keys = np.ceil(np.log(np.minimum(sizes, _LARGEST), where=some, out=np.zeros_like(sizes)) / _LOG_GAMMA)
        for chosen, into in ((some & (values > 0), self.bins), (some & (values < 0), self.negative)):
            found, counts = np.unique(keys[chosen].astype(int), return_counts=True)
            for key, count in zip(found.tolist(), counts.tolist(), strict=True):
                into[key] += count

    def merge(self, other: "Distribution") -> None:
        """Add all values of another."""
        self.bins.update(other.bins)
        self.negative.update(other.negative)
        self.zeros += other.zeros
        self.sum += other.sum
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def quantiles(self, shares: Iterable[float]) -> list[float]:
        """Quantiles, each at most `ACCURACY` off, relatively."""
        sketch = DDSketch(ACCURACY)
        for sign, bins in ((1, self.bins), (-1, self.negative)):
            for key, count in bins.items():
                sketch.add(sign * value_of(key), count)
        if self.zeros:
            sketch.add(0.0, self.zeros)
        return [
            min(self.high, max(self.low, float(sketch.get_quantile_value(share) or 0.0))) for share in shares
        ]

    def summary(self) -> dict[str, float]:
        """Count, mean, extremes and quantiles."""
        p50, p95, p99 = self.quantiles((0.5, 0.95, 0.99))
        return {
            "count": self.count,
            "avg": self.mean,
            "min": self.low,
            "max": self.high,
            "p50": p50,
            "p95": p95,
            "p99": p99,
        }

    def state(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "bins": {str(key): count for key, count in self.bins.items()},
            "negative": {str(key): count for key, count in self.negative.items()},
            "zeros": self.zeros,
            "sum": self.sum,
            "low": self.low if self.count else 0.0,
            "high": self.high if self.count else 0.0,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Distribution":
        """From `state()`."""
        found = cls(
            Counter({int(key): int(count) for key, count in state["bins"].items()}),
            Counter({int(key): int(count) for key, count in state["negative"].items()}),
            int(state["zeros"]),
            float(state["sum"]),
        )
        if found.count:
            found.low, found.high = float(state["low"]), float(state["high"])
        return found


class Names:
    """The names seen so far of each kind; beyond `MAX_NAMES` of a kind they become `other`. Shared by the
    windows of a collector, so that their number is bounded over all of them."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}

    def of(self, kind: str, name: str) -> str:
        """The name under which to count."""
        known = self._known.setdefault(kind, set())
        if name in known or len(known) < MAX_NAMES:
            known.add(name)
            return name
        return OTHER


@dataclass
class Totals:
    """What was recorded. Tokens are by model, each as (input, output, not told which, calls)."""

    names: Names = field(default_factory=Names, repr=False, compare=False)
    requests: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    tokens: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    durations: Distribution = field(default_factory=Distribution)
    scores: dict[str, Distribution] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.requests or self.errors or self.tokens or self.durations.count or self.scores)

    def add_counts(self, kind: str, into: Counter[str], counts: Mapping[str, int]) -> None:
        """Add counts by name."""
        for name, count in counts.items():
            into[self.names.of(kind, name)] += count

    def add_tokens(self, model: str, amounts: tuple[int, int, int, int]) -> None:
        """Add the tokens of calls of one model."""
        model = self.names.of("tokens", model)
        known = self.tokens.get(model, (0, 0, 0, 0))
        read, written, untold, calls = (old + new for old, new in zip(known, amounts, strict=True))
        self.tokens[model] = (read, written, untold, calls)

    def add_scores(self, name: str, values: "np.ndarray") -> None:
        """Add values of one score."""
        self.scores.setdefault(self.names.of("scores", name), Distribution()).add(values)

    def merge(self, other: "Totals") -> None:
        """Add everything of another."""
        self.add_counts("requests", self.requests, other.requests)
        self.add_counts("errors", self.errors, other.errors)
        for model, amounts in other.tokens.items():
            self.add_tokens(model, amounts)
        self.durations.merge(other.durations)
        for name, found in other.scores.items():
            self.scores.setdefault(self.names.of("scores", name), Distribution()).merge(found)

    def summary(self) -> dict[str, Any]:
        """Everything as plain numbers."""
        requests, errors = self.requests.total(), self.errors.total()
        found: dict[str, Any] = {
            "total_requests": requests,
            "requests_by_status": dict(self.requests),
            "total_errors": errors,
            "errors_by_type": dict(self.errors),
            "error_rate": errors / requests if requests else None,
            "total_tokens": sum(sum(item[:3]) for item in self.tokens.values()),
            "input_tokens": sum(item[0] for item in self.tokens.values()),
            "output_tokens": sum(item[1] for item in self.tokens.values()),
            "tokens_by_model": {name: sum(item[:3]) for name, item in self.tokens.items()},
            "scores": {name: item.summary() for name, item in self.scores.items()},
        }
        duration = self.durations.summary() if self.durations.count else {}
        for name in ("avg", "min", "max", "p50", "p95", "p99"):
            found[f"{name}_duration_ms"] = duration.get(name)
        found["durations"] = self.durations.count
        return found

    def state(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "requests": dict(self.requests),
            "errors": dict(self.errors),
            "tokens": {name: list(item) for name, item in self.tokens.items()},
            "durations": self.durations.state(),
            "scores": {name: item.state() for name, item in self.scores.items()},
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Totals":
        """From `state()`."""
        return cls(
            Names(),
            Counter(state["requests"]),
            Counter(state["errors"]),
            {
                name: (int(item[0]), int(item[1]), int(item[2]), int(item[3]))
                for name, item in state["tokens"].items()
            },
            Distribution.of(state["durations"]),
            {name: Distribution.of(item) for name, item in state["scores"].items()},
        )
