"""Promote, `mlflow models serve`, roll back, serve again: `python -m benchmarks.gate.serve`.

On PostgreSQL and S3, with MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false. Exits 1 unless the served answers are
those of the program that the alias points to.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import agentcore
from agentcore.lm import offline_lm
from agentcore.registry import GatePolicy, Registry
from benchmarks.gate.agent import Made, agent_on_stack
from tests.registry.conftest import AGENT
from tests.support import colours
from tests.support.ports import free_port

POLICY = GatePolicy(delta={})


def served(made: Made, things: list[str]) -> list[str]:
    """The answers of `mlflow models serve -m models:/colour@champion`."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{AGENT}@champion"),
            *("--port", str(port), "--env-manager", "local", "--workers", "1"),
        ],
        env={
            **os.environ,
            # The command starts uvicorn by its name.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "MLFLOW_TRACKING_URI": made.stack.uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "AGENTCORE_LM": "offline/knn",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return _asked(f"http://127.0.0.1:{port}/invocations", things, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _asked(url: str, things: list[str], process: "subprocess.Popen[bytes]") -> list[str]:
    body = json.dumps({"inputs": [{"thing": thing} for thing in things]}).encode()
    asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(asked, timeout=60) as reply:
                return [row["colour"] for row in json.load(reply)["predictions"]]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
        except OSError:
            assert process.poll() is None, "mlflow models serve has ended"
            assert time.monotonic() < deadline
            time.sleep(0.5)


async def answers(program: Any, things: list[str]) -> list[str]:
    import dspy

    with dspy.context(lm=offline_lm()):
        return [(await program.acall(thing=thing)).colour for thing in things]


def main() -> None:
    things = [item.inputs["thing"] for item in colours(600)][-200:]
    with agent_on_stack() as made:
        registry = Registry(AGENT, made.config)
        print(asyncio.run(registry.promote(made.weak, policy=POLICY)))
        weak = asyncio.run(answers(agentcore.load.sync(f"{AGENT}@champion", config=made.config), things))
        print(asyncio.run(registry.promote(made.strong, policy=POLICY)))
        strong = asyncio.run(answers(agentcore.load.sync(f"{AGENT}@champion", config=made.config), things))
        promoted = served(made, things)
        print(asyncio.run(registry.rollback()))
        back = served(made, things)
    differ = sum(one != other for one, other in zip(weak, strong, strict=True))
    print(f"the two programs differ in {differ} of {len(things)} answers")
    print(f"served after the promotion: {sum(map(str.__eq__, promoted, strong))} of {len(things)} equal")
    print(f"served after the rollback: {sum(map(str.__eq__, back, weak))} of {len(things)} equal")
    sys.exit(not (differ and promoted == strong and back == weak))


if __name__ == "__main__":
    main()
