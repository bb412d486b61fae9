"""What a run will take, told before it takes anything."""

import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.optimizers import available_optimizers
from agentcore.errors import ConfigurationError, DataError
from agentcore.evaluation import gain_that_can_show
from agentcore.lm import offline_lm
from tests.dspy_optimization.test_optimizers import SMALL
from tests.dspy_optimization.test_search import TwoSteps
from tests.support import AsyncClassifier, colours, request


def pipeline(program=None, lm=None, **values):
    return OptimizationPipeline(
        program or AsyncClassifier(), lm=lm or offline_lm(), enable_tracking=False, **values
    )


@pytest.mark.parametrize("program", [AsyncClassifier, TwoSteps])
@pytest.mark.parametrize("name", available_optimizers())
async def test_no_stage_takes_more_than_was_told(name, program):
    asked = {"target": {"id": "x"}, "algorithms": [name], "optimizer_settings": {name: SMALL[name]}}
    lm = offline_lm()
    plan = await pipeline(program(), lm).plan(asked, colours(60))
    assert lm.engine.calls == 0
    result = await pipeline(program(), lm).run_optimization(asked, training_data=colours(60))
    told = dict(plan.calls)
    if name == "simba":  # its proposals are made by its own thread: on the account with the trials
        told["trials"] += told.pop("proposals")
    if name in ("copro", "gepa"):
        told["trials"] += told.pop("proposals", 0)
    for stage, spend in result.spend_by_stage.items():
        assert spend.calls <= 1.05 * told[stage], stage
    assert plan.total_calls <= 4 * result.spend.calls
    assert 0.3 < plan.tokens / result.spend.total_tokens < 6


async def test_prices_give_a_cost_and_unknown_ones_none():
    asked = request()
    free = await pipeline().plan(asked, colours())
    assert (free.cost_usd, free.unpriced) == (0.0, ())
    priced = await pipeline(prices={"offline/knn": (1, 2)}).plan(asked, colours())
    assert priced.tokens / 1e6 < priced.cost_usd < 2 * priced.tokens / 1e6
    unknown = offline_lm()
    unknown.model = "own/model"
    told = await pipeline(lm=unknown).plan(asked, colours())
    assert (told.cost_usd, told.unpriced) == (None, ("own/model",))


async def test_time_is_the_calls_over_the_limit_and_the_longest_chain():
    asked = request(settings={"auto": "light"})
    slow = await pipeline(max_concurrency=1).plan(asked, colours(), latency=2.0)
    assert slow.seconds >= 2.0 * slow.total_calls
    fast = await pipeline(max_concurrency=10_000).plan(asked, colours(), latency=2.0)
    assert 20 < fast.seconds < slow.seconds / 5
    assert (await pipeline(lm=offline_lm(latency=0.25)).plan(asked, colours())).latency == 0.25
    assert (await pipeline(lm=offline_lm()).plan(asked, colours(), latency=0.5)).latency == 0.5


async def test_a_mistake_is_found_before_anything_runs():
    with pytest.raises(ConfigurationError, match="no optimizer 'nothing'"):
        await pipeline().plan({"target": {"id": "x"}, "algorithms": ["nothing"]}, colours())
    with pytest.raises(DataError):
        await pipeline().plan(request(), [])


def test_the_gain_that_can_show_shrinks_with_the_test_split():
    assert gain_that_can_show(59) == pytest.approx(0.184, abs=0.001)
    # (1.960 + 0.842)² · 0.25 / 0.05² = 785 examples show 5 points by the normal approximation.
    assert gain_that_can_show(785) == pytest.approx(0.05, abs=0.002)


def test_a_test_split_that_is_too_small_shows_no_gain():
    """Of 30 examples, 7.5 change on average, and the test needs 6 of 6."""
    assert [gain_that_can_show(count) for count in (5, 6, 20, 30)] == [None] * 4
    assert gain_that_can_show(31) == pytest.approx(0.246, abs=0.001)


def test_repeats_help_and_clusters_cost():
    alone = gain_that_can_show(200)
    assert gain_that_can_show(200, repeats=3) < alone < gain_that_can_show(200, clusters=20)
    assert gain_that_can_show(200, clusters=200) == alone
