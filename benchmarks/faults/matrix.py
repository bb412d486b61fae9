"""The fault matrix: `python -m benchmarks.faults.matrix [--points 50] [FAULT …]`.

Each point is one optimization on a real stack (PostgreSQL, S3, MLflow's server), with a fault injected
at a random moment between its start and the end of its delivery. After recovery it must equal an undisturbed
run with the same seed. Prints a row of docs/reliability.md for each fault, and exits 1 if anything was lost
or duplicated.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from agentcore.journal import close_journals, open_journal
from agentcore.settings import MLflowConfig
from agentcore.tracking import stop_deliveries
from benchmarks.faults.point import (
    Row,
    count_paid_twice,
    events_of,
    job,
    journal_at,
    judge,
    resume,
    state_of,
    struck_server,
)
from benchmarks.faults.storage import STORAGE_FAULTS
from tests.support.job import CONCURRENCY
from tests.support.proxy import Proxy
from tests.support.stack import Stack

# Client faults: the optimization runs in its own process.


def kill_client(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        calls, state = Path(directory, "calls"), f"{directory}/state"
        process = job(calls, config, state)
        left, run_id = rng.randint(1, events), ""
        for _, known in events_of(process):
            left, run_id = left - 1, known
            if not left:
                break
        time.sleep(rng.random() * 0.02 if left != events else rng.random())
        row.struck += process.poll() is None
        process.kill()
        process.communicate()
        resume(row, calls, config, state, run_id)
        with journal_at(state):
            count_paid_twice(row, run_id)
        wasted = len(calls.read_text().splitlines()) - row_calls()
        assert wasted <= 2 * CONCURRENCY, f"{wasted} more calls than an undisturbed run"


def fill_disk(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    """Fill the journal's file system at a random moment, and free space once the run has failed."""
    with tempfile.TemporaryDirectory() as directory:
        mount = Path(directory, "small")
        mount.mkdir()
        # An empty journal takes about 180 KiB, a whole run's about 900.
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={rng.randint(220, 900)}k", "none", mount], check=True
        )
        try:
            process = job(Path(directory, "calls"), config, f"{mount}/state")
            run_id = ""
            for _, known_id in events_of(process):
                run_id = known_id
            process.communicate(timeout=60)
            row.struck += process.returncode != 0
            subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
            if run_id:
                with journal_at(f"{mount}/state"):
                    known = open_journal().stream(run_id)
            if not run_id or known is None:
                process = job(Path(directory, "calls"), config, f"{mount}/state")
                *_, (_, run_id) = events_of(process)
                process.communicate(timeout=60)
            else:
                resume(row, Path(directory, "calls"), config, f"{mount}/state", run_id)
            with journal_at(f"{mount}/state"):
                count_paid_twice(row, run_id)
        finally:
            subprocess.run(["umount", mount], check=True)


_calls = 0


def row_calls() -> int:
    return _calls


# Server faults: the optimization continues in this process.


def kill_mlflow(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    struck_server(row, config, rng, stack.kill_mlflow, stack.start_mlflow)


def kill_postgres(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    def recover() -> None:
        stack.start_postgres()
        stack.wait()

    struck_server(row, config, rng, stack.kill_postgres, recover)


def stop_s3(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    def recover() -> None:
        stack.s3.start()
        while not stack.s3.ready():
            time.sleep(0.1)

    struck_server(row, config, rng, stack.s3.stop, recover)


def hang(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    def recover() -> None:
        time.sleep(rng.random() * 4)  # may exceed the client's own timeout
        stack.signal_mlflow(signal.SIGCONT)

    struck_server(row, config, rng, lambda: stack.signal_mlflow(signal.SIGSTOP), recover)


def lose_replies(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    """Lose up to three replies to create_run, and one in five of all others."""
    proxy = Proxy(stack.uri)
    left = rng.randint(1, 3)

    def fault(method: str, path: str) -> str | None:
        nonlocal left
        if path.endswith("runs/create") and left:
            left -= 1
            return "lose"
        return "lose" if rng.random() < 0.2 else None

    proxy.fault = fault
    try:
        through = config.model_copy(update={"tracking_uri": proxy.url})
        struck_server(row, through, rng, lambda: None, lambda: None)
    finally:
        stop_deliveries()
        proxy.close()


FAULTS = {
    "kill -9 of the client": kill_client,
    "kill -9 of MLflow's server": kill_mlflow,
    "kill -9 of PostgreSQL": kill_postgres,
    "S3 unreachable": stop_s3,
    "MLflow's server hangs (SIGSTOP)": hang,
    "disk full for the journal": fill_disk,
    "lost replies, create_run's first": lose_replies,
    **STORAGE_FAULTS,
}


def run_fault(name: str, stack: Stack, points: int, seed: int, wanted: dict[str, Any], events: int) -> Row:
    row, client = Row(name), MlflowClient(stack.uri)
    rng = random.Random(f"{name}{seed}")
    for point in range(points):
        config = MLflowConfig(
            tracking_uri=stack.uri,
            experiment_name=f"{name} {seed}-{point}-{time.time_ns()}",
            request_timeout=2,
        )
        before = len(row.lost) + len(row.doubled)
        FAULTS[name](row, stack, config, rng, events)
        row.points += 1
        judge(row, state_of(client, config.experiment_name), wanted)
        if point % 10 == 9 or len(row.lost) + len(row.doubled) > before:
            print(f"  {name}: {point + 1} of {points}", file=sys.stderr, flush=True)
    row.lost, row.doubled = +row.lost, +row.doubled
    return row


def main() -> None:
    global _calls
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", choices=[[], *FAULTS], default=[])
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AGENTCORE_STATE_DIR"] = f"{directory}/state"
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            del os.environ[name]
        stack = Stack(Path(directory))
        try:
            config = MLflowConfig(tracking_uri=stack.uri, experiment_name="undisturbed", request_timeout=2)
            process = job(Path(directory, "calls"), config, f"{directory}/reference")
            events = len(list(events_of(process)))
            process.communicate()
            _calls = len(Path(directory, "calls").read_text().splitlines())
            (wanted,) = state_of(MlflowClient(stack.uri), "undisturbed")
            print(json.dumps({"events": events, "calls": _calls, "metrics": len(wanted["measured"])}))
            good = True
            for name in arguments.faults or FAULTS:
                if name.startswith("disk full") and (os.geteuid() != 0 or not shutil.which("mount")):
                    print(f"| {name} | skipped: needs root to mount a small file system | | | | | |")
                    continue
                row = run_fault(name, stack, arguments.points, arguments.seed, wanted, events)
                print(row.text(), dict(row.lost), dict(row.doubled), flush=True)
                good = good and row.good
        finally:
            stop_deliveries()
            close_journals()
            stack.stop()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
