"""Values go to JSON and come back as they were."""

import datetime
import enum
import json
import uuid
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import dspy
import numpy as np
import pytest
from pydantic import BaseModel, Field, RootModel

from agentcore._json import json_text, json_value, jsonable, kind_of, restored
from agentcore._types import parse_type, type_text
from agentcore.data import Dataset


class Shade(enum.Enum):
    RED = "red"
    TWO = 2


class Item(BaseModel):
    name: str
    when: datetime.date | None = None
    nickname: str = Field(default="", alias="nick")


class Names(RootModel[list[str]]):
    pass


class Shot(BaseModel):
    picture: dspy.Image


@dataclass
class Pair:
    one: int
    items: list[Item]


DAY = datetime.date(2024, 1, 2)
VALUES = [
    DAY,
    datetime.datetime(2024, 1, 2, 3, 4, 5, 6, datetime.UTC),
    datetime.time(1, 2),
    datetime.timedelta(days=1, seconds=3),
    Decimal("1.50"),
    uuid.UUID(int=5),
    Path("a/b"),
    b"\xff\x00",
    {1, 2},
    frozenset({"a"}),
    (1, "a"),
    [(1, 2)],
    Shade.RED,
    [Shade.TWO],
    {Shade.RED: 1},
    {"x": [Shade.RED]},
    {1: 2},
    Item(name="x", when=DAY, nick="y"),
    [Item(name="x")],
    Names(["a"]),
    Pair(1, [Item(name="z")]),
    dspy.History(messages=[{"q": "a"}]),
    dspy.Image("https://example.com/a.png"),
    Shot(picture=dspy.Image("https://example.com/a.png")),
    dspy.ToolCalls.from_dict_list([{"name": "a", "args": {"x": 1}}]),
    [None, DAY],
    {"a": 1, "b": [1, "c", {"d": None}]},
    [],
    None,
]


def find(path):
    module, _, name = path.partition(":")
    found = __import__(module, fromlist=["_"])
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back(value):
    text, kind = json_text(value), kind_of([value])
    again = json.loads(text)
    if kind is not None:
        assert parse_type(type_text(kind), find) == kind
        again = restored(again, kind)
    assert again == value
    assert type(again) is type(value)
    assert jsonable(value) == json.loads(text)


def test_the_same_text_for_equal_values():
    assert json_text({"b": {3, 1}, "a": 1}, compact=True) == '{"a":1,"b":[1,3]}'
    assert json_value({Shade.TWO: DAY}) == {"2": "2024-01-02"}
    assert json_value(np.array([1, 2])) == [1, 2]


@pytest.mark.parametrize("value", [object(), float("nan"), {"a": [lambda: 0]}])
def test_what_has_no_json(value):
    with pytest.raises((TypeError, ValueError)):
        json_value(value)
    json.dumps(jsonable(value))


class Forgetful(BaseModel):
    name: str = Field(exclude=True)


def test_types_of_a_data_set():
    data = Dataset.from_rows(
        [{"when": DAY, "n": 1, "x": [Item(name="a")], "odd": Forgetful(name="b"), "answer": Decimal(1)}]
    )
    assert data.types() == {
        "when": "'datetime:date'",
        "x": "list['tests.test_json:Item']",
        "odd": "Any  # more than its JSON says",
        "answer": "'decimal:Decimal'",
    }
