"""Demonstrations of any type are saved so that they prompt as before, or the program is not saved."""

import datetime
import enum
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import dspy
import pytest
from pydantic import BaseModel

from agentcore.errors import ArtifactError
from agentcore.tracking import dump_demos, load_demos, load_program, program_attributes, save_program
from agentcore.tracking._demos import messages_of
from tests.programs.zoo import PIXEL, look


class Colour(enum.Enum):
    red = "r"
    two = 2


class Level(enum.IntEnum):
    LOW = 1


class Inner(BaseModel):
    when: datetime.date
    colour: Colour


class Outer(BaseModel):
    inner: Inner
    more: list[Inner] = []


@dataclass
class Point:
    x: int
    colour: Colour


WHEN = datetime.datetime(2024, 1, 2, 3, 4, tzinfo=datetime.UTC)
INNER = Inner(when=WHEN.date(), colour=Colour.red)
VALUES: list[tuple[Any, Any]] = [
    (Colour, Colour.red),
    (list[Colour], [Colour.red, Colour.two]),
    (Level, Level.LOW),
    (Literal["a", "b"], "a"),
    (datetime.datetime, WHEN),
    (datetime.timedelta, datetime.timedelta(hours=1)),
    (Decimal, Decimal("1.50")),
    (set[str], {"b"}),  # in which order Python goes through several is not ours to keep
    (tuple[int, str], (1, "x")),
    (bytes, b"text"),
    (Inner, INNER),
    (Outer, Outer(inner=INNER, more=[INNER])),
    (list[Outer], [Outer(inner=INNER)]),
    (dict[str, Inner], {"a": INNER}),
    (Point, Point(1, Colour.red)),
    (dspy.Image, dspy.Image(PIXEL)),
    (list[dspy.Image], [dspy.Image(PIXEL)]),
    (dspy.Audio, dspy.Audio(data="AAAA", audio_format="wav")),
    (dspy.Code["python"], dspy.Code(code="print(1)")),
    (dspy.History, dspy.History(messages=[{"thing": "x", "answer": "y"}])),
    (list[dspy.Tool], [dspy.Tool(look)]),
    (dspy.ToolCalls, dspy.ToolCalls.from_dict_list([{"name": "look", "args": {"thing": "x"}}])),
    (Colour | None, None),
    (Any, {"nested": [INNER, Colour.red]}),
    (str, Colour.red),
    (str, [Colour.red, "b"]),
    (str, WHEN),
]
# Not by value: a set's text differs between processes.
IDS = [f"{number}-{str(kind).rpartition('.')[2]}" for number, (kind, _) in enumerate(VALUES)]


def program_for(kind, value):
    fields = {
        "thing": (str, dspy.InputField()),
        "value": (kind, dspy.InputField()),
        "answer": (str, dspy.OutputField()),
    }
    program = dspy.Predict(dspy.Signature(fields, "Answer."))
    program.demos = [dspy.Example(augmented=True, thing="one", value=value, answer="yes")]
    return program


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=IDS)
def test_a_demonstration_is_saved_and_loaded(tmp_path, kind, value):
    program = program_for(kind, value)
    inputs = {"thing": "two", "value": value}
    save_program(program, tmp_path, example=inputs)
    fresh = program_for(kind, value)
    fresh.demos = []
    again = load_program(tmp_path, program=fresh)
    assert str(messages_of(again, inputs)) == str(messages_of(program, inputs))
    assert again.demos


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=IDS)
def test_and_in_the_journals_steps(kind, value):
    program = program_for(kind, value)
    stored = dump_demos(program.demos)
    fresh = program_for(kind, value)
    fresh.demos = load_demos(stored, f"{__name__}:x")
    assert str(messages_of(fresh, {"thing": "two", "value": value})) == str(
        messages_of(program, {"thing": "two", "value": value})
    )


class Odd(dspy.ChatAdapter):
    """Writes what no file can keep: the identity of a value."""

    def format_demos(self, signature: Any, demos: Any) -> Any:
        return [{"role": "user", "content": str([id(demo["value"]) for demo in demos])}]


def test_a_difference_is_an_error(tmp_path):
    program = program_for(str, "some text that is not interned")
    with dspy.context(adapter=Odd()), pytest.raises(ArtifactError, match="was not saved: after reloading"):
        save_program(program, tmp_path)


def test_only_constructor_arguments_say_what_a_program_is():
    class Program(dspy.Module):
        def __init__(self, tone="calm", secret_key="x"):
            super().__init__()
            self.tone, self.secret_key, self.calls = tone, secret_key, 3
            self.step = dspy.Predict("a -> b")

    assert program_attributes(Program()) == {"attributes": {"self.tone": "calm"}, "state": {"self.calls": 3}}
