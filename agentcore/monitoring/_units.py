"""The unit of a metric, by its name: how its values are written, and which direction is better."""

import re
from typing import Literal

Unit = Literal["percent", "usd", "ms", "seconds", "count", "number"]

_PERCENT = re.compile(
    r"(^|_)(rate|share|accuracy|precision|recall|f1|f1_score|success_rate|improvement_percentage)$"
)
_USD = re.compile(r"(^|_)(usd|cost)($|_)")
_LOWER = re.compile(
    r"(^|_)(ms|latency|seconds|duration|cost|usd|tokens|turns|errors?|failures?|error_rate|failure_rate|mae|"
    r"rmse|loss|degradation)($|_)"
)
_HIGHER = re.compile(r"per_(dollar|usd|second)$|reduction|improvement|throughput")
_NO_DIRECTION = frozenset(
    {"examples", "total_apps", "evaluated", "iterations", "seed", "requests", "input_tokens"}
)


def unit_of(name: str) -> Unit:
    """The unit of a metric."""
    bare = re.sub(r"_(low|high)$", "", name)
    if re.search(r"per_(dollar|usd)$", bare):
        return "number"
    if bare.endswith("_degradation"):
        return "number"
    if bare.endswith("_ms"):
        return "ms"
    if _PERCENT.search(bare):
        return "percent"
    if _USD.search(bare):
        return "usd"
    if bare.endswith("seconds"):
        return "seconds"
    if re.search(r"(^|_)(tokens|examples|failures|apps|evaluated|calls|requests|rows|iterations)$", bare):
        return "count"
    return "number"


def shown(name: str, value: float | None) -> str:
    """A metric's value in its unit: `85.00%`, `$0.0123`, `250 ms`; empty if there is none."""
    if value is None:
        return ""
    unit = unit_of(name)
    if unit == "percent":
        return f"{100 * value:.2f}%"
    if unit == "usd":
        return f"${value:,.2f}" if abs(value) >= 1 or value == 0 else f"${value:.4g}"
    if unit == "ms":
        return f"{value:,.0f} ms" if abs(value) >= 100 else f"{value:.3g} ms"
    if unit == "seconds":
        return f"{value:,.1f} s"
    if unit == "count":
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"


def better(name: str) -> Literal["higher", "lower"] | None:
    """Which direction of a metric is better; None if neither is."""
    bare = re.sub(r"^(baseline|optimized|current)_", "", name)
    if bare in _NO_DIRECTION:
        return None
    if _HIGHER.search(bare):
        return "higher"
    if _LOWER.search(bare):
        return "lower"
    if unit_of(name) == "percent" or re.search(r"(^|_)(score|quality|r2)($|_)", bare):
        return "higher"
    return None
