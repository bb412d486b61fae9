"""CPU per call, and two searches at once: `python -m benchmarks.search.overhead`."""

import argparse
import asyncio
import time
from typing import Any

import dspy

from agentcore.dspy_optimization import OptimizationPipeline
from benchmarks.search.common import Task, make_lm, match, median, ours, quiet, task


def plain(given: Task, program: Any) -> float:
    """CPU seconds per call of a sequential loop over the validation split."""
    lm = make_lm()
    with quiet(), dspy.context(lm=lm):
        for item in given.splits.validation.examples[:10]:
            program(**item.inputs)
        began, before = time.process_time(), lm.engine.calls
        for item in given.splits.validation:
            program(**item.inputs)
        return (time.process_time() - began) / (lm.engine.calls - before)


def cpu(repeats: int) -> None:
    print("| program | plain loop, CPU ms per call | search, CPU ms per call | ratio (each) |")
    print("|---|---|---|---|")
    for steps in (1, 2):
        loops, searches = [], []
        for seed in range(repeats):
            work = task("breast_cancer", seed, steps=steps)
            found, _ = ours(work, make_lm(0.05), concurrency=16, seed=seed, settings={"auto": "light"})
            searches.append(found.cpu / found.calls)
            loops.append(plain(work, found.program))
        ratios = [mine / loop for mine, loop in zip(searches, loops, strict=True)]
        print(
            f"| {steps} predictor{'s' * (steps > 1)} | {1e3 * median(loops):.2f} "
            f"| {1e3 * median(searches):.2f} "
            f"| {median(ratios):.2f} ({', '.join(f'{value:.2f}' for value in ratios)}) |",
            flush=True,
        )


async def at_once(count: int, seed: int) -> float:
    """Seconds for `count` concurrent searches in one process; the limit doesn't hold them back."""

    async def one(number: int) -> None:
        work = task("breast_cancer", seed + number)
        pipeline = OptimizationPipeline(
            work.program(), match, make_lm(0.3), enable_tracking=False, max_concurrency=16, seed=seed + number
        )
        await pipeline.run_optimization(
            {"target": {"id": "benchmark"}},
            training_data=work.splits.train,
            validation_data=work.splits.validation,
            test_data=work.splits.test.part("test", work.splits.test.examples[:60]),
        )

    began = time.monotonic()
    with quiet():
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))
    return time.monotonic() - began


def together(repeats: int) -> None:
    asyncio.run(at_once(1, 0))  # warm
    ratios, ones, twos = [], [], []
    for seed in range(repeats):
        ones.append(max(asyncio.run(at_once(1, seed)), asyncio.run(at_once(1, seed + 1))))
        twos.append(asyncio.run(at_once(2, seed)))
        ratios.append(twos[-1] / ones[-1])
    print(
        f"one search alone (the slower of the two) {median(ones):.1f} s, two at once {median(twos):.1f} s: "
        f"{median(ratios):.2f} times ({', '.join(f'{value:.2f}' for value in ratios)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    cpu(given.repeats)
    together(given.repeats)


if __name__ == "__main__":
    main()
