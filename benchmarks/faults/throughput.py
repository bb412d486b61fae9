"""Log 100,000 metrics to one server in different ways: `python -m benchmarks.faults.throughput`.

Compares logging one by one (a sample, scaled up), MLflow's asynchronous logging with its default settings,
and AgentCore, timed from the first call until the server has everything, and counts the metrics that arrived.
Finally, kills the process with kill -9 after the last call, and counts again after `agentcore sync`.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric

from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.journal import close_journals
from agentcore.settings import MLflowConfig
from agentcore.tracking import stop_deliveries
from tests.support import request
from tests.support.stack import Stack

TOTAL = 100_000
NAMES = 100
SAMPLE = 500


def one_by_one(client: MlflowClient, experiment: str) -> float:
    run = client.create_run(experiment).info.run_id
    began = time.perf_counter()
    for step in range(SAMPLE):
        client.log_metric(run, "m", step, step=step)
    return (time.perf_counter() - began) * TOTAL / SAMPLE


def mlflow_async(client: MlflowClient, experiment: str, each: int) -> tuple[float, int]:
    """Seconds, and the number of metrics that arrived."""
    run = client.create_run(experiment).info.run_id
    began = time.perf_counter()
    waiting = []
    for step in range(TOTAL // each):
        now = time.time_ns() // 1_000_000
        metrics = [Metric(f"m{number}", float(step), now, step) for number in range(each)]
        waiting.append(client.log_batch(run, metrics=metrics, synchronous=False))
    for operation in waiting:
        operation.wait()
    return time.perf_counter() - began, count(client, run, each)


def ours(config: MLflowConfig, client: MlflowClient, each: int) -> tuple[float, int]:
    async def log() -> str:
        tracker = MLflowTracker(config)
        run_id = await tracker.start_run(request())
        gate = asyncio.Semaphore(64)

        async def one(step: int) -> None:
            async with gate:
                await tracker.log_metrics(
                    {f"m{n}": float(step) for n in range(each)}, step=step, run_id=run_id
                )

        await asyncio.gather(*(one(step) for step in range(TOTAL // each)))
        delivery = (await tracker.opened())[1]
        await asyncio.to_thread(lambda: delivery.flush(patience=60))
        return str(await tracker.tracking_id(run_id))

    began = time.perf_counter()
    run = asyncio.run(log())
    return time.perf_counter() - began, count(client, run, each)


def count(client: MlflowClient, run: str, each: int) -> int:
    return sum(len(client.get_metric_history(run, f"m{number}")) for number in range(each))


def killed_after_logging(which: str, stack: Stack, client: MlflowClient, each: int) -> int:
    """Number of metrics that arrived from a process killed right after logging them all."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        "MLFLOW_TRACKING_URI": stack.uri,
        "MLFLOW_EXPERIMENT_NAME": f"killed-{which}",
    }
    script = _MLFLOW if which == "mlflow" else _OURS
    subprocess.run([sys.executable, "-c", script, str(TOTAL // each), str(each)], env=environment)
    if which == "ours":
        sync = [sys.executable, "-m", "agentcore", "sync"]
        subprocess.run(sync, env=environment, check=True, stdout=subprocess.DEVNULL)
    experiment = client.get_experiment_by_name(f"killed-{which}")
    (run,) = client.search_runs([experiment.experiment_id])
    return count(client, run.info.run_id, each)


_MLFLOW = """
import os, sys, time
from mlflow import MlflowClient
from mlflow.entities import Metric
calls, each = map(int, sys.argv[1:])
client = MlflowClient()
run = client.create_run(client.create_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])).info.run_id
for step in range(calls):
    now = time.time_ns() // 1_000_000
    metrics = [Metric(f"m{number}", float(step), now, step) for number in range(each)]
    client.log_batch(run, metrics=metrics, synchronous=False)
os.kill(os.getpid(), 9)
"""
_OURS = """
import asyncio, os, sys
from agentcore.dspy_optimization.tracking import MLflowTracker
from tests.support import request
calls, each = map(int, sys.argv[1:])
async def main():
    tracker = MLflowTracker()
    run = await tracker.start_run(request())
    for step in range(calls):
        values = {f"m{number}": float(step) for number in range(each)}
        await tracker.log_metrics(values, step=step, run_id=run)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=NAMES, help="metrics per call")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AGENTCORE_STATE_DIR"] = f"{directory}/state"
        stack = Stack(Path(directory))
        try:
            measure(stack, arguments.each)
        finally:
            stop_deliveries()
            close_journals()
            stack.stop()


def measure(stack: Stack, each: int) -> None:
    direct = MLflowConfig(tracking_uri=stack.uri, experiment_name="throughput")
    client = MlflowClient(stack.uri)
    experiment = client.create_experiment("throughput")
    single = one_by_one(client, experiment)
    print(f"| 100,000 metrics, {each} per call | seconds | arrived | times faster than one by one |")
    print("|---|---|---|---|")
    print(f"| one by one ({SAMPLE} measured, scaled) | {single:.0f} | | 1 |", flush=True)
    # MLflow first: AgentCore sets MLflow's timeouts for the whole process.
    for name, (seconds, found) in {
        "MLflow's asynchronous logging": mlflow_async(client, experiment, each),
        "AgentCore": ours(direct, client, each),
    }.items():
        print(f"| {name} | {seconds:.1f} | {found:,} | {single / seconds:.0f} |", flush=True)
    for name, which in (("MLflow's asynchronous logging", "mlflow"), ("AgentCore", "ours")):
        found = killed_after_logging(which, stack, client, each)
        print(f"| {name}, killed after logging everything | | {found:,} | |", flush=True)


if __name__ == "__main__":
    main()
