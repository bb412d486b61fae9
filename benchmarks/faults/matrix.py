"""The fault matrix: `python -m benchmarks.faults.matrix [--points 50] [FAULT …]`.

Each point is one optimization on a real stack (PostgreSQL, S3, MLflow's server), with a fault injected
at a random moment between its start and the end of its delivery. After recovery it must equal an undisturbed
run with the same seed. Prints a row of docs/reliability.md for each fault, and exits 1 if anything was lost
or duplicated.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.events import ExampleMeasured, TrialFinished
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.journal import close_journals, open_journal
from agentcore.lm import offline_lm
from agentcore.settings import MLflowConfig
from agentcore.tracking import destination_of, stop_deliveries
from tests.support import AsyncClassifier, colours, request
from tests.support.job import CONCURRENCY
from tests.support.proxy import Proxy
from tests.support.stack import Stack

ROOT = Path(__file__).parents[2]
TIMES = {"duration_seconds", "latency_reduction_ms", "baseline_avg_latency_ms", "optimized_avg_latency_ms"}
ACCOUNT = ("lm_calls", "total_tokens")
OWN_TAGS = (
    "agentcore.key",
    "agentcore.optimization_id",
    "agentcore.sha256",
    "agentcore.program",
    "agentcore.model",
)


@dataclass
class Row:
    """The outcome of one fault."""

    fault: str
    points: int = 0
    struck: int = 0
    """Points at which the fault hit before the run and its delivery were over."""
    lost: Counter[str] = field(default_factory=Counter)
    doubled: Counter[str] = field(default_factory=Counter)
    paid_twice: int = 0
    differing: int = 0
    slowest: float = 0.0

    def text(self) -> str:
        return (
            f"| {self.fault} | {self.points} ({self.struck}) | {sum(self.lost.values())} | "
            f"{sum(self.doubled.values())} | {self.paid_twice} | {self.differing} | {self.slowest:.1f} s |"
        )

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.paid_twice or self.differing)


def state_of(client: MlflowClient, experiment: str) -> list[dict[str, Any]]:
    """Everything MLflow has of an experiment's runs, except times and ids."""
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    return [
        {
            "metrics": {
                key: value for key, value in run.data.metrics.items() if key not in (*TIMES, *ACCOUNT)
            },
            "account": {key: run.data.metrics.get(key, 0.0) for key in ACCOUNT},
            "measured": set(run.data.metrics),
            "params": {key: value for key, value in run.data.params.items() if key != "optimization_time"},
            "tags": {
                key: value
                for key, value in run.data.tags.items()
                if value and not key.startswith(("mlflow.", *OWN_TAGS))
            },
            "digests": {key for key in run.data.tags if key.startswith(OWN_TAGS)},
            "history": [
                (item.step, item.value) for item in client.get_metric_history(run.info.run_id, "trial_score")
            ],
            "artifacts": {
                item.path
                for folder in ("", "models", "plots")
                for item in client.list_artifacts(run.info.run_id, folder)
            },
            "inputs": len(run.inputs.dataset_inputs),
            "outputs": len(run.outputs.model_outputs),
            "models": len(client.search_logged_models([found.experiment_id])),
            "status": run.info.status,
        }
        for run in runs
    ]


def judge(row: Row, runs: list[dict[str, Any]], wanted: dict[str, Any]) -> None:
    """Count what is missing or duplicated."""
    if not runs:
        row.lost["run"] += 1
        return
    row.doubled["run"] += len(runs) - 1
    (run, *_) = runs
    for kind in ("measured", "params", "tags", "digests", "artifacts"):
        row.lost[kind] += len(set(wanted[kind]) - set(run[kind]))
    row.lost["history"] += max(0, len(wanted["history"]) - len(run["history"]))
    row.doubled["history"] += max(0, len(run["history"]) - len(wanted["history"]))
    row.doubled["models"] += max(0, run["models"] - wanted["models"])
    row.doubled["outputs"] += max(0, run["outputs"] - wanted["outputs"])
    # Calls in flight when a process died may be counted twice, because they were paid for twice.
    extra = run.pop("account")["lm_calls"] - wanted["account"]["lm_calls"]
    wanted = {key: value for key, value in wanted.items() if key != "account"}
    if run != wanted or not 0 <= extra <= 2 * CONCURRENCY:
        row.differing += 1
        print("  differs:", {key: (run[key], wanted[key]) for key in run if run[key] != wanted[key]})


def count_paid_twice(row: Row, optimization_id: str) -> None:
    """Examples measured twice, and trials finished twice, in the journal."""
    journal = open_journal()
    measured = Counter(
        (item.event.evaluation, item.event.candidate, item.event.record["digest"])
        for item in journal.read(optimization_id, of=ExampleMeasured)
    )
    trials = Counter(item.event.trial for item in journal.read(optimization_id, of=TrialFinished))
    row.paid_twice += sum(count - 1 for count in (*measured.values(), *trials.values()))


# Client faults: the optimization runs in its own process.


def job(calls: Path, config: MLflowConfig, state: str, *run: str) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AGENTCORE_STATE_DIR": state,
        "MLFLOW_TRACKING_URI": config.tracking_uri,
        "MLFLOW_EXPERIMENT_NAME": config.experiment_name,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.job", str(calls), *run],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def events_of(process: "subprocess.Popen[str]") -> Iterator[tuple[str, str]]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("event "):
            _, kind, run_id = line.split()
            yield kind, run_id


def resume(row: Row, calls: Path, config: MLflowConfig, state: str, run_id: str) -> None:
    again = job(calls, config, state, run_id)
    output, _ = again.communicate(timeout=120)
    # A run that had already finished is only delivered.
    if again.returncode:
        subprocess.run(
            [sys.executable, "-m", "agentcore", "sync"],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "AGENTCORE_STATE_DIR": state,
                "MLFLOW_TRACKING_URI": config.tracking_uri,
            },
            check=True,
            capture_output=True,
        )
    else:
        assert '"status": "completed"' in output


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


@contextlib.contextmanager
def journal_at(state: str) -> Iterator[None]:
    before = os.environ.get("AGENTCORE_STATE_DIR")
    os.environ["AGENTCORE_STATE_DIR"] = state
    try:
        yield
    finally:
        close_journals()
        if before is not None:
            os.environ["AGENTCORE_STATE_DIR"] = before


_calls = 0


def row_calls() -> int:
    return _calls


# Server faults: the optimization continues in this process.


async def optimize(
    config: MLflowConfig, strike: Callable[[], None] | None, after: float
) -> tuple[str, float]:
    pipeline = OptimizationPipeline(
        AsyncClassifier(),
        lm=offline_lm(latency=0.02),
        mlflow_config=config,
        seed=3,
        max_concurrency=CONCURRENCY,
    )
    began = time.monotonic()
    task = asyncio.create_task(pipeline.run_optimization(request(), training_data=colours()))
    striking = asyncio.create_task(later(strike, after)) if strike else None
    result = await task
    took = time.monotonic() - began
    if striking is not None:
        await striking
    return result.optimization_id, took


async def later(strike: Callable[[], None], seconds: float) -> None:
    await asyncio.sleep(seconds)
    await asyncio.to_thread(strike)


def struck_server(
    row: Row,
    config: MLflowConfig,
    rng: random.Random,
    strike: Callable[[], None],
    recover: Callable[[], None],
) -> None:
    open_journal()

    def strike_and_look() -> None:
        strike()
        # A run that has ended and was delivered has nothing left to lose.
        found = [item for item in open_journal().streams(destination_of(config)) if item.created_ms >= began]
        row.struck += not found or bool(found[0].waiting) or not found[0].finished

    began = time.time_ns() // 1_000_000
    run_id, took = asyncio.run(optimize(config, strike_and_look, rng.random() * 2.5))
    row.slowest = max(row.slowest, took)
    recover()
    tracker = MLflowTracker(config)
    delivery = asyncio.run(tracker.opened())[1]
    delivery.flush(timeout=120, patience=60)
    count_paid_twice(row, run_id)


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
