"""Programs, data and servers that several tests use."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import dspy

from agentcore.data import Dataset
from agentcore.dspy_optimization import OptimizationRequest
from agentcore.lm import Control, Guard, of_run

#: Small and quick: few candidates, few trials.
QUICK = {"auto": None, "num_candidates": 3, "num_trials": 3, "minibatch": False, "max_labeled_demos": 8}


class Colour(dspy.Signature):
    """Name the colour of the thing."""

    thing: str = dspy.InputField()
    colour: Literal["green", "red", "yellow"] = dspy.OutputField()


class Classifier(dspy.Module):
    """A program with `forward` only."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(Colour)

    def forward(self, thing: str) -> Any:
        return self.predict(thing=thing)


class AsyncClassifier(Classifier):
    async def aforward(self, thing: str) -> Any:
        return await self.predict.acall(thing=thing)


class TwoSteps(dspy.Module):
    """A program of two predictors."""

    def __init__(self) -> None:
        super().__init__()
        self.describe = dspy.Predict("thing -> kind")
        self.name = dspy.Predict("thing, kind -> colour")

    def forward(self, thing: str) -> Any:
        return self.name(thing=thing, kind=self.describe(thing=thing).kind)


def colours(count: int = 45) -> Dataset:
    """Things whose words tell the colour, so that a nearest neighbour can learn it."""
    words = {"green": "leaf grass moss", "red": "blood cherry brick", "yellow": "lemon sun butter"}
    rows = []
    for index in range(count):
        colour = list(words)[index % 3]
        rows.append({"thing": f"{words[colour]} number {index}", "colour": colour})
    return Dataset.from_rows(rows, input_fields=["thing"], name="colours")


def request(target: str = "colours", **values: Any) -> OptimizationRequest:
    settings = values.pop("settings", QUICK)
    return OptimizationRequest.model_validate(
        {
            "target": {"type": "component", "id": target},
            "optimizer_settings": {"miprov2": settings},
            **values,
        }
    )


@contextlib.contextmanager
def watched(control: Control, guard: Guard) -> Iterator[None]:
    """Calls in the block are of a run with this control and this guard."""
    with of_run(control), guard.watching():
        yield
