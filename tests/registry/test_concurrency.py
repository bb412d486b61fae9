"""Several promoters at once."""

import asyncio
import itertools

import pytest

from agentcore.errors import ConfigurationError
from agentcore.registry import Promotion
from tests.registry.conftest import AGENT, found_aliases


async def test_many_promoters(agent):
    """One consistent history; each move of the alias has its decision."""

    calls = [agent.registry().promote(run, to="staging") for run in [agent.weak, agent.strong] * 4]
    found = await asyncio.gather(*calls, return_exceptions=True)
    moves = [item for item in found if isinstance(item, Promotion)]
    others = [item for item in found if not isinstance(item, Promotion)]
    assert all(isinstance(item, ConfigurationError) and "already" in str(item) for item in others)
    registry = agent.registry()
    history = await registry.history()
    assert len(history) == len(moves) >= 2
    assert {item.what for item in history} == {"promote"}
    for before, after in itertools.pairwise(history):
        assert after.text.startswith(f"staging: version {before.version} → version {after.version}")
    client = agent.client()
    assert found_aliases(agent) == {"staging": history[-1].version}
    assert len(client.search_model_versions(f"name = '{AGENT}'")) == len(moves)
    runs = await registry.experiments.tracker("deployment").search_runs()
    assert len(runs) == len(moves)


async def test_another_is_at_it(agent):
    registry = agent.registry(wait=0.2)
    async with registry._store.alone(5):
        with pytest.raises(ConfigurationError, match="another process is promoting"):
            await registry.promote(agent.weak)
