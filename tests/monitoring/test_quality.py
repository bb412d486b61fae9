"""The figures of an evaluation: equal to scikit-learn's, with intervals that cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from agentcore.monitoring._quality import FAILED, Labelled, measure, task_of, wilson

CLASSES = ["approved", "rejected", "manual review", "withdrawn"]


def rows_of(expected, answers):
    return [Labelled(truth, (answer,)) for truth, answer in zip(expected, answers, strict=True)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from([*CLASSES, "other"])), min_size=1))
def test_equal_to_scikit_learn(pairs):
    expected, answers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = measure(rows_of(expected, answers), "classes")
    precision, recall, f1, _ = precision_recall_fscore_support(
        expected, answers, average="macro", zero_division=0.0
    )
    assert found.figures["accuracy"] == pytest.approx(accuracy_score(expected, answers), abs=1e-12)
    assert found.figures["precision"] == pytest.approx(precision, abs=1e-12)
    assert found.figures["recall"] == pytest.approx(recall, abs=1e-12)
    assert found.figures["f1_score"] == pytest.approx(f1, abs=1e-12)
    if len(found.labels) > 1:  # scikit-learn warns of one
        assert (found.confusion == confusion_matrix(expected, answers, labels=list(found.labels))).all()
    for name, bounds in found.intervals.items():
        assert 0 <= bounds.low <= found.figures[name] + 1e-12
        assert found.figures[name] - 1e-12 <= bounds.high <= 1


def test_spelling_and_failures():
    rows = [
        Labelled("Approved", ("approved ",)),
        Labelled("Approved", (None,)),
        Labelled("rejected", ("REJECTED",)),
        Labelled("rejected", ("Approved",)),
    ]
    found = measure(rows, "classes")
    assert found.figures["accuracy"] == 0.5
    assert found.labels == ("Approved", "rejected", FAILED)
    # A failure is no class: it only counts against the class that was expected.
    assert found.per_class["Approved"]["recall"] == 0.5
    assert set(found.per_class) == {"Approved", "rejected"}


def test_every_kind_of_target():
    assert task_of([True, False] * 20) == "classes"
    assert task_of([1, 2, 3] * 20) == "classes"
    assert task_of(["a", "b"] * 20) == "classes"
    assert task_of([number / 7 for number in range(10)]) == "numbers"
    assert task_of(list(range(30))) == "numbers"
    assert task_of([f"the answer is number {number}" for number in range(8)]) == "text"
    assert task_of([f"name{number}" for number in range(30)]) == "text"


def test_numbers():
    expected = [1.5, 2.5, 10.0, 20.0]
    rows = rows_of(expected, [1.5, 3.5, "12", None])
    found = measure(rows)
    assert found.task == "numbers"
    assert found.figures["accuracy"] == 0.25
    assert found.figures["mae"] == pytest.approx(1.0)
    assert found.figures["rmse"] == pytest.approx(np.sqrt(5 / 3))
    assert found.figures["r2"] == pytest.approx(1 - 5 / np.square(np.array(expected[:3]) - 14 / 3).sum())
    assert found.intervals["mae"].low <= 1.0 <= found.intervals["mae"].high


def test_text():
    rows = rows_of(["the red car", "a blue house", "nothing"], ["The  red car", "blue boat", None])
    found = measure(rows, "text")
    assert found.figures["accuracy"] == pytest.approx(1 / 3)
    # "blue boat" shares one of its two words, and one of the three expected ones.
    assert found.figures["precision"] == pytest.approx((1 + 1 / 2) / 3)
    assert found.figures["recall"] == pytest.approx((1 + 1 / 3) / 3)
    assert found.figures["f1_score"] == pytest.approx((1 + 2 / 5) / 3)


def test_repeats_count_as_one_row():
    rows = [Labelled("a", ("a", "b")), Labelled("b", ("b", "b")), Labelled("a", ("a", "a"))] * 4
    found = measure(rows, "classes")
    assert found.figures["accuracy"] == pytest.approx(5 / 6)
    assert found.confusion.sum() == pytest.approx(12)
    assert found.per_class["a"]["support"] == pytest.approx(8)


@pytest.mark.parametrize("name", ["accuracy", "precision", "recall", "f1_score"])
def test_intervals_cover(name):
    """95 % intervals, with a rare class, over 400 draws: at least 92 % of them hold the true figure (two
    standard errors below 95 %)."""
    draw = np.random.default_rng(7)
    shares, right = np.array([0.6, 0.3, 0.1]), np.array([0.9, 0.8, 0.7])
    confusion = np.array(
        [
            [share * (rate if one == other else (1 - rate) / 2) for other in range(3)]
            for one, (share, rate) in enumerate(zip(shares, right, strict=True))
        ]
    )
    diagonal = np.diag(confusion)
    truth = {
        "accuracy": diagonal.sum(),
        "precision": float(np.mean(diagonal / confusion.sum(axis=0))),
        "recall": float(np.mean(diagonal / confusion.sum(axis=1))),
        "f1_score": float(np.mean(2 * diagonal / (confusion.sum(axis=0) + confusion.sum(axis=1)))),
    }[name]
    held = 0
    for _ in range(400):
        cells = draw.choice(9, size=150, p=confusion.ravel())
        expected, answers = [str(cell // 3) for cell in cells], [str(cell % 3) for cell in cells]
        bounds = measure(rows_of(expected, answers), "classes").intervals[name]
        held += bounds.low <= truth <= bounds.high
    assert held >= 0.92 * 400


def test_all_right_is_not_certain():
    found = measure(rows_of(["a", "b"] * 10, ["a", "b"] * 10), "classes")
    for name, bounds in found.intervals.items():
        assert bounds.high == 1.0
        assert 0.6 < bounds.low < 0.95, name


def test_wilson():
    # Newcombe 1998: 81 of 263.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0.0, 0) == (0.0, 1.0)
