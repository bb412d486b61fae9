"""A predictor that has a model of its own is optimized and measured with it."""

import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.lm import offline_lm
from tests.support import QUICK, AsyncClassifier, TwoSteps, colours, request

SETTINGS = {
    "labeled_few_shot": {"k": 8},
    "miprov2": QUICK,
    "bootstrap_random_search": {"num_candidate_programs": 2, "max_labeled_demos": 4},
    "simba": {"num_candidates": 2, "max_steps": 1, "bsize": 8},
}


@pytest.mark.parametrize("algorithm", SETTINGS)
async def test_every_call_of_the_program_is_its_models(algorithm):
    """The pipeline's model only proposes, where a proposal is asked of any."""
    own, pipelines, proposer = offline_lm(), offline_lm(), offline_lm()
    program = AsyncClassifier()
    program.predict.lm = own
    result = await OptimizationPipeline(
        program, lm=pipelines, prompt_lm=proposer, enable_tracking=False
    ).run_optimization(
        request(algorithms=[algorithm], optimizer_settings={algorithm: SETTINGS[algorithm]}),
        training_data=colours(45),
    )
    assert pipelines.engine.calls == 0
    assert own.engine.calls > 0
    assert result.spend.calls == own.engine.calls + proposer.engine.calls
    assert result.program.predict.lm.engine is own.engine


async def test_so_it_is_with_one_of_two_predictors():
    own, pipelines = offline_lm(), offline_lm()
    program = TwoSteps()
    program.name.lm = own
    result = await OptimizationPipeline(program, lm=pipelines, enable_tracking=False).run_optimization(
        request(algorithms=["labeled_few_shot"], optimizer_settings={"labeled_few_shot": {"k": 4}}),
        training_data=colours(30),
    )
    assert result.program.name.lm.engine is own.engine
    assert own.engine.calls == pipelines.engine.calls > 0
