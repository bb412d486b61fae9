"""No API key anywhere: a sentinel key is looked for in every byte that a run leaves behind."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

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
    print(repr(result), result.program)
except AgentCoreError as error:
    import traceback
    traceback.print_exc()
finally:
    server.stop()
"""


@pytest.mark.parametrize(
    ("fault", "after", "outcome", "own"),
    [
        ("none", 0, "completed", "own"),
        ("401", 0, "failed", "context"),
        ("401", 20, "failed", "own"),
    ],
)
def test_the_key_is_in_no_byte_of_what_a_run_leaves(migrated_store, tmp_path, own, fault, after, outcome):
    """The server repeats the key in its 401, as providers do."""
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


PLANTED = {
    "key": "sk-planted-key-A1b2C3d4E5",
    "header of the model": "model-header-Q7w8E9r0",
    "header of a predictor": "predictor-header-T1y2U3",
    "attribute": "attribute-key-P4o5I6u7",
    "dsn": "dsn-password-L8k9J0h1",
    "credentials": "vertex-private-key-M2n3B4v5",
    "password in the address": "address-password-G6f7D8s9",
    "body": "azure-password-Z0x1C2v3",
    "own model": "sk-own-model-key-R4t5Y6u7",
    "environment": "env \"quoted\" back\\slash 'H8j9K0'",
    "uri": "uri-password-W1e2R3t4",
}

EVERYWHERE = """
import json, logging, os, sys
import dspy
from agentcore import OptimizationPipeline
from agentcore.errors import AgentCoreError
from tests.dspy_optimization.test_http_lm import Server
from tests.support import Colour, QUICK, colours, request
from pathlib import Path

planted, fault, after = json.loads(sys.stdin.read()), sys.argv[1], int(sys.argv[2])
server = Server(Path("server.log"))
address = server.url(fault if fault != "metric" else "none", after).replace("http://", "")
secret = planted["password in the address"]
# Asynchronous clients refuse it there.
user = "" if fault == "none" else f"user:{secret}@"

def connect(key):
    credentials = json.dumps({"type": "service_account", "private_key": planted["credentials"]})
    headers, body = {"X-Auth": planted["header of the model"]}, {"azure_password": planted["body"]}
    return dspy.LM("openai/x", api_base=f"http://{user}{address}", api_key=key, cache=False,
                   num_retries=0, extra_headers=headers, extra_body=body, vertex_credentials=credentials)

class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict(Colour, extra_headers={"X-Tenant": planted["header of a predictor"]})
        self.judge = dspy.Predict("thing -> colour")
        self.judge.lm = connect(planted["own model"])
        self.api_key = planted["attribute"]
        self.endpoint = f"https://user:{secret}@127.0.0.1/v1"
        self.settings = {"dsn": f"postgresql://me:{planted['dsn']}@db/x", "depth": 3}

    def forward(self, thing):
        self.judge(thing=thing)
        return self.predict(thing=thing)

lm = connect(planted["key"])

def metric(example, prediction, trace=None):
    if fault == "metric":
        raise ValueError(f"can't judge with {lm.kwargs['api_key']} and {os.environ['MY_SECRET']}")
    return example.colour == prediction.colour

try:
    pipeline = OptimizationPipeline(Program(), metric, lm, prompt_lm=connect(planted["key"]))
    result = pipeline.sync.run_optimization(request(), training_data=colours(30))
    print(repr(result), result.program.predict)
    pipeline.sync.flush(60)
except AgentCoreError as error:
    import traceback
    traceback.print_exc()
finally:
    server.stop()
"""


def forms(secret):
    """A secret as it is, and as JSON, a repr or a URL writes it."""
    written = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret), quote(secret, safe="")}
    written.add(base64.b64encode(f"user:{secret}".encode()).decode())
    return [form.encode() for form in written]


@pytest.mark.parametrize(("fault", "after"), [("none", 0), ("401", 25), ("metric", 0)])
def test_no_secret_of_any_place_is_in_any_byte(migrated_store, tmp_path, fault, after):
    """In models, predictors, the program's attributes, addresses and the environment."""
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        "MY_SECRET": PLANTED["environment"],
    }
    done = subprocess.run(
        [sys.executable, "-c", EVERYWHERE, fault, str(after)],
        cwd=tmp_path,
        env=environment,
        input=json.dumps(PLANTED).encode(),
        capture_output=True,
        check=True,
    )
    output = done.stdout + done.stderr
    if fault == "none":
        assert b"status='completed'" in done.stdout, output
    else:
        assert b"[redacted]" in output, output
    places = {"stdout and stderr": output}
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "server.log":
            places[str(path)] = path.read_bytes()
    assert len(places) >= 4
    found = {
        (where, name)
        for where, content in places.items()
        for name, secret in PLANTED.items()
        for form in forms(secret)
        if form in content
    }
    assert not found, output.decode()


def test_a_password_in_the_query_of_a_uri_is_shown_by_no_command(tmp_path):
    """`?password=` of the journal's and of MLflow's database, in what each command prints."""
    secret = PLANTED["uri"]
    database = f"postgresql+psycopg://user@127.0.0.1:9/x?password={secret}&connect_timeout=2"
    for name in ("AGENTCORE_JOURNAL_URL", "MLFLOW_TRACKING_URI"):
        for arguments in (["journal", "ls"], ["doctor"], ["runs"], ["sync"]):
            done = subprocess.run(
                [sys.executable, "-m", "agentcore", *arguments],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), name: database},
                capture_output=True,
                text=True,
            )
            assert secret not in done.stdout + done.stderr, (name, arguments)
            assert "Traceback" not in done.stderr
