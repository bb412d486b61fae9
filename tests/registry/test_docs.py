"""The code in docs/gate.md and docs/experiments.md runs as written, except for names and models."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from agentcore.registry import GatePolicy
from agentcore.registry._load import LiveProgram
from tests.registry.conftest import AGENT

ROOT = Path(__file__).parents[2]


def blocks(document, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


async def execute(code, names):
    """Run code with `await` at its top level, as in a notebook."""
    compiled = compile(code, "<docs>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, names)
    if inspect.isawaitable(result):
        await result


@pytest.fixture
def configured(agent, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", agent.config.tracking_uri)
    monkeypatch.setenv("MLFLOW_ARTIFACT_LOCATION", agent.config.artifact_location)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return agent


async def test_the_gate(configured, capsys):
    await configured.registry().promote(configured.weak)
    (configured.directory / "gate.toml").write_text("[delta]\n")
    names = {}
    replaced = {
        '"support"': f'"{AGENT}"',
        '"support@champion"': f'"{AGENT}@champion"',
        'dspy.LM("openai/gpt-5-mini")': "agentcore.offline_lm()",
        'question="Where is my parcel?"': 'thing="moss piece 1"',
    }
    ran = 0
    for code in blocks("docs/gate.md"):
        if "def test_" in code:
            continue
        for old, new in replaced.items():
            code = code.replace(old, new)
        if "checks = [" in code:
            # By then the best run is the champion.
            code = code.replace('promote("best"', f'promote("{configured.weak}"')
        await execute(code, names)
        ran += 1
    assert ran == 6
    assert names["promotion"].promoted
    assert names["answer"].colour == "green"
    assert isinstance(names["live"], LiveProgram)
    assert names["plan"].planned
    printed = capsys.readouterr().out
    assert "promoted: colour@champion is version 2" in printed
    assert "unchanged since its promotion" in printed
    assert "rolled back: colour@champion is version 1" in printed


async def test_the_experiments(configured, monkeypatch, capsys):
    (configured.directory / "eval_dataset.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    names = {}
    for code in blocks("docs/experiments.md"):
        await execute(code, names)
    assert names["violations"] == []
    assert names["latest"].data.tags["domain"] == "all"
    assert names["development"] == "/Shared/health_monitor_agent_development"
    printed = capsys.readouterr().out
    assert "domain='costs': use cost, security, " in printed
    assert "(did you mean cost?)" in printed
    assert printed.splitlines().count("success") == 2


def test_the_policy_has_every_field_with_its_default():
    (text,) = blocks("docs/gate.md", "toml")
    told = tomllib.loads(text)
    assert told == GatePolicy().model_dump()
    names = set(re.findall(r"^#? ?(\w+) =", text, re.MULTILINE)) | set(re.findall(r"\[(\w+)\]", text))
    assert names >= GatePolicy.model_fields.keys()


def test_the_workflow_is_one():
    content = yaml.safe_load((ROOT / "examples/pull_request.yml").read_text())
    steps = content["jobs"]["compare"]["steps"]
    (command,) = [step["run"] for step in steps if "agentcore gate check" in step.get("run", "")]
    from typer.testing import CliRunner

    from agentcore.cli._app import app

    offered = CliRunner().invoke(app, ["gate", "check", "--help"], env={"COLUMNS": "200"}).output
    for option in re.findall(r"--[a-z-]+", command):
        assert option in offered
