"""The loan example's README, word by word."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.readme import FENCE, Shell, commands, outputs, run

ROOT = Path(__file__).parents[1]
README = ROOT / "examples/loan_approval/README.md"
_LATE = ("agentcore ·", "serving http", "$ ")
"""What a command in the background prints, sooner or later."""
_TIMES = re.compile(r"latency|throughput|%│|DURATION|rows …|^ID|\bs \(")


def facts(text: str) -> list[str]:
    """The lines that are the same each time: not those with times, or that the order of events decides."""
    return [line for line in outputs(text) if not _TIMES.search(line) and not line.startswith(_LATE)]


@pytest.mark.timeout(400)
def test_the_readme_word_by_word(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here: the example's README is not tried")
    place = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(place)], check=True)
    shutil.copytree(ROOT / "examples", place / "examples", dirs_exist_ok=True)  # as they are now
    text = README.read_text()
    # The set-up has tests of its own; here, its result.
    text = text.replace("make setup >/dev/null && export", "export").replace(
        "$PWD/.venv/bin", f"{Path(sys.executable).parent}"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTCORE_")}
    shell = Shell(place, {**environment, "COLUMNS": "110", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)})
    try:
        done = run(text, shell)
    finally:
        shell.close()
    assert "Traceback" not in done
    assert "error:" not in done
    told, found = facts(text), facts(done)
    assert found == told


def test_it_finds_commands_and_their_continuations():
    text = "```console\n$ one \\\n    two\nprinted\n$ three\n```"
    (block,) = FENCE.findall(text)
    assert list(commands(block)) == ["one \\\n    two", "three"]
