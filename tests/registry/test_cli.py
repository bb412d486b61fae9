"""The commands for experiments, the gate and the registry."""

import json
import re

import pytest

from agentcore.registry import GatePolicy
from tests.registry.conftest import AGENT

PROGRAM = """
import dspy
from tests.support import Classifier
program = Classifier()
class Wrong(Classifier):
    def forward(self, thing):
        return dspy.Prediction(colour="green")
wrong = Wrong()
"""


@pytest.fixture
def here(agent, monkeypatch):
    """The agent's store as the configured one, and data and programs in the working directory."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", agent.config.tracking_uri)
    monkeypatch.setenv("MLFLOW_ARTIFACT_LOCATION", agent.config.artifact_location)
    (agent.directory / "changed.py").write_text(PROGRAM)
    rows = [
        {"thing": f"{word} piece {number}", "colour": colour}
        for number in range(20)
        for word, colour in (("moss", "green"), ("brick", "red"), ("butter", "yellow"))
    ]
    (agent.directory / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return agent


def test_promote_and_back(here, command, tmp_path):
    code, told = command("promote", here.weak[:10], "--agent", AGENT)
    assert code == 2
    assert "pass --yes" in told.err
    code, told = command("promote", "--agent", AGENT, "--yes")
    assert code == 2
    assert "--best" in told.err
    code, told = command("promote", here.weak[:10], "--agent", AGENT, "--dry-run")
    assert code == 0
    assert "dry run" in told.out
    code, told = command("promote", here.weak[:10], "--agent", AGENT, "--yes")
    assert code == 0, told
    assert f"promoted: {AGENT}@champion is version 1 (1.0.0)" in told.out
    assert "measured" in told.err

    (tmp_path / "strict.toml").write_text("[delta]\navg_cost = 0.1\n")
    code, told = command("promote", "--best", "--agent", AGENT, "--yes", "--policy", "strict.toml")
    assert code == 1
    assert "rejected by the gate" in told.out
    (tmp_path / "gate.toml").write_text("[delta]\n")
    code, told = command("promote", "--best", "--agent", AGENT, "--yes", "--json")
    assert code == 0
    assert json.loads(told.out)["version"] == "2"
    code, told = command("rollback", AGENT, "--yes")
    assert code == 0
    assert "rolled back: colour@champion is version 1" in told.out
    code, told = command("history", AGENT)
    assert code == 0
    assert told.out.count("promote") >= 2
    assert "refused" in told.out
    code, told = command("history", AGENT, "--json")
    entries = json.loads(told.out)
    assert [item["what"] for item in entries] == ["promote", "refused", "promote", "rollback"]
    code, told = command("verify", f"{AGENT}@champion")
    assert (code, "unchanged since its promotion" in told.out) == (0, True)
    here.client().set_model_version_tag(AGENT, "2", "verdict", "other")
    code, told = command("verify", f"{AGENT}/2", "--json")
    assert code == 1
    assert not json.loads(told.out)["sound"]
    code, told = command("gate", "show", AGENT, entries[1]["look"][:8], "--yes")
    assert code == 0
    assert "challenger" in told.out
    code, told = command("promote", "--agent", AGENT, "--resume")
    assert (code, "nothing was left unfinished" in told.out) == (0, True)


def test_aliases_moved_by_hand(here, command):
    command("promote", here.weak, "--agent", AGENT, "--yes", "--to", "staging")
    command("promote", here.strong, "--agent", AGENT, "--yes", "--to", "staging")
    here.client().set_registered_model_alias(AGENT, "staging", "1")
    code, told = command("promote", here.strong, "--agent", AGENT, "--yes", "--to", "staging")
    assert code == 3
    assert "somebody moved it without AgentCore" in told.err.replace("\n", " ")
    code, told = command("history", AGENT, "--adopt", "--alias", "staging")
    assert code == 0
    assert "adopted" in told.out


def test_a_change_in_ci(here, command, tmp_path):
    here.registry().sync.promote(here.strong)
    arguments = ("--agent", AGENT, "--data", "data.jsonl", "--lm", "offline/knn", "--report", "comment.md")
    code, told = command("gate", "check", "changed:wrong", *arguments)
    assert code == 1
    assert "rejected" in told.out
    comment = (tmp_path / "comment.md").read_text()
    assert comment.startswith(f"### {AGENT}: rejected")
    assert "Broken: 40 examples" in comment
    code, told = command("gate", "check", "changed:program", *arguments, "--json")
    assert json.loads(told.out)["verdict"] in ("reject", "inconclusive")
    code, told = command("gate", "check", "changed:nothing", *arguments)
    assert code == 2


def test_experiments(here, command):
    code, told = command("experiments", "check", "other")
    assert code == 1
    assert "does not exist" in told.out
    code, told = command("experiments", "init", "other")
    assert code == 0
    assert "/Shared/other_development" in told.out
    code, told = command("experiments", "check", "other")
    assert (code, "follow the layout" in told.out) == (0, True)
    code, told = command("experiments", "check", AGENT, "--json")
    assert {item["rule"] for item in json.loads(told.out)} == {"experiments"}
    assert command("experiments", "init", "a/b")[0] == 2


def test_no_history(here, command):
    code, told = command("history", "nobody")
    assert (code, "no history here" in told.out) == (0, True)
    code, told = command("rollback", "nobody", "--yes")
    assert code == 2
    assert "Traceback" not in told.err


def test_the_plugin(here, pytester):
    here.registry().sync.promote(here.strong)
    pytester.makepyfile(
        f"""
        import sys
        sys.path.insert(0, {str(here.directory)!r})
        from agentcore.registry import GatePolicy
        from changed import wrong, program

        def test_wrong(champion_gate):
            champion_gate({AGENT!r}, wrong, {str(here.directory / "data.jsonl")!r}, lm="offline/knn")

        def test_same(champion_gate):
            import agentcore
            same = agentcore.load.sync({AGENT!r})
            found = champion_gate(
                {AGENT!r}, same, {str(here.directory / "data.jsonl")!r}, lm="offline/knn",
                policy=GatePolicy(delta={{}}, margin=0.9),
            )
            assert found.fixed == found.broken == ()
        """
    )
    done = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-p", "no:xdist", "--agentcore-report", str(here.directory / "comment.md")
    )
    done.assert_outcomes(failed=2)
    comment = (here.directory / "comment.md").read_text()
    assert comment.count(f"### {AGENT}: ") == 2


async def test_comments_hold_no_markup(here):
    registry = here.registry()
    await registry.promote(here.strong)
    from changed import wrong  # noqa: F401 - in the working directory

    rows = [
        {"thing": f"brick | `x` <img src=x> @team {n} https://evil.example", "colour": "red"}
        for n in range(30)
    ]
    import sys

    program = sys.modules["changed"].wrong
    found = await registry.compare(program, rows, lm="offline/knn", policy=GatePolicy(delta={}))
    text = found.markdown()
    for line in text.splitlines():
        outside = re.sub(r"`[^`]*`", "", line)
        assert not re.search(r"img|team|brick|evil", outside), line
    (row,) = [line for line in text.splitlines() if "team 3 " in line]
    assert len(re.split(r"(?<!\\)\|", row)) == 5


def test_commands_know_the_agent(here, command, monkeypatch):
    code, told = command("runs", "--agent", AGENT)
    assert code == 0
    assert told.out.count("better") == 2
    code, told = command("runs")
    assert "no runs in experiment 'dspy-optimization'" in told.out
    code, told = command("best", "--agent", AGENT, "--experiment", "other")
    assert (code, "not both" in told.err) == (2, True)
    monkeypatch.setenv("AGENTCORE_AGENT", AGENT)
    code, told = command("best")
    assert code == 0, told
    short = re.findall(r"show\s+(\w+)", told.out)[-1]
    code, told = command("promote", short, "--agent", AGENT, "--yes", "--to", "staging")
    assert code == 0, told
    code, told = command("history", AGENT, "--json")
    assert [item["run"] for item in json.loads(told.out)] == [short]
    code, told = command("journal", "ls")
    assert [line.split()[1] for line in told.out.splitlines() if line].count("registry") == 1
    assert "resumable" not in told.out
    code, told = command("journal", "prune", "--older-than", "0d")
    code, told = command("history", AGENT, "--json")
    assert len(json.loads(told.out)) == 1


def test_an_optimization_says_how_to_promote_it(here, command):
    data = str(here.directory / "data.jsonl")
    code, told = command(
        *("optimize", "thing -> colour", "--data", data, "--lm", "offline/knn", "--agent", AGENT),
        *("--optimizer", "labeled_few_shot", "--sealed", "5"),
    )
    assert code == 0, told
    assert f"runs --agent {AGENT}" in told.out
    assert f"--agent {AGENT} ·" in " ".join(told.out.split())
