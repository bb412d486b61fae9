"""The compose stack and the manifests for real, where an engine for them is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "stack"
NOTHING_TO_RUN_IT = 4
# Before the environment is cleaned for each test:
UNWANTED = os.environ.get("AGENTCORE_TEST_COMPOSE") == "0"
PLAY = os.environ.get("AGENTCORE_TEST_PLAY")


def check(script, *arguments):
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == NOTHING_TO_RUN_IT:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(1800)
def test_the_compose_stack():
    if UNWANTED:
        pytest.skip("AGENTCORE_TEST_COMPOSE=0")
    check("run.py")


@pytest.mark.timeout(1800)
def test_the_manifests():
    if not PLAY:
        pytest.skip("AGENTCORE_TEST_PLAY names no command that plays manifests with Podman")
    check("kubernetes.py", "--play", PLAY)
