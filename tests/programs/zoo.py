"""Programs, models and data as people have them."""

import datetime
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

import dspy
from pydantic import BaseModel

from agentcore.lm import offline_lm

WORDS = {"green": "leaf grass moss", "red": "blood cherry brick", "yellow": "lemon sun butter"}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)


def rows(make: Callable[[int, str, str], dict[str, Any]], count: int = 24) -> list[dict[str, Any]]:
    """Rows about things whose words tell their colour, so that a nearest neighbour can learn it."""
    found = []
    for index in range(count):
        colour = list(WORDS)[index % 3]
        found.append(make(index, f"{WORDS[colour]} number {index}", colour))
    return found


class Shade(enum.Enum):
    GREEN = "green"
    RED = "red"
    YELLOW = "yellow"


class Item(BaseModel):
    name: str
    shade: Shade
    seen: datetime.date | None = None


class Typed(dspy.Signature):
    """Tell the shade."""

    thing: str = dspy.InputField()
    seen: datetime.date = dspy.InputField()
    price: Decimal = dspy.InputField()
    tags: set[str] = dspy.InputField()
    size: tuple[int, int] = dspy.InputField()
    shade: Shade = dspy.OutputField()


class Listing(dspy.Signature):
    """List what is there."""

    thing: str = dspy.InputField()
    items: list[Item] = dspy.OutputField()


class Chat(dspy.Signature):
    """Answer in a conversation."""

    history: dspy.History = dspy.InputField()
    thing: str = dspy.InputField()
    colour: str = dspy.OutputField()


class Picture(dspy.Signature):
    """Tell the colour in the picture."""

    picture: dspy.Image = dspy.InputField()
    thing: str = dspy.InputField()
    colour: Literal["green", "red", "yellow"] = dspy.OutputField()


class Optional_(dspy.Signature):
    """Tell the colour, if there is one."""

    thing: str = dspy.InputField()
    hint: str | None = dspy.InputField()
    colour: Literal["green", "red"] | None = dspy.OutputField()


class OwnSignature(dspy.Module):
    """Has an attribute `signature` of its own, and passes any inputs on."""

    def __init__(self) -> None:
        super().__init__()
        self.signature = "thing -> colour"
        self.step = dspy.Predict(self.signature)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.step(*args, **kwargs)


class Counting(dspy.Module):
    """Its state changes while it runs."""

    def __init__(self, tone: str = "plain") -> None:
        super().__init__()
        self.tone = tone
        self.calls = 0
        self.session = "new"
        self.step = dspy.Predict("thing, tone -> colour")

    def forward(self, thing: str, limit: int = 3) -> Any:
        self.calls += 1
        self.session = f"session-{self.calls}"
        return self.step(thing=thing, tone=self.tone)


class Renaming(dspy.Module):
    """An inner predictor's Literal has other values than the labels of the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.step = dspy.Predict(Inner)

    def forward(self, thing: str) -> Any:
        return dspy.Prediction(colour=self.step(thing=thing).colour.upper())


class Inner(dspy.Signature):
    """Tell the colour."""

    thing: str = dspy.InputField()
    colour: Literal["green", "red", "yellow"] = dspy.OutputField()


class OnlyAsync(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = dspy.Predict("thing -> colour")

    async def aforward(self, thing: str) -> Any:
        return await self.step.acall(thing=thing)


class SharedPredictor(dspy.Module):
    """Calls one predictor twice, and holds it under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.step = dspy.Predict("thing -> colour")
        self.again = self.step

    def forward(self, thing: str) -> Any:
        return self.again(thing=self.step(thing=thing).colour + " " + thing)


class Retrieval(dspy.Module):
    """Looks passages up before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.ChainOfThought("context: list[str], thing -> colour")

    def forward(self, thing: str) -> Any:
        passages = [
            f"{words} {colour}" for colour, words in WORDS.items() if set(words.split()) & set(thing.split())
        ]
        return self.answer(context=passages, thing=thing)


class NamesOfDSPy(dspy.Module):
    """Its inputs are called like DSPy's own arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.step = dspy.Predict("thing, options -> colour")

    def forward(self, thing: str, config: str, demos: list[str], lm: str, completions: str) -> Any:
        return self.step(thing=thing, options=f"{config} {lm} {completions} {len(demos)}")


class ManySteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [dspy.Predict("thing -> kind"), dspy.Predict("thing, kind -> colour")]

    def forward(self, thing: str) -> Any:
        return self.steps[1](thing=thing, kind=self.steps[0](thing=thing).kind)


class OwnAdapter(dspy.ChatAdapter):
    """Writes values by their Python types."""

    def format_user_message_content(self, signature: Any, inputs: Any, *args: Any, **kwargs: Any) -> str:
        told = ", ".join(f"{name}: {type(value).__name__}" for name, value in inputs.items())
        return f"{super().format_user_message_content(signature, inputs, *args, **kwargs)}\n({told})"


def look(thing: str) -> str:
    """Look at a thing."""
    return next(
        (colour for colour, words in WORDS.items() if set(words.split()) & set(thing.split())), "none"
    )


def reward(inputs: Any, prediction: Any) -> float:
    return float(prediction.colour in WORDS)


def ensemble() -> Any:
    return dspy.Ensemble(reduce_fn=dspy.majority).compile([dspy.Predict("thing -> colour") for _ in range(2)])


def plain(index: int, thing: str, colour: str) -> dict[str, Any]:
    return {"thing": thing, "colour": colour}


def typed(index: int, thing: str, colour: str) -> dict[str, Any]:
    return {
        "thing": thing,
        "seen": datetime.date(2024, 1, 1 + index),
        "price": Decimal(f"{index}.50"),
        "tags": {f"t{index}"},
        "size": (index, index + 1),
        "shade": Shade(colour),
    }


def listed(index: int, thing: str, colour: str) -> dict[str, Any]:
    return {"thing": thing, "items": [Item(name=colour, shade=Shade(colour), seen=datetime.date(2024, 1, 2))]}


def chatted(index: int, thing: str, colour: str) -> dict[str, Any]:
    messages = [{"thing": f"what about {index}?", "colour": "none"}]
    return {"history": dspy.History(messages=messages), "thing": thing, "colour": colour}


def pictured(index: int, thing: str, colour: str) -> dict[str, Any]:
    return {"picture": dspy.Image(PIXEL), "thing": thing, "colour": colour}


def optional(index: int, thing: str, colour: str) -> dict[str, Any]:
    hint = None if index % 2 else ""
    return {"thing": thing, "hint": hint, "colour": None if colour == "yellow" else colour}


def shouted(index: int, thing: str, colour: str) -> dict[str, Any]:
    return {"thing": thing, "colour": colour.upper()}


def reserved(index: int, thing: str, colour: str) -> dict[str, Any]:
    more = {"config": "a", "demos": ["b"], "lm": "c", "completions": "d"}
    return {"thing": thing, **more, "colour": colour}


@dataclass(frozen=True)
class Case:
    """A program and its data.

    Attributes:
        rebuilt: whether it can be loaded without an instance.
        adapter: its own DSPy adapter.
    """

    make: Callable[[], dspy.Module]
    row: Callable[[int, str, str], dict[str, Any]] = plain
    inputs: tuple[str, ...] = ("thing",)
    rebuilt: bool = True
    adapter: Callable[[], Any] | None = None
    lm: Callable[[], Any] = field(default=offline_lm)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return rows(self.row)


CASES = {
    "typed": Case(lambda: dspy.Predict(Typed), typed, ("thing", "seen", "price", "tags", "size")),
    "own adapter": Case(
        lambda: dspy.Predict(Typed), typed, ("thing", "seen", "price", "tags", "size"), adapter=OwnAdapter
    ),
    "models": Case(lambda: dspy.ChainOfThought(Listing), listed),
    "history": Case(lambda: dspy.Predict(Chat), chatted, ("history", "thing")),
    "image": Case(lambda: dspy.Predict(Picture), pictured, ("picture", "thing")),
    "optional": Case(lambda: dspy.Predict(Optional_), optional, ("thing", "hint")),
    "own signature": Case(OwnSignature),
    "counting": Case(Counting),
    "renaming": Case(Renaming, shouted),
    "only async": Case(OnlyAsync),
    "shared": Case(SharedPredictor),
    "retrieval": Case(Retrieval),
    "names of DSPy": Case(NamesOfDSPy, reserved, ("thing", "config", "demos", "lm", "completions")),
    "many steps": Case(ManySteps),
    "react": Case(lambda: dspy.ReAct("thing -> colour", tools=[look], max_iters=2), rebuilt=False),
    "ensemble": Case(ensemble, rebuilt=False),
    "best of n": Case(
        lambda: dspy.BestOfN(dspy.Predict("thing -> colour"), N=2, reward_fn=reward, threshold=1.0),
        rebuilt=False,
    ),
    "refine": Case(
        lambda: dspy.Refine(dspy.Predict("thing -> colour"), N=2, reward_fn=reward, threshold=1.0),
        rebuilt=False,
    ),
}
