"""Faults of the journal's storage and of MLflow's own: what is away for a while, and comes back."""

import asyncio
import contextlib
import os
import random
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient

from agentcore.journal import close_journals, open_journal
from agentcore.settings import MLflowConfig
from agentcore.tracking import RunTracker, stop_deliveries
from benchmarks.faults.point import Row, journal_at, optimize, struck_server
from tests.support.stack import Stack

AWAY = 70.0
LOCKED = 30.0
VALUES = 200


def fill_disk_for_a_moment(
    row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int
) -> None:
    """The journal's disk is full for up to half a second, in the middle of the run or of its delivery."""
    with tempfile.TemporaryDirectory() as directory:
        mount = Path(directory, "small")
        mount.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", mount], check=True)

        def strike() -> None:
            with contextlib.suppress(OSError), (mount / "ballast").open("wb", buffering=0) as ballast:
                while True:
                    ballast.write(b"x" * 4096)
            time.sleep(rng.random() * 0.5)
            (mount / "ballast").unlink()

        try:
            with journal_at(f"{mount}/state"):
                struck_server(row, config, rng, strike, lambda: None)
                stop_deliveries()
        finally:
            subprocess.run(["umount", mount], check=True)


def lose_the_journal(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    """The journal's Postgres, which is MLflow's as well, is away for 70 s."""

    def strike() -> None:
        stack.kill_postgres()
        time.sleep(AWAY)
        stack.start_postgres()
        stack.wait()

    os.environ["AGENTCORE_JOURNAL_URL"] = stack.journal_url
    try:
        struck_server(row, config, rng, strike, lambda: None)
    finally:
        stop_deliveries()
        close_journals()
        del os.environ["AGENTCORE_JOURNAL_URL"]


def lock_the_journal(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    """Another process locks the journal's file for 30 s."""

    def strike() -> None:
        held = sqlite3.connect(open_journal().location, timeout=60, isolation_level=None)
        held.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED)
        held.execute("ROLLBACK")
        held.close()

    struck_server(row, config, rng, strike, lambda: None)


def delete_run(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    client, deleted = MlflowClient(stack.uri), list[str]()

    def strike() -> None:
        found = client.get_experiment_by_name(config.experiment_name)
        for run in client.search_runs([found.experiment_id]) if found else ():
            client.delete_run(run.info.run_id)
            deleted.append(run.info.run_id)

    def recover() -> None:
        time.sleep(rng.random())
        for run_id in deleted:
            client.restore_run(run_id)

    struck_server(row, config, rng, strike, recover)


def delete_experiment(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    client, deleted = MlflowClient(stack.uri), list[str]()

    def strike() -> None:
        found = client.get_experiment_by_name(config.experiment_name)
        if found is not None:
            client.delete_experiment(found.experiment_id)
            deleted.append(found.experiment_id)

    def recover() -> None:
        time.sleep(rng.random())
        for experiment in deleted:
            client.restore_experiment(experiment)

    struck_server(row, config, rng, strike, recover)


def equal_values(row: Row, stack: Stack, config: MLflowConfig, rng: random.Random, events: int) -> None:
    """Beside an optimization, 200 equal values at once, in a run of their own, while the server may die."""
    beside = config.model_copy(update={"experiment_name": f"{config.experiment_name} values"})

    async def work() -> str:
        tracker = RunTracker(beside)
        run_id = await tracker.start_run(run_name="values")
        async with asyncio.TaskGroup() as group:
            group.create_task(optimize(config, None, 0))
            for _ in range(VALUES):
                group.create_task(tracker.log_metrics({"score": 1.0}, run_id=run_id))
        await tracker.end_run(run_id=run_id)
        await asyncio.to_thread(restart.join)
        await tracker.flush(timeout=120)
        return (await tracker.get_run(run_id)).info.run_id

    restart = threading.Timer(rng.random(), lambda: (stack.kill_mlflow(), stack.start_mlflow()))
    restart.start()
    run_id = asyncio.run(work())
    restart.join()
    row.struck += 1
    there = len(MlflowClient(stack.uri).get_metric_history(run_id, "score"))
    row.lost["values"] += max(0, VALUES - there)
    row.doubled["values"] += max(0, there - VALUES)


Fault = Callable[[Row, Stack, MLflowConfig, random.Random, int], None]
STORAGE_FAULTS: dict[str, Fault] = {
    "disk full for a moment": fill_disk_for_a_moment,
    "Postgres journal away for 70 s": lose_the_journal,
    "journal file locked for 30 s": lock_the_journal,
    "run deleted, then restored": delete_run,
    "experiment deleted, then restored": delete_experiment,
    "200 equal values at once": equal_values,
}
