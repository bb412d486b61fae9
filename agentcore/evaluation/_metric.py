"""Metrics: the forms a user may pass, and validation of the scores they return."""

import inspect
import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from agentcore._imports import import_object
from agentcore._redaction import first_line
from agentcore._threads import run_in_thread
from agentcore.errors import ConfigurationError, MetricError
from agentcore.evaluation._executor import place_of
from agentcore.evaluation._match import ExactMatch, exact_match
from agentcore.lm import is_lm_failure

if TYPE_CHECKING:
    import dspy

_ROUNDING = 1e-9

Metric = Callable[..., Any]
"""`metric(example, prediction[, trace])`, sync or async, returning a bool, a number in 0–1 or a
`dspy.Prediction(score=…, feedback=…)`."""


class Score(NamedTuple):
    value: float
    """0–1."""
    feedback: str | None = None


class ScoredMetric:
    """Wraps a metric in a uniform calling convention and validates every result.

    Args:
        metric: see `Metric`.
        success_threshold: the lowest score, 0–1, that counts as a success.
    """

    def __init__(self, metric: Metric, success_threshold: float = 0.5) -> None:
        if not callable(metric):
            raise ConfigurationError(f"metric must be a function, got {type(metric).__name__}")
        self.metric = metric
        self.name = str(getattr(metric, "__name__", type(metric).__name__))
        self.success_threshold = success_threshold
        self.is_async = inspect.iscoroutinefunction(metric) or inspect.iscoroutinefunction(
            getattr(metric, "__call__", None)  # noqa: B004 - a callable object with an async __call__
        )
        self._arguments = _positional_arguments(metric)

    async def score(self, example: "dspy.Example", prediction: "dspy.Prediction") -> Score:
        """Score one prediction without blocking the event loop.

        Raises:
            MetricError: the metric raised, or did not return a score in 0–1.
        """
        arguments = self.arguments(example, prediction)
        try:
            if self.is_async:
                result = await self.metric(*arguments)
            elif isinstance(self.metric, ExactMatch):
                result = self.metric(*arguments)
            else:  # may take long, or call a judge LM
                result = await run_in_thread(lambda: self.metric(*arguments))
        except MetricError:
            raise
        except Exception as error:  # noqa: BLE001 - a user's metric may raise anything
            # An LM's error may contain its API key: report it redacted, and don't chain it.
            cause = None if is_lm_failure(error) else error
            where = "" if cause is None else place_of(error)
            raise MetricError(
                f"metric {self.name} raised {first_line(error)}{where} on {_shown(example)}"
            ) from cause
        return self.checked(result)

    def arguments(
        self,
        example: "dspy.Example",
        prediction: "dspy.Prediction",
        trace: Any = None,
        predictor: Any = None,
        predictor_trace: Any = None,
    ) -> tuple[Any, ...]:
        """The arguments to call the metric with; the fourth and fifth are None outside of GEPA."""
        return (example, prediction, trace, predictor, predictor_trace)[: self._arguments]

    def checked(self, result: Any) -> Score:
        """Convert a metric's raw result to a score; raises `MetricError` if it is not a valid one."""
        feedback = None
        if hasattr(result, "score") and not isinstance(result, numbers.Number):
            feedback = getattr(result, "feedback", None)
            result = result.score
        if hasattr(result, "item") and getattr(result, "ndim", None) == 0:
            result = result.item()  # a NumPy scalar
        if not isinstance(result, (bool, int, float)):
            hint = ": does it lack a return?" if result is None else ""
            raise MetricError(
                f"metric {self.name} returned {type(result).__name__} instead of a bool, a number in 0–1 "
                f"or dspy.Prediction(score=…){hint}"
            )
        value = float(result)
        if -_ROUNDING <= value <= 1 + _ROUNDING:
            value = min(1.0, max(0.0, value))
        if math.isnan(value):
            raise MetricError(f"metric {self.name} returned NaN: return a number in 0–1")
        if not 0.0 <= value <= 1.0:
            raise MetricError(f"metric {self.name} returned {value:g}: scale it to 0–1")
        return Score(value, None if feedback is None else str(feedback))


def _positional_arguments(metric: Metric) -> int:
    """How many of (example, prediction, trace, …) to pass: the required ones, and an optional `trace`."""
    try:
        parameters = list(inspect.signature(metric).parameters.values())
    except (TypeError, ValueError):
        return 3
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [parameter for parameter in parameters if parameter.kind in kinds]
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return max(3, len(positional))
    if len(positional) < 2:
        raise ConfigurationError(
            f"metric {getattr(metric, '__name__', metric)!s} must take (example, prediction), "
            f"but takes {len(positional)} argument{'s' * (len(positional) != 1)}"
        )
    required = sum(parameter.default is inspect.Parameter.empty for parameter in positional)
    optional_trace = len(positional) > 2 and positional[2].name in ("trace", "_trace", "_")
    return max(2, required, 3 if optional_trace else 0)


def _shown(example: "dspy.Example", limit: int = 80) -> str:
    text = str(dict(example.items())) if hasattr(example, "items") else str(example)
    return text if len(text) <= limit else text[: limit - 1] + "…"


BUILTIN_METRICS: dict[str, Metric] = {"exact_match": exact_match}


def resolve_metric(metric: Metric | str | None, *, success_threshold: float = 0.5) -> ScoredMetric:
    """A metric from a function, the name of a built-in one, or `package.module:function`; None means
    exact match on the output fields.

    Raises:
        ConfigurationError: there is no such metric, or it has the wrong signature.
    """
    if metric is None:
        metric = exact_match
    if isinstance(metric, str):
        metric = BUILTIN_METRICS.get(metric) or import_object(metric, "metric", BUILTIN_METRICS)
    return ScoredMetric(metric, success_threshold)
