"""One point of the fault matrix: an optimization, a fault, the recovery, and what is left in MLflow."""

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from agentcore.dspy_optimization import OptimizationPipeline, OptimizationResult
from agentcore.dspy_optimization.events import ExampleMeasured, TrialFinished
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ConfigurationError, JournalError
from agentcore.journal import close_journals, open_journal
from agentcore.lm import offline_lm
from agentcore.settings import MLflowConfig
from agentcore.tracking import destination_of
from tests.support import AsyncClassifier, colours, request
from tests.support.job import CONCURRENCY

ROOT = Path(__file__).parents[2]
TIMES = {
    *("duration_seconds", "latency_reduction_ms", "baseline_avg_latency_ms", "optimized_avg_latency_ms"),
    *("baseline_median_latency_ms", "optimized_median_latency_ms"),
}
ACCOUNT = ("lm_calls", "total_tokens")
OWN_TAGS = (
    "agentcore.key",
    "agentcore.optimization_id",
    "agentcore.sha256",
    "agentcore.program",
    "agentcore.model",
    "agentcore.taken",
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
            "params": run.data.params,
            "tags": {
                key: value
                for key, value in run.data.tags.items()
                if value and not key.startswith(("mlflow.", *OWN_TAGS))
            },
            "digests": {
                key for key in run.data.tags if key.startswith(OWN_TAGS) and key != "agentcore.taken"
            },
            "history": [
                (item.step, item.value)
                for item in client.get_metric_history(run.info.run_id, "validation_score")
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
    seen: list[str] = []
    pipeline.options = replace(pipeline.options, on_event=lambda event: seen.append(event.optimization_id))
    began = time.monotonic()
    task = asyncio.create_task(pipeline.run_optimization(request(), training_data=colours()))
    striking = asyncio.create_task(later(strike, after)) if strike else None
    try:
        result = await task
    except JournalError:
        # The journal could not be written: the run is resumed once it can.
        if striking is not None:
            await striking
        again = pipeline.run_optimization(request(), training_data=colours())
        known = seen and await asyncio.to_thread(lambda: open_journal().stream(seen[0]))
        result = await (resumed(pipeline, seen[0]) if known else again)
        again.close()
    took = time.monotonic() - began
    if striking is not None:
        await striking
    return result.optimization_id, took


async def resumed(pipeline: OptimizationPipeline, run_id: str) -> OptimizationResult:
    """Resume a run, as its error says, once its lease has expired."""
    for _ in range(12):
        with contextlib.suppress(ConfigurationError):
            return await pipeline.resume(run_id)
        await asyncio.sleep(5)
    return await pipeline.resume(run_id)


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
