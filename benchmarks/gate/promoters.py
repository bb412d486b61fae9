"""Twenty promoters from four processes on one journal in PostgreSQL: `python -m benchmarks.gate.promoters`.

Each process promotes and rolls back at random; meanwhile somebody moves the alias in MLflow. Prints the
outcomes, and exits 1 unless history and aliases agree and every move that AgentCore did not make was noticed.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter

from mlflow import MlflowClient

from agentcore.registry import GatePolicy, Registry
from agentcore.registry._models import aliases
from benchmarks.gate.agent import Made, agent_on_stack
from tests.registry.conftest import AGENT

PROCESSES, CALLERS, MOVES = 4, 5, 3

CHILD = """
import asyncio, json, random, sys
from agentcore.errors import AgentCoreError, AliasMovedError
from agentcore.registry import Registry
from agentcore.settings import MLflowConfig

rng, outcomes = random.Random({seed}), []

async def caller(number):
    registry = Registry("colour", MLflowConfig(tracking_uri={uri!r}), wait=300)
    for _ in range(3):
        run = rng.choice({runs!r})
        try:
            if rng.random() < 0.3:
                await registry.rollback()
                outcomes.append("rolled back")
            else:
                await registry.promote(run, rng.choice(["staging", "production"]), force="benchmark")
                outcomes.append("promoted")
        except AliasMovedError:
            outcomes.append("noticed")
            try:
                await registry.adopt("champion")
                outcomes.append("adopted")
            except AgentCoreError as error:
                assert "nothing to adopt" in str(error), error
        except AgentCoreError as error:
            assert "already" in str(error) or "no earlier champion" in str(error), error
            outcomes.append("was there already")

async def main():
    async with asyncio.TaskGroup() as group:
        for number in range({callers}):
            group.create_task(caller(number))

asyncio.run(main())
print(json.dumps(outcomes))
"""


def promoters(made: Made) -> list[str]:
    """The outcome of every call; the alias is moved once by hand meanwhile."""
    children = [
        subprocess.Popen(
            [
                *(sys.executable, "-c"),
                CHILD.format(seed=seed, uri=made.stack.uri, runs=[made.weak, made.strong], callers=CALLERS),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ.copy(),
        )
        for seed in range(PROCESSES)
    ]
    client, moved, last = MlflowClient(made.stack.uri), 0, time.monotonic()
    while any(child.poll() is None for child in children):
        time.sleep(0.2)
        versions = sorted(int(item.version) for item in client.search_model_versions(f"name = '{AGENT}'"))
        if len(versions) >= 3 and moved < MOVES and time.monotonic() - last > 5:
            # Neither the newest nor the current one: nobody else moves it there at this moment.
            champion = int(client.get_registered_model(AGENT).aliases.get("champion", 0))
            target = next(number for number in versions if number != champion)
            client.set_registered_model_alias(AGENT, "champion", str(target))
            moved, last = moved + 1, time.monotonic()
    assert moved, "too few versions were made to move the alias by hand"
    print(f"moved by hand {moved} times")
    texts = [child.communicate()[0] for child in children]
    assert all(child.returncode == 0 for child in children), "a promoter failed"
    return [outcome for text in texts for outcome in json.loads(text)]


async def agreed(made: Made) -> list[str]:
    """What does not agree afterwards."""
    registry = Registry(AGENT, made.config)
    await registry.resume()
    state, history = await registry._store.state(), await registry.history()
    named = await registry.gateway.call(lambda client: aliases(client, AGENT))
    problems = [
        f"{alias} is {named.get(alias)}, but {state.alias(alias)} in the journal"
        for alias in ("champion", "staging")
        if named.get(alias) != state.alias(alias)
    ]
    for alias in ("champion", "staging"):
        moves = [item for item in history if item.alias == alias and "given up" not in item.text]
        for before, after in itertools.pairwise(moves):
            begins = f"{alias}: version {before.version} →"
            if after.what != "adopted" and not after.text.startswith(begins):
                problems.append(f"{after.text!r} follows version {before.version}")
    tracker = registry.experiments.tracker("deployment")
    await tracker.flush()
    runs = await tracker.search_runs("", 10_000)
    moves = [item for item in history if item.what in ("promote", "rollback") and "given up" not in item.text]
    if len(runs) != len(moves):
        problems.append(f"{len(runs)} deployment runs, {len(moves)} moves")
    return problems


def main() -> None:
    with agent_on_stack() as made:
        asyncio.run(Registry(AGENT, made.config).promote(made.weak, policy=GatePolicy(delta={})))
        begun = time.monotonic()
        outcomes = Counter(promoters(made))
        seconds = time.monotonic() - begun
        problems = asyncio.run(agreed(made))
    told = ", ".join(f"{number} {what}" for what, number in outcomes.most_common())
    print(f"{PROCESSES * CALLERS} promoters in {PROCESSES} processes, {seconds:.0f} s: {told}")
    print(f"disagreements: {problems or 'none'}")
    noticed = outcomes["noticed"] > 0 or outcomes["adopted"] > 0
    sys.exit(bool(problems) or not noticed)


if __name__ == "__main__":
    main()
