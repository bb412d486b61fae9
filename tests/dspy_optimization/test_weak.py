"""Models that mostly can't: programs start all the same, and what a proposer can't give is left out."""

import dataclasses
import re

import dspy
import pytest
from dspy.lm15 import Message

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.errors import EvaluationError, LMUnavailableError
from agentcore.lm import offline_lm
from agentcore.lm.offline import OfflineEngine
from tests.dspy_optimization.test_optimizers import SMALL
from tests.support import AsyncClassifier, Classifier, colours

OUTPUTS = ["observations", "summary", "program_description", "module_description", "proposed_instruction"]


def weak_lm(unusable):
    """The offline engine, whose answers to some prompts can't be parsed."""
    lm = offline_lm()
    finish = OfflineEngine._finish

    def _finish(request, failing):
        made = finish(lm.engine, request, failing)
        system = request.system if isinstance(request.system, str) else ""
        outputs = system.partition("Your output fields are:")[2]
        if unusable(outputs, " ".join(message.text or "" for message in request.messages)):
            return dataclasses.replace(made, message=Message.assistant("well, you know"))
        return made

    lm.engine._finish = _finish
    return lm


async def optimize(lm, name="miprov2", program=None, settings=None, **constraints):
    pipeline = OptimizationPipeline(program or AsyncClassifier(), lm=lm, enable_tracking=False)
    return await pipeline.run_optimization(
        {
            "target": {"id": "x"},
            "algorithms": [name],
            "optimizer_settings": {name: settings or SMALL[name]},
            "constraints": constraints,
        },
        training_data=colours(60),
    )


def zero_shot(outputs, messages):
    """Only prompts without demonstrations fail."""
    return "colour" in outputs and messages.count("[[ ## thing ## ]]") < 2 and '"thing"' not in messages


async def test_a_baseline_that_cannot_be_parsed_is_measured_as_it_is():
    result = await optimize(weak_lm(zero_shot), "labeled_few_shot", max_error_rate=1)
    assert result.measured_baseline.quality_score == 0.0
    assert result.optimized_performance.quality_score > 0.9
    assert result.verdict == "better"


async def test_the_message_says_which_value_would_do():
    with pytest.raises(
        EvaluationError, match=r"max_error_rate=0.1. .* set max_error_rate to 1 \(--max-error"
    ):
        await optimize(weak_lm(zero_shot), "labeled_few_shot")


@pytest.mark.parametrize("name", sorted(SMALL))
async def test_an_outage_is_told_apart(name):
    lm = offline_lm(error_rate=1.0, num_retries=0)
    with pytest.raises(LMUnavailableError, match="language model failed"):
        await optimize(lm, name, max_error_rate=1)


@pytest.mark.parametrize("field", [*OUTPUTS, ""], ids=lambda field: field or "all")
@pytest.mark.parametrize("mode", ["concurrent", "dspy"])
async def test_what_a_proposer_cannot_give_is_left_out(field, mode):
    lm = weak_lm(
        lambda outputs, _: bool(re.search(rf"`\w*{field}\w*`", outputs)) and "`colour`" not in outputs
    )
    result = await optimize(lm, settings={**SMALL["miprov2"], "mode": mode})
    assert result.status == "completed"
    assert result.optimized_performance.quality_score > 0.9
    told = [message for message in result.warnings if "gave no usable answer" in message]
    if field in ("observations", "summary", "proposed_instruction") and mode == "concurrent":
        assert len(told) == 1


@pytest.mark.parametrize("name", ["copro", "simba", "gepa"])
async def test_dspys_own_optimizers_too(name):
    lm = weak_lm(lambda outputs, _: "`colour`" not in outputs)
    result = await optimize(lm, name)
    assert result.status == "completed"
    assert len(result.optimization_details["trials"]) >= 1


class NeverRight(Classifier):
    def forward(self, thing):
        self.predict(thing=thing)
        raise ValueError("no success")


@pytest.mark.parametrize("name", sorted(SMALL))
async def test_a_program_that_always_fails_ends_with_a_result(name):
    result = await optimize(offline_lm(), name, NeverRight(), max_error_rate=1)
    assert result.status == "completed"
    assert result.measured_baseline.quality_score == result.optimized_performance.quality_score == 0.0


async def test_no_success_leaves_labelled_demonstrations():
    lm = weak_lm(lambda outputs, messages: "`colour`" in outputs and "seven" in messages)
    program = dspy.Predict("thing -> colour")
    result = await optimize(lm, "bootstrap_random_search", program, max_error_rate=1)
    assert result.optimized_performance.quality_score > 0.9
