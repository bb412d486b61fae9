"""Loading the champion in an application."""

import asyncio
import logging

import dspy
import pytest

import agentcore
from agentcore.errors import ConfigurationError, TrackingError
from agentcore.lm import offline_lm
from agentcore.registry import LiveProgram
from agentcore.settings import MLflowConfig
from agentcore.tracking._connection import Connection, Unreachable
from tests.registry.conftest import AGENT, QUALITY


@pytest.fixture
async def registry(agent):
    registry = agent.registry()
    await registry.promote(agent.weak, policy=QUALITY)
    return registry


def demos(program):
    return len(program.predictors()[0].demos)


async def test_aliases_and_versions(agent, registry):
    await registry.promote(agent.strong, policy=QUALITY)
    await registry.promote(agent.weak, to="staging")
    weak, strong = 4, 16
    for which, expected in (
        (AGENT, strong),
        (f"{AGENT}@champion", strong),
        (f"{AGENT}@previous", weak),
        (f"{AGENT}@staging", weak),
        (f"{AGENT}/1", weak),
        (f"{AGENT}/2", strong),
    ):
        program = await agentcore.load(which, config=agent.config)
        assert isinstance(program, dspy.Predict)
        assert demos(program) == expected, which


def test_blocking(agent):
    agent.registry().sync.promote(agent.weak, policy=QUALITY)
    assert demos(agentcore.load.sync(AGENT, config=agent.config)) == 4


@pytest.mark.parametrize("which", ["a/b", "a@3", "a@", "../x@champion", "a@b c", "a/3/4"])
async def test_malformed(agent, which):
    with pytest.raises(ConfigurationError):
        await agentcore.load(which, config=agent.config)


async def test_no_such_version(agent, registry):
    for which in (f"{AGENT}/9", f"{AGENT}@staging", "nobody@champion"):
        with pytest.raises(ConfigurationError, match="there is no"):
            await agentcore.load(which, config=agent.config)


async def test_cached_and_checked(agent, registry, monkeypatch):
    await agentcore.load(AGENT, config=agent.config)
    (cached,) = agent.directory.glob(f"state/programs/*/{AGENT}/1")
    from agentcore.registry import _load

    fetched, original = [], _load.fetch_release

    async def fetch(*arguments):
        fetched.append(arguments)
        await original(*arguments)

    monkeypatch.setattr(_load, "fetch_release", fetch)
    await agentcore.load(AGENT, config=agent.config)
    assert not fetched
    (cached / "artifacts/program/optimized_model.json").write_text("{}")
    assert demos(await agentcore.load(AGENT, config=agent.config)) == 4
    assert len(fetched) == 1
    assert not list(cached.parent.glob(".new-*"))


async def test_the_server_is_down(agent, registry, caplog, monkeypatch):
    """The last good version stays in use, and one warning says so."""
    await agentcore.load(AGENT, config=agent.config)

    def away(*_):
        raise Unreachable("MLflow can't be reached")

    monkeypatch.setattr(Connection, "run", away)
    with caplog.at_level(logging.WARNING, "agentcore"):
        program = await agentcore.load(AGENT, config=agent.config)
    assert demos(program) == 4
    (told,) = [record.getMessage() for record in caplog.records if "Continuing" in record.getMessage()]
    assert f"version 1 of {AGENT}" in told
    with pytest.raises(TrackingError):
        await agentcore.load("other", config=agent.config)


async def test_nothing_was_ever_loaded():
    config = MLflowConfig(tracking_uri="http://127.0.0.1:9", request_timeout=1)
    with pytest.raises(TrackingError):
        await agentcore.load("support", config=config)


async def test_refreshed_when_the_alias_moves(agent, registry, caplog):
    changed: asyncio.Queue = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(program):
        loop.call_soon_threadsafe(changed.put_nowait, program.version)

    live = await agentcore.load(AGENT, config=agent.config, refresh=0.05, on_change=tell)
    assert isinstance(live, LiveProgram)
    assert live.version == "1"
    await registry.promote(agent.strong, policy=QUALITY)
    assert await asyncio.wait_for(changed.get(), 20) == "2"
    assert (live.version, live.release.semantic_version, demos(live)) == ("2", "1.1.0", 16)
    with dspy.context(lm=offline_lm()):
        assert live(thing="lemon sun").colour == "yellow"
        assert (await live.acall(thing="moss")).colour == "green"
    await registry.rollback()
    assert await asyncio.wait_for(changed.get(), 20) == "1"
    live.close()


async def test_a_half_is_never_loaded(agent, registry, monkeypatch):
    from agentcore.registry import _load

    async def half(gateway, release, directory):
        (directory / "MLmodel").write_text("half")
        raise TrackingError("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(_load, "fetch_release", half)
        with pytest.raises(TrackingError):
            await agentcore.load(AGENT, config=agent.config)
    assert not list(agent.directory.glob(f"state/programs/*/{AGENT}/*"))
    assert demos(await agentcore.load(AGENT, config=agent.config)) == 4
