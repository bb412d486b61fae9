"""A frozen canary: rows with recorded answers, which tell a changed model from changed inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from agentcore.data import StoredDataset
from agentcore.errors import DataError
from agentcore.evaluation import Interval, equal, paired_test
from agentcore.monitoring._measure import Data
from agentcore.monitoring._models import EvaluationMetrics

_ANSWER, _RIGHT, _STABLE = "agentcore_answer", "agentcore_right", "agentcore_stable"
CHANGED_ALPHA = 0.0025
"""Of each of the two tests of whether the model has changed."""


def canary_name(agent: str) -> str:
    """The name of an agent's canary data set."""
    return f"{agent}_canary"


@dataclass(frozen=True)
class CanaryResult:
    """The canary's answers now against those recorded.

    Attributes:
        changed: rows with another answer than recorded.
        unstable: rows on which the two recorded runs differed: what to expect from the same model.
        answers_p_value: of the answers: the exact test of whether more rows have changed than were unstable.
        recorded_accuracy: of the recorded answers.
        accuracy_change: now minus recorded, with its 95% interval.
        accuracy_p_value: of its paired test, two-sided.
    """

    rows: int
    changed: int
    unstable: int
    answers_p_value: float
    recorded_accuracy: float
    accuracy_change: float
    accuracy_interval: Interval
    accuracy_p_value: float

    @property
    def model_changed(self) -> bool:
        """Whether the agent no longer answers as it did, whatever the current data are."""
        return min(self.answers_p_value, self.accuracy_p_value) < CHANGED_ALPHA

    def __str__(self) -> str:
        told = "the model has changed" if self.model_changed else "no change of the model is shown"
        return (
            f"Canary: {self.changed} of {self.rows} answers differ from those recorded; {self.unstable} "
            f"differed between the two recorded runs. Accuracy {self.accuracy_change:+.3f}: {told}."
        )


@dataclass(frozen=True)
class Canary:
    """Rows with recorded answers."""

    data: Data
    answers: Sequence[Any]
    right: Sequence[float]
    stable: Sequence[bool]

    def compared(self, now: EvaluationMetrics) -> CanaryResult:
        """Compare what the agent answers now.

        If the model hasn't changed, the second recorded answer and the new one are equally likely to differ
        from the first. The rows where exactly one of them does therefore split like coin tosses.
        """
        kept = [number for number, row in enumerate(now.rows) if row.score is not None]
        differs = {number: not equal(self.answers[number], now.rows[number].answer) for number in kept}
        newly = sum(differs[number] and self.stable[number] for number in kept)
        formerly = sum(not differs[number] and not self.stable[number] for number in kept)
        tested = paired_test([float(now.rows[number].score or 0) - self.right[number] for number in kept])
        return CanaryResult(
            len(kept),
            sum(differs.values()),
            sum(not self.stable[number] for number in kept),
            float(stats.binom.sf(newly - 1, newly + formerly, 0.5)),
            sum(self.right[number] for number in kept) / len(kept),
            tested.difference,
            tested.interval,
            tested.p_value,
        )


def freeze(
    first: EvaluationMetrics, second: EvaluationMetrics, data: Data, target: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a canary from two runs, and their lineage."""
    if len(first.rows) < 20:
        raise DataError(
            f"{data.name} has {len(first.rows)} rows: a canary needs at least 20, and 200 to notice a change "
            "in a tenth of the answers"
        )
    rows = [
        {
            **row,
            _ANSWER: one.answer,
            _RIGHT: one.score or 0.0,
            _STABLE: equal(one.answer, two.answer),
        }
        for row, one, two in zip(data.rows, first.rows, second.rows, strict=False)
        if one.score is not None and two.score is not None
    ]
    return rows, {"canary_of": {"name": data.name, "digest": data.digest}, "target_field": target}


def frozen(stored: StoredDataset, target: str) -> Canary:
    """The canary that a data set holds.

    Raises:
        DataError: it is none, or was recorded for another target.
    """
    rows = stored.to_list()
    recorded = stored.lineage.get("target_field")
    if recorded not in (None, target):
        raise DataError(
            f"{stored.full_name} was recorded for the target {recorded!r}, not {target!r}: freeze another "
            "canary for this target, and name it with canary="
        )
    if not rows or any(name not in rows[0] for name in (_RIGHT, _STABLE)):
        raise DataError(f"{stored.full_name} is no canary: make one with ModelEvaluator.freeze_canary")
    own = (_ANSWER, _RIGHT, _STABLE)
    return Canary(
        Data(
            stored.full_name,
            stored.digest,
            [{name: value for name, value in row.items() if name not in own} for row in rows],
            frozenset(stored.personal),
        ),
        [row.get(_ANSWER) for row in rows],
        [float(row[_RIGHT]) for row in rows],
        [bool(row[_STABLE]) for row in rows],
    )
