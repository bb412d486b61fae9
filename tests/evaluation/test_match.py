"""The default metric compares in the type of the field, or refuses."""

import datetime
import enum
import uuid
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import dspy
import pytest
from pydantic import BaseModel, RootModel

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.errors import MetricError
from agentcore.evaluation import exact_match
from agentcore.evaluation._match import equal
from agentcore.lm import offline_lm
from tests.support import QUICK, colours


class Item(BaseModel):
    name: str
    count: int = 1


class Names(RootModel[list[str]]):
    pass


class Shade(enum.Enum):
    RED = "r"
    TWO = 2


@dataclass
class Point:
    x: int


DAY = datetime.date(2024, 1, 2)
SAME = [
    ([Item(name="x")], [{"name": "x"}]),
    ((Item(name="a"),), '[{"name": "a", "count": 1}]'),
    ({"a": [Item(name="x")]}, {"a": ({"name": " X"},)}),
    (Names(["a"]), ["A"]),
    ("5", 5.0),
    (5, " 5.0"),
    (0.1 + 0.2, "0.3"),
    (Decimal("1.50"), 1.5),
    ("1.5", Decimal("1.5")),
    (Fraction(1, 2), 0.5),
    (True, "True"),
    (True, "yes"),
    (1, True),
    ((1, 2), [1, 2]),
    ({1, 2}, [2, 1, 1]),
    (frozenset({"A"}), ["a"]),
    (["a", "b"], '["A", "b "]'),
    ([], []),
    (DAY, "2024-01-02"),
    (DAY, datetime.datetime(2024, 1, 2)),
    ({"a": DAY}, {"a": "2024-01-02"}),
    (datetime.timedelta(hours=1), "PT1H"),
    (uuid.UUID(int=1), str(uuid.UUID(int=1))),
    (Shade.RED, "r"),
    (Shade.RED, "red"),
    (Shade.TWO, "2"),
    ([Shade.TWO], [2]),
    (Point(1), {"x": 1}),
    ({1: 2}, {"1": 2}),
    (b"ab", "ab"),
    (None, None),
    ("", None),
    ("New  York", "new york"),
]
DIFFERENT = [
    ([Item(name="x")], [{"name": "y"}]),
    ([Item(name="x")], [{"name": "x", "count": 2}]),
    (Item(name="x"), "x"),
    ("5", 6.0),
    (1, "one"),
    (True, "False"),
    ("maybe", True),
    ([1, 2], [2, 1]),
    ([1], [1, 2]),
    ({1}, [1, 2]),
    ({1, 2}, {1}),
    ("a", ["a"]),
    ([1], 1),
    (DAY, "2024-01-03"),
    (DAY, "tomorrow"),
    (Shade.RED, "b"),
    ({"a": 1}, {"a": 1, "b": 2}),
    (None, "a"),
    ("a", None),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=repr)
def test_same(one, other):
    assert equal(one, other)
    assert equal(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=repr)
def test_different(one, other):
    assert not equal(one, other)
    assert not equal(other, one)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (None, "the program returned nothing: return dspy.Prediction"),
        ("green", "the program returned a str"),
        (dspy.Prediction(color="green"), "has only color"),
        (dspy.Prediction(), "has only no fields"),
    ],
)
def test_a_prediction_without_the_label(prediction, message):
    example = dspy.Example(thing="leaf", colour="green").with_inputs("thing")
    with pytest.raises(MetricError, match=message):
        exact_match(example, prediction)


class ReturnsText(dspy.Module):
    def __init__(self):
        super().__init__()
        self.step = dspy.Predict("thing -> colour")

    def forward(self, thing):
        return self.step(thing=thing).colour


class ReturnsNothing(ReturnsText):
    def forward(self, thing):
        self.step(thing=thing)


class RenamesItsOutput(ReturnsText):
    def forward(self, thing):
        return dspy.Prediction(color=self.step(thing=thing).colour)


@pytest.mark.parametrize("program", [ReturnsText, ReturnsNothing, RenamesItsOutput])
async def test_such_a_program_ends_the_run_and_is_no_run_of_zeros(program):
    lm = offline_lm()
    pipeline = OptimizationPipeline(program(), lm=lm, enable_tracking=False, max_concurrency=1)
    with pytest.raises(MetricError, match="exact_match compares the label 'colour'"):
        await pipeline.run_optimization(
            {
                "target": {"id": "x"},
                "optimizer_settings": {"miprov2": QUICK},
                "constraints": {"max_error_rate": 1},
            },
            training_data=colours(),
        )
    assert lm.engine.calls <= 2


async def test_a_metric_of_ones_own_may_take_text():
    def metric(example, prediction):
        return example.colour == prediction

    pipeline = OptimizationPipeline(ReturnsText(), metric, lm=offline_lm(), enable_tracking=False)
    result = await pipeline.run_optimization(
        {"target": {"id": "x"}, "algorithms": ["labeled_few_shot"]}, training_data=colours()
    )
    assert result.optimized_performance.quality_score == 1.0
