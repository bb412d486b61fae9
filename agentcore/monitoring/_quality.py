"""How good predictions are: of classes, numbers or text, each figure with its 95% interval."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import stats

from agentcore._json import json_text
from agentcore.data import fold
from agentcore.evaluation import Interval, equal, mean_interval

Task = Literal["classes", "numbers", "text"]

FAILED = "(failed)"
"""What stands for the answer of a row that the agent failed on; wrong for every class."""
_MANY_CLASSES = 20
_TEXT_WORDS = 4
_Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Labelled:
    """One row: what was expected, and what the agent answered in each of its runs; None is a failure."""

    expected: Any
    answers: tuple[Any, ...]


@dataclass(frozen=True)
class Quality:
    """The figures of a set of rows, with the interval of each figure that has one.

    Attributes:
        per_class: precision, recall, F1 and support by class.
        labels: the classes, in the order of `confusion`.
        confusion: rows by expected class (first axis) and answered class; runs count by their share.
        values: the contribution of each row to `accuracy`, 0–1.
        errors: of numbers, the absolute error of each row with a number.
        counts: of classes, what the macro figures are made of.
    """

    task: Task
    figures: dict[str, float]
    intervals: dict[str, Interval]
    values: list[float]
    per_class: dict[str, dict[str, Any]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    confusion: "np.ndarray | None" = None
    errors: tuple[float, ...] = ()
    counts: "_Counts | None" = None

    def macro(self, name: str, labels: Sequence[str]) -> tuple[float, Interval]:
        """Precision, recall or F1 as the mean over some of the classes, with its interval."""
        if self.counts is None:
            raise ValueError("only classes have macro figures")
        chosen = self.counts.only([self.labels.index(label) for label in labels])
        shares, _ = chosen.influence(name)
        return float(shares.mean()), _macro(chosen.bounds()[name], chosen.influence(name))

    @property
    def expected(self) -> tuple[str, ...]:
        """The classes that some row expects."""
        return tuple(label for label, part in self.per_class.items() if part["support"] > 0)


def task_of(expected: Sequence[Any]) -> Task:
    """What the expected answers are: numbers if they are numeric with a fraction or more than 20 values, text
    if most differ and there are more than 20 or they have several words, else classes."""
    distinct = {json_text(value) for value in expected}
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in expected)
    if numeric and (len(distinct) > _MANY_CLASSES or any(float(value) % 1 for value in expected)):
        return "numbers"
    words = float(np.mean([len(str(value).split()) for value in expected]))
    varied = len(distinct) > len(expected) / 2
    return "text" if varied and (len(distinct) > _MANY_CLASSES or words >= _TEXT_WORDS) else "classes"


def measure(rows: Sequence[Labelled], task: Task | None = None) -> Quality:
    """The figures of rows; by default, the task is inferred from the expected answers.

    Accuracy is the share of right answers, with the exact interval of Clopper and Pearson (1934) or, with
    several runs per row, that of `mean_interval`.
    """
    task = task or task_of([row.expected for row in rows])
    if task == "classes":
        return _classes(rows)
    return _numbers(rows) if task == "numbers" else _text(rows)


def proportion_interval(values: Sequence[float]) -> Interval:
    """95% interval of a mean of values in 0–1: exact (Clopper and Pearson) if all are 0 or 1."""
    if not all(value in (0.0, 1.0) for value in values):
        return mean_interval(values)
    found = stats.binomtest(int(sum(values)), len(values)).proportion_ci(0.95, "exact")
    return Interval(float(found.low), float(found.high))


def wilson(share: float, total: float) -> Interval:
    """Wilson's (1927) 95% interval of a proportion; the whole range if there is no observation."""
    if total <= 0:
        return Interval(0.0, 1.0)
    middle = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z / (1 + _Z**2 / total) * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    return Interval(max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)))


def _right(rows: Sequence[Labelled]) -> list[float]:
    return [
        sum(answer is not None and equal(row.expected, answer) for answer in row.answers) / len(row.answers)
        for row in rows
    ]


def _classes(rows: Sequence[Labelled]) -> Quality:
    """Macro-averaged over the classes that were expected or answered, as scikit-learn does."""
    from sklearn.metrics import precision_recall_fscore_support

    known: dict[Hashable, str] = {}
    for row in rows:
        known.setdefault(json_text(row.expected), _name(row.expected))
    originals = {json_text(row.expected): row.expected for row in rows}
    expected, answered, weights, position = [], [], [], []
    for number, row in enumerate(rows):
        for answer in row.answers:
            expected.append(known[json_text(row.expected)])
            answered.append(_class_of(row.expected, answer, originals))
            weights.append(1 / len(row.answers))
            position.append(number)
    labels = sorted({*expected, *answered} - {FAILED})
    precision, recall, f1, support = precision_recall_fscore_support(
        expected, answered, labels=labels, zero_division=0.0, sample_weight=weights
    )
    values = _right(rows)
    figures = {
        "accuracy": float(np.mean(values)),
        "precision": float(np.mean(precision)),
        "recall": float(np.mean(recall)),
        "f1_score": float(np.mean(f1)),
    }
    counts = _Counts.of(expected, answered, labels, np.asarray(weights), np.asarray(position), len(rows))
    intervals = {"accuracy": proportion_interval(values)}
    bounds = counts.bounds()
    for name, found in bounds.items():
        intervals[name] = _macro(found, counts.influence(name))
    shown = [*labels, FAILED] if FAILED in answered else labels
    return Quality(
        "classes",
        figures,
        intervals,
        values,
        {
            label: {
                "precision": float(precision[number]),
                "recall": float(recall[number]),
                "f1_score": float(f1[number]),
                "support": float(support[number]),
                **{f"{name}_interval": tuple(found[number]) for name, found in bounds.items()},
            }
            for number, label in enumerate(labels)
        },
        tuple(shown),
        _confusion(expected, answered, weights, shown),
        counts=counts,
    )


def _confusion(
    expected: Sequence[str], answered: Sequence[str], weights: Sequence[float], labels: Sequence[str]
) -> "np.ndarray":
    index = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)))
    for truth, answer, weight in zip(expected, answered, weights, strict=True):
        counts[index[truth], index[answer]] += weight
    return counts


def _name(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)


def _class_of(expected: Any, answer: Any, originals: Mapping[str, Any]) -> str:
    """The class that an answer is, whatever its case or spaces, or the answer itself."""
    if answer is None:
        return FAILED
    if equal(expected, answer):
        return _name(expected)
    return next((_name(value) for value in originals.values() if equal(value, answer)), _name(answer))


@dataclass(frozen=True)
class _Counts:
    """By row and class: the share of runs that are true positives, false positives and false negatives."""

    right: "np.ndarray"
    falsely: "np.ndarray"
    missed: "np.ndarray"

    @classmethod
    def of(
        cls,
        expected: Sequence[str],
        answered: Sequence[str],
        labels: Sequence[str],
        weights: "np.ndarray",
        position: "np.ndarray",
        rows: int,
    ) -> "_Counts":
        index = {label: number for number, label in enumerate(labels)}
        right, falsely, missed = (np.zeros((rows, len(labels))) for _ in range(3))
        for truth, answer, weight, row in zip(expected, answered, weights, position, strict=True):
            if truth == answer:
                right[row, index[truth]] += weight
                continue
            missed[row, index[truth]] += weight
            if answer in index:
                falsely[row, index[answer]] += weight
        return cls(right, falsely, missed)

    def only(self, classes: Sequence[int]) -> "_Counts":
        """Some of the classes."""
        return _Counts(self.right[:, classes], self.falsely[:, classes], self.missed[:, classes])

    def _parts(self, name: str) -> tuple["np.ndarray", "np.ndarray"]:
        """Numerator and denominator of a figure by row and class. F1 is 2j/(1 + j) of the share
        j = TP/(TP + FP + FN)."""
        others = {
            "precision": self.falsely,
            "recall": self.missed,
            "f1_score": self.falsely + self.missed,
        }[name]
        return self.right, self.right + others

    def bounds(self) -> dict[str, list[Interval]]:
        """Wilson's interval of each figure by class."""
        found = {}
        for name in ("precision", "recall", "f1_score"):
            hits, total = (part.sum(axis=0) for part in self._parts(name))
            shares = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
            each = [wilson(float(share), float(size)) for share, size in zip(shares, total, strict=True)]
            found[name] = [_as_f1(item) for item in each] if name == "f1_score" else each
        return found

    def influence(self, name: str) -> tuple["np.ndarray", "np.ndarray"]:
        """Each class's figure, and how each row moves it."""
        hits, total = self._parts(name)
        sums = total.sum(axis=0)
        shares = np.divide(hits.sum(axis=0), sums, out=np.zeros(sums.shape), where=sums > 0)
        moved = hits - shares * total
        if name == "f1_score":
            return 2 * shares / (1 + shares), moved
        return shares, moved


def _as_f1(share: Interval) -> Interval:
    low, high = (2 * bound / (1 + bound) for bound in share)
    return Interval(low, high)


def _macro(bounds: Sequence[Interval], influence: tuple["np.ndarray", "np.ndarray"]) -> Interval:
    """The interval of a mean of classes' figures from the interval of each (MOVER: Zou and Donner 2008), with
    the correlations between classes as observed; 1 where nothing was observed, which is the widest."""
    shares, moved = influence
    size = np.sqrt((moved**2).sum(axis=0))
    products = moved.T @ moved
    norms = np.outer(size, size)
    related = np.divide(products, norms, out=np.ones_like(products), where=norms > 0)
    count = len(bounds)
    below = np.array([share - bound.low for share, bound in zip(shares, bounds, strict=True)]) / count
    above = np.array([bound.high - share for share, bound in zip(shares, bounds, strict=True)]) / count
    # A sum of many is nearly symmetric, whatever each of its parts is.
    even = (below**2 + above**2) / 2
    below, above = (np.sqrt(own**2 / count + even * (1 - 1 / count)) for own in (below, above))
    mean = float(shares.mean())
    low = mean - math.sqrt(max(0.0, float(below @ related @ below)))
    high = mean + math.sqrt(max(0.0, float(above @ related @ above)))
    return Interval(max(0.0, low), min(1.0, high))


def _numbers(rows: Sequence[Labelled]) -> Quality:
    """Errors of the rows with a numeric answer: mean absolute, root mean square, and R² (1 − the sum of
    squared errors over that of the expected values around their mean)."""
    values = _right(rows)
    figures = {"accuracy": float(np.mean(values))}
    intervals = {"accuracy": proportion_interval(values)}
    errors, expected = [], []
    for row in rows:
        found = [number for answer in row.answers if (number := number_in(answer)) is not None]
        if found:
            errors.append(float(np.mean(found)) - float(row.expected))
            expected.append(float(row.expected))
    if errors:
        squared, around = np.square(errors), np.square(np.array(expected) - np.mean(expected))
        figures["mae"] = float(np.mean(np.abs(errors)))
        figures["rmse"] = float(np.sqrt(squared.mean()))
        if around.sum() > 0:
            figures["r2"] = float(1 - squared.sum() / around.sum())
        intervals["mae"] = _t_interval(np.abs(errors))
        low, high = _t_interval(squared)
        intervals["rmse"] = Interval(math.sqrt(low), math.sqrt(high))
    return Quality("numbers", figures, intervals, values, errors=tuple(map(abs, errors)))


def number_in(answer: Any) -> float | None:
    """An answer as a finite number; None if it is none."""
    if isinstance(answer, bool) or answer is None:
        return None
    try:
        found = float(answer)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _t_interval(values: "np.ndarray") -> Interval:
    """Student's 95% interval of a mean that can't be negative."""
    if values.size < 2:
        return Interval(0.0, math.inf)
    half = float(stats.t.ppf(0.975, values.size - 1)) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return Interval(max(0.0, float(values.mean()) - half), float(values.mean()) + half)


def _text(rows: Sequence[Labelled]) -> Quality:
    """Shared words of answer and expected text, as SQuAD counts them (Rajpurkar et al. 2016), averaged over
    the rows; accuracy is the share of equal texts, apart from case and spaces."""
    values = _right(rows)
    shared = [np.mean([_words(str(row.expected), answer) for answer in row.answers], axis=0) for row in rows]
    columns = {
        name: [float(item[number]) for item in shared]
        for number, name in enumerate(("precision", "recall", "f1_score"))
    }
    columns = {"accuracy": values, **columns}
    return Quality(
        "text",
        {name: float(np.mean(column)) for name, column in columns.items()},
        {name: proportion_interval(column) for name, column in columns.items()},
        values,
    )


def _words(expected: str, answer: Any) -> tuple[float, float, float]:
    if answer is None:
        return 0.0, 0.0, 0.0
    wanted, given = fold(expected).split(), fold(str(answer)).split()
    if not wanted or not given:
        same = float(wanted == given)
        return same, same, same
    common = sum(min(given.count(word), wanted.count(word)) for word in set(wanted))
    precision, recall = common / len(given), common / len(wanted)
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    return precision, recall, f1
