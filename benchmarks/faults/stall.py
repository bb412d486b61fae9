"""The cost of tracking while the server is slow, hangs or is down: `python -m benchmarks.faults.stall`.

1. The event loop's longest stall while 10,000 metrics are logged one after the other, compared to the same
   loop with nothing logged.
2. The time of an optimization with tracking over one without: median ratio of pairs in alternating order, in
   a warmed-up process.
"""

import argparse
import asyncio
import gc
import os
import statistics
import tempfile
import time
from pathlib import Path

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.journal import close_journals
from agentcore.lm import offline_lm
from agentcore.settings import MLflowConfig
from agentcore.tracking import stop_deliveries
from tests.support import AsyncClassifier, colours, request
from tests.support.proxy import Proxy
from tests.support.stack import Stack

METRICS = 10_000
CONDITIONS = ("answers", "200 ms a request", "hangs", "is dead")


def set_condition(proxy: Proxy, name: str) -> None:
    proxy.latency = 0.2 if name.startswith("200") else 0.0
    kind = {"hangs": "hang", "is dead": "drop"}.get(name)
    proxy.fault = lambda method, path: kind


class Heartbeat:
    """Measures the longest delay of the event loop beyond the requested millisecond.

    Also records the longest garbage collection meanwhile, because it stops every thread.
    """

    def __init__(self) -> None:
        self.stalls: list[float] = []
        self.collections = [0.0]
        self._began = 0.0
        gc.collect()  # so that earlier garbage is not measured
        gc.callbacks.append(self._collected)

    def _collected(self, phase: str, _: object) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.collections.append(time.perf_counter() - self._began)

    def stop(self) -> None:
        gc.callbacks.remove(self._collected)

    async def beat(self) -> None:
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(0.001)
            self.stalls.append(time.perf_counter() - asked - 0.001)


async def longest_stall(config: MLflowConfig, log: bool) -> tuple[float, float, float]:
    """Longest stall and longest garbage collection in ms, and seconds for all metrics."""
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    heartbeat = Heartbeat()
    beating = asyncio.create_task(heartbeat.beat())
    began = time.perf_counter()
    if log:
        for step in range(METRICS):
            await tracker.log_metrics({"loss": 1 / (step + 1)}, step=step, run_id=run_id)
    else:
        await asyncio.sleep(8)
    took = time.perf_counter() - began
    beating.cancel()
    heartbeat.stop()
    return max(heartbeat.stalls) * 1000, max(heartbeat.collections) * 1000, took


async def seconds_of(config: MLflowConfig | None, latency: float) -> float:
    pipeline = OptimizationPipeline(
        AsyncClassifier(),
        lm=offline_lm(latency=latency),
        mlflow_config=config,
        enable_tracking=config is not None,
        seed=1,
    )
    began = time.perf_counter()
    await pipeline.run_optimization(request(), training_data=colours())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.3, help="seconds per LM call")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AGENTCORE_STATE_DIR"] = f"{directory}/state"
        stack = Stack(Path(directory))
        try:
            measure(stack, arguments.pairs, arguments.latency)
        finally:
            stop_deliveries()
            close_journals()
            stack.stop()


def measure(stack: Stack, pairs: int, latency: float) -> None:
    warm = MLflowConfig(tracking_uri=stack.uri, experiment_name="warm", request_timeout=5)
    asyncio.run(seconds_of(warm, 0.0))
    MLflowTracker(warm).sync.flush()
    print("| the server | longest stall | longest GC | metrics per second | time on / off, median (each) |")
    print("|---|---|---|---|---|")
    idle, collected, _ = asyncio.run(longest_stall(warm, log=False))
    print(f"| (nothing is logged) | {idle:.1f} ms | {collected:.1f} ms | | |", flush=True)
    for name in CONDITIONS:
        proxy = Proxy(stack.uri)
        config = MLflowConfig(tracking_uri=proxy.url, experiment_name=name, request_timeout=5)
        try:
            MLflowTracker(config).sync.search_runs()
            set_condition(proxy, name)
            stall, collected, took = asyncio.run(longest_stall(config, log=True))
            ratios = []
            for number in range(pairs):
                times = {}
                for on in (True, False) if number % 2 else (False, True):
                    times[on] = asyncio.run(seconds_of(config if on else None, latency))
                ratios.append(times[True] / times[False])
            each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            median = statistics.median(ratios)
            figures = f"{stall:.1f} ms | {collected:.1f} ms | {METRICS / took:,.0f}"
            print(f"| {name} | {figures} | {median:.3f} ({each}) |", flush=True)
        finally:
            proxy.fault = lambda method, path: "drop"
            proxy.close()
            stop_deliveries()


if __name__ == "__main__":
    main()
