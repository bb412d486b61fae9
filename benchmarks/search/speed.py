"""Compare the concurrent search with `dspy.MIPROv2`: `python -m benchmarks.search.speed`.

Same seed, data and engine, alternating in one process. The physical limit is the number of calls times their
latency divided by the concurrency, or the CPU time of a plain loop over as many calls, whichever is more;
plus the longest chain of dependent calls.
"""

import argparse
import math
import time

import dspy

from benchmarks.search.common import make_lm, median, ours, quiet, stock, task, views

LATENCY = 0.3
BATCH = 5


def cpu_per_call(name: str, steps: int) -> float:
    """CPU seconds per call of `program(**inputs)`, with demonstrations like an optimized program."""
    given, lm = task(name, 0, steps=steps), make_lm()
    program = dspy.LabeledFewShot(k=4).compile(given.program(), trainset=given.splits.train.dspy())
    examples = given.splits.validation.examples[:60]
    with quiet(), dspy.context(lm=lm):
        for item in examples[:10]:
            program(**item.inputs)
        began, before = time.process_time(), lm.engine.calls
        for item in examples:
            program(**item.inputs)
        return (time.process_time() - began) / (lm.engine.calls - before)


def chain(train: int, steps: int, auto: str) -> int:
    """Dependent calls: data summary, instruction, then each round of trials, and the last full evaluation."""
    trials = {"light": 6, "medium": 12}[auto]
    drawn = int(max(2 * 2 * steps * math.log2(trials), 1.5 * trials))
    left = drawn + 1 - 10
    rounds = 1 + (math.ceil(left / BATCH) if left > 2 else 0)
    return views(train) + 1 + steps * (rounds + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--auto", nargs="+", default=["light", "medium"])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--slow", type=float, nargs="+", default=[0.0], help="share of calls 10 times slower")
    parser.add_argument("--data", default="breast_cancer means", help="or breast_cancer, with all 30 fields")
    given = parser.parse_args()
    print(
        "| program | auto | in flight | slow calls | stock s | ours s | times faster (each) | stock calls "
        "| our calls | calls, ours / stock | limit s | ours / limit |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for steps in given.steps:
        each = cpu_per_call(given.data, steps)
        for auto in given.auto:
            for concurrency in given.concurrency:
                for slow in given.slow:
                    row(given.data, steps, auto, concurrency, slow, given.repeats, each)


def row(data: str, steps: int, auto: str, concurrency: int, slow: float, repeats: int, cpu: float) -> None:
    theirs, mine = [], []
    for seed in range(repeats):
        work = task(data, seed, steps=steps)
        theirs.append(stock(work, make_lm(LATENCY, slow), auto=auto, concurrency=concurrency, seed=seed))
        found, _ = ours(
            work, make_lm(LATENCY, slow), concurrency=concurrency, seed=seed, settings={"auto": auto}
        )
        mine.append(found)
    faster = [a.seconds / b.seconds for a, b in zip(theirs, mine, strict=True)]
    fewer = [b.calls / a.calls for a, b in zip(theirs, mine, strict=True)]
    mean = LATENCY * (1 + 9 * slow)
    limits = [
        max(item.calls * mean / concurrency, item.calls * cpu) + chain(60, steps, auto) * mean
        for item in mine
    ]
    over = [item.seconds / limit for item, limit in zip(mine, limits, strict=True)]
    print(
        f"| {steps} predictor{'s' * (steps > 1)} | {auto} | {concurrency} | {slow:.0%} "
        f"| {median([item.seconds for item in theirs]):.1f} | {median([item.seconds for item in mine]):.1f} "
        f"| {median(faster):.2f} ({', '.join(f'{value:.2f}' for value in faster)}) "
        f"| {median([item.calls for item in theirs]):.0f} | {median([item.calls for item in mine]):.0f} "
        f"| {median(fewer):.2f} | {median(limits):.1f} | {median(over):.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
