"""A process that dies between any two steps of promote and rollback: the next call finishes it, or nothing
was begun."""

import os
import signal
import subprocess
import sys

import pytest

from agentcore.registry._store import Held
from agentcore.tracking import RunTracker
from tests.registry.conftest import AGENT, QUALITY, found_aliases


class Died(BaseException):
    """Stands for the end of the process."""


class Writes:
    """Counts the journal's writes, and dies before or after one of them."""

    def __init__(self, monkeypatch, at=None, *, after=True):
        self.count = 0
        original = Held.write

        async def write(held, *events):
            self.count += 1
            if self.count == at and not after:
                raise Died
            await original(held, *events)
            if self.count == at and after:
                raise Died

        monkeypatch.setattr(Held, "write", write)


async def consistent(agent, registry, champion):
    """Alias, version, tags, history, deployment runs and ledger agree."""
    client = agent.client()
    aliases = found_aliases(agent)
    state = await registry._store.state()
    assert state.open_decision is None
    assert aliases.get("champion") == champion == state.alias("champion")
    assert aliases.get("previous") == state.alias("previous")
    history = await registry.history()
    assert not [item for item in history if item.what == "moved by hand"]
    moves = [item for item in history if item.what in ("promote", "rollback")]
    runs = await registry.experiments.tracker("deployment").search_runs()
    assert sorted(run.data.tags["model_version"] for run in runs) == sorted(item.version for item in moves)
    assert all(run.info.status == "FINISHED" for run in runs)
    versions = client.search_model_versions(f"name = '{AGENT}'")
    assert len(versions) == len({item.version for item in moves})
    prompts = client.search_model_versions(
        f"name = '{AGENT}.self' and tags.`mlflow.prompt.is_prompt` = 'true'"
    )
    decided = [item.made.decision for item in state.decisions.values() if item.made.release is not None]
    assert sorted(prompt.tags["agentcore.decision"] for prompt in prompts) == sorted(decided)
    assert (await registry.verify(champion)).sound
    paid = [look.debited.look for look in state.looks.values()]
    assert len(paid) == len(set(paid))
    evaluations = await registry.experiments.tracker("evaluation").search_runs()
    assert len(evaluations) == sum(look.decided is not None for look in state.looks.values())
    return state


@pytest.mark.parametrize("after", [True, False])
async def test_promote_dies_at_any_step(agent, monkeypatch, after):
    registry = agent.registry()
    with monkeypatch.context() as patch:
        writes = Writes(patch)
        await registry.promote(agent.weak, policy=QUALITY)
    total = writes.count
    assert total >= 7
    spent = (await registry._store.state()).spent
    # So that each round has examples.
    monkeypatch.setattr("agentcore.registry._state.RegistryState.retired", lambda self: {})

    # Before a write is after the one before it, apart from what was done in MLflow between them.
    points = range(1, total + 1) if after else (1, 2, 4, 6)
    for at in points:
        if await _champion(agent) != "1":
            await registry.rollback(to=1)
        with monkeypatch.context() as patch:
            Writes(patch, at, after=after)
            with pytest.raises(Died):
                await registry.promote(agent.strong, policy=QUALITY)
        before = (await registry._store.state()).spent
        version = await promoted(agent, registry)
        state = await consistent(agent, registry, version)
        # An interrupted look continues, and is not paid for again.
        assert state.spent == pytest.approx(before if before > spent else state.spent)
        spent = state.spent


async def promoted(agent, registry):
    """The version of the strong program, promoted now or by what finished an interrupted call."""
    done = await registry.resume()
    if any(line.startswith("finished the promotion") for line in done):
        return await _champion(agent)
    state = await registry._store.state()
    if state.alias("champion") != "1":
        return state.alias("champion")
    return (await registry.promote(agent.strong, policy=QUALITY)).version


async def _champion(agent):
    return found_aliases(agent).get("champion")


@pytest.mark.parametrize("after", [True, False])
async def test_rollback_dies_at_any_step(agent, monkeypatch, after):
    registry = agent.registry()
    await registry.promote(agent.weak, policy=QUALITY)
    await registry.promote(agent.strong, policy=QUALITY)
    with monkeypatch.context() as patch:
        writes = Writes(patch)
        await registry.rollback(to=1)
    for at in range(1, writes.count + 1):
        target = "2" if await _champion(agent) == "1" else "1"
        with monkeypatch.context() as patch:
            Writes(patch, at, after=after)
            with pytest.raises(Died):
                await registry.rollback(to=target)
        begun = (await registry._store.state()).open_decision is not None
        done = await registry.resume()
        now = await _champion(agent)
        assert (now == target) or not begun
        assert bool(done) == begun
        await consistent(agent, registry, now)


CHILD = """
import asyncio, os, signal
from agentcore.registry import GatePolicy, Registry
from agentcore.registry._store import Held
from agentcore.settings import MLflowConfig

count, original = 0, Held.write

async def write(held, *events):
    global count
    count += 1
    await original(held, *events)
    if count == {at}:
        os.kill(os.getpid(), signal.SIGKILL)

Held.write = write
config = MLflowConfig(tracking_uri={uri!r}, artifact_location={artifacts!r})
policy = GatePolicy(delta={{}}, margin=0.3, min_examples=30)
asyncio.run(Registry("colour", config).promote({run!r}, policy=policy))
"""


@pytest.mark.parametrize("at", [1, 4])
async def test_killed(agent, tmp_path, at):
    """kill -9 after the look was paid for, and after the version was made."""
    script = CHILD.format(
        at=at, uri=agent.config.tracking_uri, artifacts=agent.config.artifact_location, run=agent.weak
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        cwd=tmp_path,
        timeout=100,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    registry = agent.registry()
    before = (await registry._store.state()).spent
    assert before > 0
    if at == 1:
        found = await registry.promote(agent.weak, policy=QUALITY)
        assert found.promoted
    else:
        assert "finished the promotion: colour@champion is version 1" in await registry.resume()
    state = await consistent(agent, registry, "1")
    assert state.spent == before


async def test_answers_of_an_interrupted_look_are_not_paid_for_again(agent, monkeypatch):
    registry = agent.registry()
    from agentcore.registry import _measure

    original, asked = _measure.evaluate, []

    async def evaluate(program, examples, metric, **options):
        asked.append(len(examples) - len(options["known"]))
        return await original(program, examples, metric, **options)

    monkeypatch.setattr(_measure, "evaluate", evaluate)
    with monkeypatch.context() as patch:
        Writes(patch, 2, after=False)  # measured, not decided
        with pytest.raises(Died):
            await registry.promote(agent.weak, policy=QUALITY)
    first = sum(asked)
    assert first > 0
    found = await registry.promote(agent.weak, policy=QUALITY)
    assert found.promoted
    assert sum(asked) == first


async def test_a_look_that_nobody_finishes_stays_paid_for(agent, monkeypatch):
    registry = agent.registry()
    with monkeypatch.context() as patch:
        Writes(patch, 1)
        with pytest.raises(Died):
            await registry.promote(agent.weak, policy=QUALITY)
    first = (await registry._store.state()).spent
    assert (await registry.history())[-1].what == "look"
    (told,) = await registry.resume()
    assert "is paid for and not finished: promote that run" in told
    found = await registry.promote(agent.strong, policy=QUALITY)
    assert found.promoted
    state = await registry._store.state()
    assert state.spent == pytest.approx(first + found.alpha)
    assert [item.what for item in await registry.history()] == ["look", "promote"]


async def test_the_server_goes_away_in_the_middle(agent, monkeypatch):
    from agentcore.registry import _steps

    def away(*_):
        raise OSError("connection refused")

    registry = agent.registry()
    with monkeypatch.context() as patch:
        patch.setattr(_steps, "_move", away)
        with pytest.raises(Exception, match="connection refused"):
            await registry.promote(agent.weak, policy=QUALITY)
    assert await registry.resume() == ["finished the promotion: colour@champion is version 1"]
    await consistent(agent, registry, "1")
    assert await RunTracker(agent.config).get_run(agent.weak)
