"""Promotion and rollback on PostgreSQL and S3: what MLflow serves is what the alias points to."""

import json
import os
import subprocess
import sys

import dspy
import pytest

import agentcore
from agentcore.lm import offline_lm
from agentcore.registry import GatePolicy, Registry
from agentcore.settings import MLflowConfig
from tests.registry.conftest import optimized
from tests.support import colours

AGENT = "served-colour"
THINGS = [item.inputs["thing"] for item in colours(90)]

SERVED = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model("models:/served-colour@champion")
rows = [{"thing": thing} for thing in json.load(sys.stdin)]
print(json.dumps(list(model.predict(rows)["colour"])))
"""


def served(config):
    """The answers of the champion as `mlflow models serve` loads it, in a process without pickle."""
    done = subprocess.run(
        [sys.executable, "-c", SERVED],
        input=json.dumps(THINGS),
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": config.tracking_uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "AGENTCORE_LM": "offline/knn",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


async def answers(config):
    program = await agentcore.load(f"{AGENT}@champion", config=config)
    with dspy.context(lm=offline_lm()):
        return [(await program.acall(thing=thing)).colour for thing in THINGS]


@pytest.mark.timeout(240)
async def test_promote_serve_and_roll_back(own_stack, monkeypatch):
    monkeypatch.setenv("AGENTCORE_JOURNAL_URL", own_stack.journal_url)
    config = MLflowConfig(tracking_uri=own_stack.uri)
    registry = Registry(AGENT, config)
    found = []
    for k in (4, 16):
        run = await optimized(config, k, agent=AGENT)
        promotion = await registry.promote(run, policy=GatePolicy(delta={}))
        assert promotion.promoted, str(promotion)
        found.append(await answers(config))
    weak, strong = found
    assert weak != strong
    assert served(config) == strong
    await registry.rollback()
    assert served(config) == weak
    assert (await registry.verify()).sound
    assert [entry.what for entry in await registry.history()] == ["promote", "promote", "rollback"]
    assert await registry.experiments.check() == []
    objects = own_stack.client().list_objects_v2(Bucket="mlflow")["Contents"]
    assert any("program" in item["Key"] for item in objects)
