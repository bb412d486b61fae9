"""What a record costs, and what is lost: a million records from eight threads, beside a plain counter.

python -m benchmarks.monitoring.collector
"""

import argparse
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from agentcore.monitoring import MetricsCollector
from agentcore.settings import MLflowConfig


class Counter:
    """What one would write by hand."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        with self.lock:
            self.count += 1
            self.total += value


def seconds(work: Callable[[float], None], values: list[list[float]]) -> float:
    """How long all threads together take."""
    start = threading.Barrier(len(values) + 1)

    def run(own: list[float]) -> None:
        start.wait()
        for value in own:
            work(value)

    threads = [threading.Thread(target=run, args=(own,)) for own in values]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    per_thread = given.records // given.threads
    drawn = np.random.default_rng(0).lognormal(4, 1, (given.threads, per_thread))
    values = drawn.tolist()
    config = MLflowConfig(tracking_uri="http://127.0.0.1:9")
    plain, recorded, off = [], [], []
    lost = 0
    for number in range(given.repeats):
        plain.append(seconds(Counter().add, values) / drawn.size * 1e6)
        collector = MetricsCollector(f"benchmark{number}", config=config)
        recorded.append(seconds(collector.record_duration, values) / drawn.size * 1e6)
        found = collector.get_summary()
        lost += drawn.size - found["durations"]
        off.append(abs(found["p99_duration_ms"] / np.percentile(drawn, 99) - 1))
    tracemalloc.start()
    collector = MetricsCollector("memory", config=config)
    peaks = []
    for _ in range(3):
        tracemalloc.reset_peak()
        for own in values[:2]:
            for value in own:
                collector.record_duration(value)
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
    added = statistics.median(recorded) - statistics.median(plain)
    print(f"{drawn.size:,} records, {given.threads} threads, medians of {given.repeats}")
    print("| | µs a record |\n|---|---:|")
    print(f"| a counter behind a lock | {statistics.median(plain):.2f} |")
    print(f"| record_duration | {statistics.median(recorded):.2f} ({added:+.2f}) |")
    print(f"lost: {lost}; p99 off by at most {max(off):.2%}")
    shown = ", ".join(f"{peak:.2f}" for peak in peaks)
    print(f"peak memory in each of three rounds of {2 * per_thread:,} records, MiB: {shown}")


if __name__ == "__main__":
    main()
