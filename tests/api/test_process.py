"""`agentcore serve` as processes: killed, shut down, several on one journal."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentcore.settings import MLflowConfig
from tests.api.conftest import READ, RUN, TOKENS
from tests.api.test_operations import LONG
from tests.registry.conftest import AGENT
from tests.support.ports import free_port, wait_for

ROOT = Path(__file__).parents[2]
AGENTS = """
[agents.colour]
program = "tests.support:AsyncClassifier"
lm = "tests.api.engines:slow"
datasets = ["colours*"]
target_field = "colour"
max_concurrency = 4
"""
HEADERS = {"Authorization": f"Bearer {RUN}", "Content-Type": "application/json"}


class Served:
    """One replica."""

    def __init__(self, directory: Path, *options: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / f"serve-{self.port}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agentcore", "serve", "--port", str(self.port), *options],
                cwd=directory,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "AGENTCORE_API_TOKENS": TOKENS,
                    "API_CALLS": str(directory / "calls"),
                    **environment,
                },
                stdout=log,
                stderr=log,
            )

    def ready(self) -> "Served":
        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
            return False

        wait_for(answers, "the API", self.log)
        return self

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}/api/v1/{path}", headers=HEADERS, timeout=30).json()

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/api/v1/{path}", headers=HEADERS, json=body, timeout=60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def replica(tmp_path, data):
    (tmp_path / "agents.toml").write_text(AGENTS)
    made: list[Served] = []

    def start(*options: str, **environment: str) -> Served:
        made.append(Served(tmp_path, *options, **environment))
        return made[-1]

    yield start
    for item in made:
        item.kill()


def until(check, seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def searching(where: Served, operation: str, trials: int = 2) -> bool:
    found = where.get(f"operations/{operation}")
    assert found["status"] in ("queued", "running"), found
    return bool(found["progress"]) and found["progress"]["trials"] >= trials


def over(where: Served, operation: str) -> Any:
    found = where.get(f"operations/{operation}")
    return found if found["status"] in ("completed", "failed", "cancelled") else None


def calls_in(directory: Path) -> int:
    return len((directory / "calls").read_text().splitlines())


def runs_in(uri: str, experiment: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], "attributes.status = 'FINISHED'")


def development(config) -> str:
    from agentcore.tracking import Experiments

    return Experiments(AGENT, config).development


def test_kill_9_in_the_middle_and_it_goes_on_once(replica, config, tmp_path):
    environment = {
        "MLFLOW_TRACKING_URI": config.tracking_uri,
        "MLFLOW_ARTIFACT_LOCATION": config.artifact_location,
    }
    first = replica(**environment).ready()
    operation = first.post("optimizations", LONG).json()["id"]
    until(lambda: searching(first, operation))
    first.kill()
    before = calls_in(tmp_path)
    second = replica(**environment).ready()
    found = until(lambda: over(second, operation))
    assert found["status"] == "completed", found
    assert found["progress"]["trials"] >= 21
    assert len(runs_in(config.tracking_uri, development(config))) == 1
    # Only what was in flight, or answered and not yet on disk, was asked again.
    after = calls_in(tmp_path)
    undisturbed = second.post("optimizations", LONG).json()["id"]
    until(lambda: over(second, undisturbed))
    assert 0 < before < after <= calls_in(tmp_path) - after + 2 * 4
    # Nothing is left to do.
    assert second.stop() == 0
    third = replica(**environment).ready()
    time.sleep(2)
    assert third.get(f"operations/{operation}") == found
    assert third.stop(signal.SIGINT) == 0
    assert "Traceback" not in third.log.read_text()


def test_two_replicas_on_one_journal_in_postgres(own_stack, replica, tmp_path):
    """One of them is killed in the middle of an optimization: the other one goes on with it."""
    environment = {
        "MLFLOW_TRACKING_URI": own_stack.uri,
        "AGENTCORE_JOURNAL_URL": own_stack.journal_url,
        "AGENTCORE_DATA": str(tmp_path / "data" / "evaluation"),
    }
    both = [replica(**environment), replica(**environment)]
    for item in both:
        item.ready()
    operations = [
        both[number % 2].post("optimizations", {**LONG, "seed": number}).json()["id"] for number in range(2)
    ]
    for number, operation in enumerate(operations):
        until(lambda operation=operation, number=number: searching(both[1 - number], operation))
    both[0].kill()
    for operation in operations:
        found = until(lambda operation=operation: over(both[1], operation))
        assert found["status"] == "completed", found
        assert both[1].get(f"optimizations/{operation}")["run_id"] == found["run_id"]
    runs = runs_in(own_stack.uri, development(MLflowConfig(tracking_uri=own_stack.uri)))
    assert len(runs) == 2
    counted = sum(both[1].get(f"operations/{item}")["progress"]["lm_calls"] for item in operations)
    assert calls_in(tmp_path) <= counted + 2 * 4  # what was in flight


def test_shut_down_in_the_middle_and_started_again(replica, config, tmp_path):
    environment = {
        "MLFLOW_TRACKING_URI": config.tracking_uri,
        "MLFLOW_ARTIFACT_LOCATION": config.artifact_location,
    }
    first = replica(**environment).ready()
    operation = first.post("optimizations", LONG).json()["id"]
    until(lambda: searching(first, operation))
    with httpx.stream(
        "GET", f"{first.url}/api/v1/operations/{operation}/events", headers=HEADERS, timeout=30
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        began = time.monotonic()
        assert first.stop() == 0
        assert time.monotonic() - began < 15  # an open stream holds nothing up
    second = replica(**environment).ready()
    found = until(lambda: over(second, operation))
    assert found["status"] == "completed", found
    assert len(runs_in(config.tracking_uri, development(config))) == 1


def test_a_killer_is_given_up(replica, config, tmp_path):
    """Data or a program that ends its process must not take down every replica for ever."""
    (tmp_path / "agents.toml").write_text(AGENTS + 'func = "tests.api.engines:kill_me"\n')
    environment = {"MLFLOW_TRACKING_URI": config.tracking_uri}
    operation = None
    for _ in range(3):
        server = replica(**environment).ready()
        if operation is None:
            with contextlib.suppress(httpx.HTTPError):
                server.post(f"{AGENT}/evaluate_dataset?wait=0", {"dataset_name": "colours"})
            operation = "known"
        assert server.process.wait(60) == 9
    last = replica(**environment).ready()
    (found,) = until(lambda: [item for item in last.get("operations") if item["status"] == "failed"])
    assert "3 processes died" in found["error"]


def test_200_connections_and_a_large_body(replica, config, tmp_path):
    (tmp_path / "agents.toml").write_text(AGENTS + 'func = "tests.api.engines:shade"\n')
    server = replica("--jobs", "0", MLFLOW_TRACKING_URI=config.tracking_uri).ready()
    body = {"dataset_name": "colours"}

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(headers=HEADERS, limits=limits, timeout=60) as client:
            url = f"{server.url}/api/v1/{AGENT}/evaluate_dataset?wait=0"
            return await asyncio.gather(*(client.post(url, json=body) for _ in range(200)))

    replies = asyncio.run(all_at_once())
    assert [reply.status_code for reply in replies] == [202] * 200
    ids = {reply.json()["id"] for reply in replies}
    assert {item["id"] for item in server.get("operations?limit=200")} == ids
    assert len(ids) == 200

    def parts():
        for _ in range(100):
            yield b"x" * 2**20

    url = f"{server.url}/api/v1/{AGENT}/predict"
    large = {"Content-Length": str(100 * 2**20), **HEADERS}
    with httpx.Client(timeout=30) as client:
        for headers in (large, HEADERS):
            try:
                reply = client.post(url, content=parts(), headers=headers)
                assert reply.status_code == 413
            except httpx.WriteError:  # it answered, and closed before everything was sent
                pass
    headers = ("-H", f"Authorization: Bearer {RUN}", "-H", "Content-Type: application/json")
    curl = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *headers, "--data-binary", "@-", url],
        input=b"x" * 100 * 2**20,
        capture_output=True,
    )
    assert curl.stdout == b"413"
    assert server.get("operations?limit=1")  # and it is alive


@pytest.mark.parametrize(
    ("options", "environment", "code", "told"),
    [
        (["--agents", "missing.toml"], {}, 2, "there is no missing.toml"),
        (["--host", "0.0.0.0"], {"AGENTCORE_API_TOKENS": ""}, 2, "others may reach 0.0.0.0"),
        (["--host", "0.0.0.0", "--no-auth"], {}, 2, "everybody who reaches"),
        ([], {"AGENTCORE_API_TOKENS": "x"}, 2, "name:role:token"),
        (["--host", "192.0.2.1"], {}, 3, "can't listen on 192.0.2.1"),
        ([], {"AGENTCORE_JOURNAL_URL": "postgres://nope:1/x"}, 2, "use postgresql+psycopg://"),
        ([], {"AGENTCORE_JOURNAL_URL": "postgresql+psycopg://u:hunter22@127.0.0.1:1/x"}, 3, "journal"),
        (["--agents", "bad.toml"], {}, 2, "unknown name (did you mean metric?)"),
    ],
)
def test_wrong_usage(tmp_path, options, environment, code, told):
    (tmp_path / "agents.toml").write_text(AGENTS)
    (tmp_path / "bad.toml").write_text("[agents.a]\nmetrik = 'x'\n")
    done = subprocess.run(
        [sys.executable, "-m", "agentcore", "serve", *options],
        cwd=tmp_path,
        env={**os.environ, "AGENTCORE_API_TOKENS": TOKENS, "COLUMNS": "500", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "serving" not in done.stderr
    assert "the token is" not in done.stderr
    assert "hunter22" not in done.stderr
    assert READ not in done.stderr


def test_a_token_is_made_where_none_is_set(replica, config):
    server = replica(MLFLOW_TRACKING_URI=config.tracking_uri, AGENTCORE_API_TOKENS="").ready()
    token = server.log.read_text().split("the token is: ")[1].split()[0]
    reply = httpx.get(f"{server.url}/api/v1/operations", headers={"Authorization": f"Bearer {token}"})
    assert (reply.status_code, reply.json()) == (200, [])
