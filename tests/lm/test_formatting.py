"""Prompts written once are DSPy's own, word for word."""

import contextlib
import copy
import pickle
from typing import Literal

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from agentcore.lm import remembering

ADAPTERS = (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter)


class Judge(dspy.Signature):
    """Say whether the claim holds."""

    claim: str = dspy.InputField()
    year: int = dspy.InputField(desc="of the claim")
    reasons: list[str] = dspy.OutputField()
    verdict: Literal["yes", "no"] = dspy.OutputField()


DEMOS = [
    {"claim": "Water is wet", "year": 1990, "reasons": ["it is"], "verdict": "yes"},
    dspy.Example(claim="Ice is hot", year=1.0, verdict="no", augmented=True),
    {"claim": "Snow is white", "year": True, "verdict": "yes"},
    {"claim": "Snow is white", "year": 1, "verdict": "yes"},
    {"claim": "nothing of the outputs"},
]
INPUTS = {"claim": "Fire is cold", "year": 2024}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("demos", [[], DEMOS, DEMOS[1:], DEMOS[:1], DEMOS[2:3], DEMOS[3:4]])
def test_messages_are_dspys_own(kind, demos):
    adapter = remembering(kind())
    for signature in (Judge, Judge.with_instructions("Guess."), Judge):
        assert adapter.format(signature, demos, INPUTS) == kind().format(signature, demos, INPUTS)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_what_looks_equal_and_is_not_is_written_anew(kind):
    """1, 1.0 and True are equal to Python, and not to a reader."""
    adapter = remembering(kind())
    for value in (1, True, 1.0, 1):
        demos = [{"claim": "c", "year": value, "verdict": "yes"}]
        assert adapter.format(Judge, demos, INPUTS) == kind().format(Judge, demos, INPUTS)


def test_the_same_is_written_once(monkeypatch):
    written = []
    plain = dspy.ChatAdapter.format_demos
    monkeypatch.setattr(
        dspy.ChatAdapter, "format_demos", lambda *arguments: written.append(1) or plain(*arguments)
    )
    adapter, demos = remembering(), DEMOS[1:]
    for number in range(5):
        messages = adapter.format(Judge, demos, {**INPUTS, "year": number})
        messages[1]["content"] = "spoilt by whoever got it"
    assert len(written) == 1
    demos[0]["claim"] = "Ice is cold"  # changed in place
    assert "Ice is cold" in str(adapter.format(Judge, demos, INPUTS))
    assert len(written) == 2


@pytest.mark.parametrize("kind", ADAPTERS)
def test_callbacks_are_told_once(kind):
    class Listening(BaseCallback):
        def __init__(self):
            self.told = []

        def on_adapter_format_start(self, call_id, instance, inputs):
            self.told.append("format")

        def on_adapter_parse_start(self, call_id, instance, inputs):
            self.told.append("parse")

    plain, listening = Listening(), Listening()
    for adapter, listener in ((kind(), plain), (remembering(kind()), listening)):
        with dspy.context(callbacks=[listener]):
            adapter.format(Judge, DEMOS, INPUTS)
            with contextlib.suppress(Exception):
                adapter.parse(Judge, "nothing")
    assert listening.told == plain.told != []


def test_an_instruction_that_was_changed_in_place_counts():
    class Own(Judge):
        """First."""

    adapter = remembering()
    assert "First." in str(adapter.format(Own, DEMOS, INPUTS))
    Own.instructions = "Second."
    assert "Second." in str(adapter.format(Own, DEMOS, INPUTS))


def test_it_is_the_adapter_that_was_given():
    class Own(dspy.ChatAdapter):
        pass

    own = Own()
    assert remembering(own) is own
    given = dspy.JSONAdapter(use_native_function_calling=False)
    made = remembering(given)
    assert isinstance(made, dspy.JSONAdapter)
    for same in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert same.use_native_function_calling is False
        assert same.format(Judge, DEMOS, INPUTS) == given.format(Judge, DEMOS, INPUTS)
    assert type(given) is dspy.JSONAdapter
