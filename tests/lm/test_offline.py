"""The offline engine, always through DSPy's own adapters: what it reads is what they write."""

import asyncio
from collections import Counter
from typing import Literal

import dspy
import pytest

from agentcore.data import load_builtin
from agentcore.lm import collect_spend, offline_lm
from agentcore.lm.offline import NOTHING_TO_GO_BY, OfflineEngine, answer, count_tokens

ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()]


class Flower(dspy.Signature):
    """Describe the flower."""

    length: float = dspy.InputField()
    note: str = dspy.InputField()
    kind: Literal["big, blue", "small (red)"] = dspy.OutputField()
    petals: int = dspy.OutputField()
    wild: bool = dspy.OutputField()
    tags: list[str] = dspy.OutputField()


DEMOS = [
    dspy.Example(length=1.0, note="by the\nriver", kind="small (red)", petals=4, wild=True, tags=["a", "b"]),
    dspy.Example(length=9.0, note="in a garden", kind="big, blue", petals=8, wild=False, tags=[]),
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
@pytest.mark.parametrize("wanted", [0, 1])
def test_answers_as_the_nearest_demonstration_with_typed_values(adapter, wanted):
    program = dspy.Predict(Flower)
    program.demos = DEMOS
    with dspy.context(lm=offline_lm(), adapter=adapter):
        found = program(length=DEMOS[wanted].length + 0.5, note=DEMOS[wanted].note)
    assert {name: found[name] for name in ("kind", "petals", "wild", "tags")} == {
        name: DEMOS[wanted][name] for name in ("kind", "petals", "wild", "tags")
    }


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_incomplete_demonstrations_are_used_for_what_they_have(adapter):
    program = dspy.Predict(Flower)
    program.demos = [DEMOS[1], dspy.Example(length=1.0, note="river", petals=4)]
    with dspy.context(lm=offline_lm(), adapter=adapter):
        found = program(length=1.0, note="river")
    assert (found.petals, found.kind) == (4, "big, blue")


def test_text_is_compared_by_its_words():
    program = dspy.Predict("question -> answer")
    program.demos = [
        dspy.Example(question="What is the capital of France?", answer="Paris"),
        dspy.Example(question="How many legs does a spider have?", answer="8"),
    ]
    with dspy.context(lm=offline_lm()):
        assert program(question="how many legs has a spider").answer == "8"
        assert program(question="name France's capital").answer == "Paris"


def test_without_demonstrations_it_picks_by_the_inputs_near_chance():
    """Whatever the instruction says: a zero-shot gain would be made up."""
    data = load_builtin("iris")
    fields = {name: (float, dspy.InputField()) for name in data.input_fields}
    fields["species"] = (Literal["setosa", "versicolor", "virginica"], dspy.OutputField())
    programs = [dspy.Predict(dspy.Signature(fields, text)) for text in ("Classify.", "You are an expert.")]
    with dspy.context(lm=offline_lm()):
        first, second = ([program(**item.inputs).species for item in data] for program in programs)
    assert first == second
    right = sum(found == item.values["species"] for found, item in zip(first, data, strict=True))
    assert 0.2 < right / len(data) < 0.47
    assert len(Counter(first)) == 3


def test_without_demonstrations_free_text_says_so():
    with dspy.context(lm=offline_lm()):
        assert dspy.Predict("question -> answer")(question="x").answer == NOTHING_TO_GO_BY


def test_proposals_are_put_together_from_the_data_shown():
    from dspy.propose import GroundedProposer

    train = load_builtin("iris").split().train.dspy()
    fields = {name: (float, dspy.InputField()) for name in load_builtin("iris").input_fields}
    program = dspy.Predict(
        dspy.Signature(
            {**fields, "species": (Literal["setosa", "versicolor", "virginica"], dspy.OutputField())},
            "Tell the species.",
        )
    )
    lm = offline_lm()
    with dspy.context(lm=lm):
        proposer = GroundedProposer(prompt_model=lm, program=program, trainset=train)
        (proposed,) = proposer.propose_instructions_for_program(train, program, {0: [[]]}, {}, 1)[0]
    assert "Tell the species." in proposed
    assert "species takes the values setosa, versicolor, virginica" in proposed
    assert "averages" in proposed


def test_other_prompts_get_an_honest_reply():
    assert "not a large language model" in offline_lm()("hello")[0]
    assert "not a large language model" in answer("", [("user", "hello")])


def test_usage_counts_tokens_and_costs_nothing():
    with collect_spend() as sink, dspy.context(lm=offline_lm()):
        dspy.Predict("question -> answer")(question="one two three")
    assert sink.spend.calls == 1
    assert sink.spend.input_tokens > 50
    assert sink.spend.output_tokens > 5
    assert sink.spend.cost_usd == 0.0
    assert count_tokens("Don't stop!") == 5


async def test_latency_does_not_block_and_calls_are_counted_over_copies():
    lm = offline_lm(latency=0.2)
    program = dspy.Predict("question -> answer")
    started = asyncio.get_running_loop().time()
    with dspy.context(lm=lm.copy()):
        async with asyncio.TaskGroup() as group:
            for index in range(8):
                group.create_task(program.acall(question=str(index)))
    assert asyncio.get_running_loop().time() - started < 8 * 0.2
    assert lm.engine.calls == 8


def test_error_rate_raises_retryable_errors_by_its_seed():
    def outcomes(seed: int) -> list[bool]:
        program = dspy.Predict("question -> answer")
        found = []
        with dspy.context(lm=offline_lm(error_rate=0.5, seed=seed, num_retries=0)):
            for index in range(20):
                try:
                    program(question=str(index))
                    found.append(True)
                except dspy.LMServerError:
                    found.append(False)
        return found

    assert outcomes(1) == outcomes(1)
    assert 4 < sum(outcomes(1)) < 16
    assert outcomes(1) != outcomes(2)


@pytest.mark.parametrize("values", [{"latency": -1}, {"error_rate": 1.5}, {"error_rate": -0.1}])
def test_settings_are_checked(values):
    with pytest.raises(ValueError, match="latency must be"):
        OfflineEngine(**values)


def test_a_program_with_the_engine_saves_and_loads(tmp_path):
    program = dspy.Predict("question -> answer")
    program.lm = offline_lm(latency=0.25)
    program.save(tmp_path / "program.json")
    loaded = dspy.Predict("question -> answer")
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert loaded.lm.engine.latency == 0.25


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
@pytest.mark.parametrize(
    "text",
    ["a < b & c", "two\n\nlines", "see [[ ## note ## ]]", "Respond with care", "</x>", '"ä" — “q”', "{}"],
)
def test_awkward_text_comes_back_as_it_was(adapter, text):
    program = dspy.Predict("question -> answer")
    program.demos = [
        dspy.Example(question="one thing", answer=text),
        dspy.Example(question="two", answer="no"),
    ]
    with dspy.context(lm=offline_lm(), adapter=adapter):
        assert program(question="one thing").answer == text
