"""No API key anywhere: a sentinel key is looked for in every byte that a run leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEY = "sk-sentinel-A1b2C3d4E5f6G7h8"
ENVIRONMENT_KEY = "env-sentinel-Z9y8X7w6V5u4"

SCRIPT = """
import asyncio, logging, sys
import dspy
from agentcore import OptimizationPipeline
from agentcore.errors import AgentCoreError
from tests.dspy_optimization.test_http_lm import Server
from tests.support import AsyncClassifier, colours, request
from pathlib import Path

logging.basicConfig(level=logging.DEBUG, filename="debug.log")
server = Server(Path("server.log"))
program = AsyncClassifier()
lm = dspy.LM("openai/x", api_base=server.url(sys.argv[1], int(sys.argv[2])), api_key=sys.argv[3],
             cache=False, num_retries=0)
if sys.argv[4] == "own":
    program.predict.lm = lm

def metric(example, prediction, trace=None):
    return example.colour == prediction.colour

try:
    pipeline = OptimizationPipeline(program, metric, lm)
    result = pipeline.sync.run_optimization(request(), training_data=colours())
    print(result, result.program)
except AgentCoreError as error:
    import traceback
    traceback.print_exc()
finally:
    server.stop()
"""


@pytest.mark.parametrize("own", ["own", "context"])
@pytest.mark.parametrize(
    ("fault", "after", "outcome"), [("none", 0, "completed"), ("401", 0, "failed"), ("401", 20, "failed")]
)
def test_the_key_is_in_no_byte_of_what_a_run_leaves(migrated_store, tmp_path, own, fault, after, outcome):
    """The server repeats the key in its 401, as providers do."""
    import shutil

    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        "OPENAI_API_KEY": ENVIRONMENT_KEY,
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, fault, str(after), KEY, own],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
    )
    output = done.stdout + done.stderr
    assert (b"status='completed'" in done.stdout) == (outcome == "completed"), output
    if outcome == "failed":
        assert b"LMUnavailableError" in output
        assert b"[redacted]" in output
    looked_at = 0
    # DSPy and HTTP libraries' own debug log is not ours to redact.
    for path in [*tmp_path.rglob("*")]:
        if path.is_file() and path.name not in ("debug.log", "server.log"):
            content = path.read_bytes()
            looked_at += 1
            assert KEY.encode() not in content, path
            assert ENVIRONMENT_KEY.encode() not in content, path
    assert looked_at >= (12 if outcome == "completed" else 2)
    assert KEY.encode() not in output
    assert ENVIRONMENT_KEY.encode() not in output
    ours = [line for line in (tmp_path / "debug.log").read_text().splitlines() if ":agentcore" in line]
    assert not [line for line in ours if KEY in line]
