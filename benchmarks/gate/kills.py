"""kill -9 between any two steps of a promotion and a rollback: `python -m benchmarks.gate.kills [CALL]`.

A step is a request that changes something in MLflow, or a commit of the journal. Before and after each, the
process that promotes or rolls back is killed; then `resume` and, if nothing was decided, the same call again
must leave alias, versions, tags, history, deployment runs and ledger in agreement. Prints the table of
docs/gate.md, and exits 1 if they ever disagree.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from agentcore.registry import GatePolicy, Registry
from agentcore.registry._models import aliases
from agentcore.registry._state import RegistryState
from benchmarks.gate.agent import Made, agent_on_stack
from tests.registry.conftest import AGENT

POLICY = GatePolicy(delta={}, lifetime_alpha=0.2)

CHILD = """
import asyncio, os, signal
import requests
from agentcore.registry import GatePolicy, Registry
from agentcore.registry._state import RegistryState
from agentcore.registry._store import Held
from agentcore.settings import MLflowConfig

at, after, count = {at}, {after}, 0

def step(when):
    global count
    if when == "before":
        count += 1
    if count == at and (when == "after") == after:
        os.kill(os.getpid(), signal.SIGKILL)

send, write = requests.Session.send, Held.write

def counted_send(session, request, **options):
    if request.method == "GET":
        return send(session, request, **options)
    step("before")
    reply = send(session, request, **options)
    step("after")
    return reply

async def counted_write(held, *events):
    step("before")
    await write(held, *events)
    step("after")

requests.Session.send, Held.write = counted_send, counted_write
RegistryState.retired = lambda self: {{}}  # each point needs examples
policy = GatePolicy(delta={{}}, lifetime_alpha=0.2)
registry = Registry("colour", MLflowConfig(tracking_uri={uri!r}))
asyncio.run({call})
print("steps", count)
"""


def child(made: Made, call: str, at: int, *, after: bool) -> subprocess.CompletedProcess[str]:
    text = CHILD.format(at=at, after=after, uri=made.stack.uri, call=call)
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=300, env=os.environ.copy()
    )


async def disagreements(made: Made, registry: Registry) -> list[str]:
    """What does not agree."""
    found, state = [], await registry._store.state()
    if state.open_decision is not None:
        found.append("a decision is left open")
    named = await registry.gateway.call(lambda client: aliases(client, AGENT))
    found += [
        f"{alias} is {named.get(alias)}, but {state.alias(alias)} in the journal"
        for alias in ("champion", "previous")
        if named.get(alias) != state.alias(alias)
    ]
    history = await registry.history()
    moves = [item for item in history if item.what in ("promote", "rollback")]
    tracker = registry.experiments.tracker("deployment")
    await tracker.flush()
    runs = await tracker.search_runs("", 10_000)
    if sorted(run.data.tags["model_version"] for run in runs) != sorted(item.version for item in moves):
        found.append(f"{len(runs)} deployment runs, {len(moves)} moves")
    if any(run.info.status != "FINISHED" for run in runs):
        found.append("a deployment run is not finished")
    versions = await registry.gateway.call(lambda client: client.search_model_versions(f"name = '{AGENT}'"))
    if len(versions) != len({item.version for item in moves}):
        found.append(f"{len(versions)} versions, {len({item.version for item in moves})} in the history")
    for version in (state.alias("champion"), state.alias("previous")):
        if version is not None and not (await registry.verify(version)).sound:
            found.append(f"version {version} was changed after its promotion")
    evaluations = await registry.experiments.tracker("evaluation").search_runs("", 10_000)
    if len(evaluations) != sum(look.decided is not None for look in state.looks.values()):
        found.append(f"{len(evaluations)} evaluation runs")
    return found


async def recovered(registry: Registry, before: RegistryState, call: Any) -> tuple[list[str], bool]:
    """Resume, and call again if nothing was decided; whether it had to be called again."""
    await registry.resume()
    state = await registry._store.state()
    if len(state.decisions) > len(before.decisions):
        return [], False
    paid = state.spent
    await call(registry)
    state = await registry._store.state()
    twice = paid > before.spent and state.spent > paid + 1e-12
    return (["the look was paid for twice"] if twice else []), True


async def reset(registry: Registry) -> None:
    if (await registry._store.state()).alias("champion") != "1":
        await registry.rollback(to=1)


def matrix(made: Made, title: str, call: str, action: Any) -> bool:
    asyncio.run(reset(Registry(AGENT, made.config)))
    whole = child(made, call, 0, after=False)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout.split()[-1])
    asyncio.run(reset(Registry(AGENT, made.config)))
    found: Counter[str] = Counter()
    points = killed = again = 0
    begun = time.monotonic()
    for at in range(1, steps + 1):
        for after in (False, True):
            registry = Registry(AGENT, made.config)
            before = asyncio.run(registry._store.state())
            done = child(made, call, at, after=after)
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            points, killed = points + 1, killed + (done.returncode != 0)
            registry = Registry(AGENT, made.config)
            problems, repeated = asyncio.run(recovered(registry, before, action))
            problems += asyncio.run(disagreements(made, Registry(AGENT, made.config)))
            again += repeated
            found.update(problems)
            if problems:
                print(f"{title}, step {at}, {'after' if after else 'before'}: {problems}", file=sys.stderr)
            asyncio.run(reset(Registry(AGENT, made.config)))
    seconds = (time.monotonic() - begun) / max(1, points)
    print(f"| {title} | {steps} | {points} ({killed}) | {again} | {sum(found.values())} | {seconds:.1f} s |")
    return not found


def main() -> None:
    with agent_on_stack() as made:
        RegistryState.retired = lambda self: {}  # type: ignore[method-assign]
        registry = Registry(AGENT, made.config)
        assert asyncio.run(registry.promote(made.weak, policy=POLICY)).promoted
        print(
            "| call | steps | kills (hit) | called again | disagreements | per kill |\n"
            "|---|---|---|---|---|---|"
        )
        actions: dict[str, Any] = {
            f"registry.promote({made.strong!r}, policy=policy)": lambda registry: registry.promote(
                made.strong, policy=POLICY
            ),
            "registry.rollback(to=2)": lambda registry: registry.rollback(to=2),
        }
        sound = True
        for call, action in actions.items():
            title = call.partition("(")[0].removeprefix("registry.")
            if title == "rollback":  # it goes to a version that has been champion
                asyncio.run(Registry(AGENT, made.config).promote(made.strong, policy=POLICY))
            if not sys.argv[1:] or title in sys.argv[1:]:
                sound &= matrix(made, title, call, action)
    sys.exit(not sound)


if __name__ == "__main__":
    main()
