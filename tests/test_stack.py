"""The compose stack for real, where a Docker engine is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "stack" / "run.py"
UNWANTED = os.environ.get("AGENTCORE_TEST_COMPOSE") == "0"  # before the environment is cleaned for each test


@pytest.mark.timeout(1500)
def test_the_compose_stack():
    if UNWANTED:
        pytest.skip("AGENTCORE_TEST_COMPOSE=0")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    if done.returncode == 4:
        pytest.skip("no Docker engine here")
    assert done.returncode == 0, done.stdout + done.stderr
