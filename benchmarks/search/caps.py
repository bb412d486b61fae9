"""Random caps against a server that counts: `python -m benchmarks.search.caps [--budgets 200]`.

Each budget is an optimization over HTTP with `max_lm_calls`, disturbed at random: answers that come after
the client's time-out, 429s, cancellations and kills in the middle, each followed by a resume. What counts is
how many requests the server answered, or would have answered. Exits 1 if any cap was exceeded.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

JOB = """
import asyncio, json, sys
from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.errors import AgentCoreError
from tests.dspy_optimization.test_http_lm import connect
from tests.support import AsyncClassifier, Classifier, colours, request

given = json.loads(sys.argv[1])

async def main():
    stop, left = asyncio.Event(), given["cancel_after"]

    def follow(event):
        nonlocal left
        left -= 1
        if left == 0:
            stop.set()
        print("event", event.optimization_id, flush=True)

    program = AsyncClassifier() if given["asynchronous"] else Classifier()
    lm = connect(given["url"], timeout=0.4, num_retries=given["retries"])
    pipeline = OptimizationPipeline(program, lm=lm, seed=given["seed"], max_concurrency=given["concurrency"],
                                    on_event=follow)
    constraints = {"max_lm_calls": given["cap"]}
    asked = request(constraints=constraints)
    if given["run"]:
        work = pipeline.resume(given["run"])
    else:
        work = pipeline.run_optimization(asked, training_data=colours())
    task = asyncio.create_task(work)
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
    waiting.cancel()
    try:
        result = await task
    except asyncio.CancelledError:
        print("end cancelled", flush=True)
    except AgentCoreError as error:
        print("end", type(error).__name__, str(error)[:200].replace("\\n", " "), flush=True)
    else:
        print("end", result.status, result.spend.calls, flush=True)

asyncio.run(main())
"""


def once(given: dict[str, Any], state: str, store: str, kill_after: int) -> tuple[str, str]:
    """Run a job, killed after that many events (0: not). The run's id, and how it ended."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AGENTCORE_STATE_DIR": state,
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}",
    }
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", JOB, json.dumps(given)],
        env=environment,
        cwd=state,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    run_id, ended, events = "", "killed", 0
    for line in process.stdout:
        kind, _, rest = line.strip().partition(" ")
        if kind == "event":
            run_id, events = rest, events + 1
            if events == kill_after:
                process.kill()
        elif kind == "end":
            ended = rest
    process.wait()
    return run_id, ended


def budget(number: int, server: Any, directory: Path) -> tuple[int, int, str, list[str]]:
    """Cap, answered requests, kind of fault, and how each attempt ended."""
    rng = random.Random(number)
    fault = rng.choice(("none", "slow", "429"))
    url, state = server.url(fault), directory / str(number)
    state.mkdir()
    given = {
        "url": url,
        "cap": rng.randint(40, 140),
        "seed": number,
        "concurrency": rng.choice((1, 4, 16)),
        "retries": rng.choice((0, 1, 3)),
        "asynchronous": rng.random() < 0.5,
        "run": "",
    }
    ways = []
    for last in (False, False, True):
        disturb = 0 if last else rng.randint(1, 90)
        kill = not last and rng.random() < 0.5
        given["cancel_after"] = 0 if kill else disturb
        run_id, ended = once(given, str(state), str(state / "mlflow.db"), disturb if kill else 0)
        ways.append(ended.partition(" ")[0])
        given["run"] = run_id or given["run"]
        if ended.startswith(("completed", "budget", "ConfigurationError", "RunFinished")):
            break
    asked = server.requests(url)
    return given["cap"], asked // 2 if fault == "429" else asked, fault, ways


async def all_of(count: int, server: Any, directory: Path, jobs: int) -> list[Any]:
    slots = asyncio.Semaphore(jobs)

    async def one(number: int) -> Any:
        async with slots:
            return await asyncio.to_thread(budget, number, server, directory)

    return await asyncio.gather(*map(one, range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    from tests.dspy_optimization.test_http_lm import Server

    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name, "log"))
        try:
            found = asyncio.run(all_of(chosen.budgets, server, Path(name), chosen.jobs))
        finally:
            server.stop()
    exceeded = [(cap, asked, fault, ways) for cap, asked, fault, ways in found if asked > cap]
    ends = Counter(way for *_, ways in found for way in ways)
    print(f"{len(found)} budgets, {sum(len(ways) for *_, ways in found)} attempts: {dict(ends)}")
    print(f"faults: {dict(Counter(fault for _, _, fault, _ in found))}")
    print(f"closest to its cap: {max(asked / cap for cap, asked, *_ in found):.1%}")
    print(f"exceeded: {len(exceeded)} {exceeded}")
    sys.exit(bool(exceeded))


if __name__ == "__main__":
    main()
