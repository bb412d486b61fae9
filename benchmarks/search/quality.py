"""Test scores of the winners, and their LM calls: `python -m benchmarks.search.quality`.

Over seeds and data sets, without latency: stock `dspy.MIPROv2`, the concurrent search with and without
racing, and random search over demonstrations, each on the same three splits of the same data. Minibatches
already save calls, so the savings of racing are shown both with minibatches and with full evaluations.
"""

import argparse
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from scipy import stats

from benchmarks.search.common import make_lm, match, ours, quiet, stock, task

DATA = ("iris", "wine", "breast_cancer")
WAYS = (
    "stock MIPROv2",
    "concurrent",
    "concurrent, no racing",
    "all examples",
    "all examples, no racing",
    "bootstrap_random_search",
)
ALL_EXAMPLES = {"auto": None, "num_candidates": 6, "num_trials": 10, "minibatch": False}


def run(job: tuple[str, int]) -> dict[str, tuple[float, int]]:
    """Test score and LM calls of the search, by method."""
    name, seed = job
    work, found = task(name, seed), {}
    lm = make_lm()
    compiled = stock(work, lm, auto="light", concurrency=16, seed=seed)
    found["stock MIPROv2"] = (score(work, lm, compiled.program), compiled.calls)
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "concurrent": ("miprov2", {"auto": "light"}),
        "concurrent, no racing": ("miprov2", {"auto": "light", "racing": False}),
        "all examples": ("miprov2", ALL_EXAMPLES),
        "all examples, no racing": ("miprov2", {**ALL_EXAMPLES, "racing": False}),
        "bootstrap_random_search": ("bootstrap_random_search", {"max_labeled_demos": 4}),
    }
    for way, (algorithm, chosen) in settings.items():
        outcome, result = ours(
            work, make_lm(), algorithm=algorithm, concurrency=16, seed=seed, settings=chosen
        )
        found[way] = (result.optimized_performance.quality_score, outcome.calls)
    return found


def score(work: Any, lm: Any, program: Any) -> float:
    import dspy

    test = work.splits.test.dspy()
    with quiet(), dspy.context(lm=lm):
        return statistics.fmean(match(item, program(**item.inputs())) for item in test)


def interval(differences: list[float]) -> tuple[float, float]:
    """95% interval of a mean over seeds, by Student's t."""
    found = stats.ttest_1samp(differences, 0.0).confidence_interval()
    return float(found.low), float(found.high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    jobs = [(name, seed) for name in DATA for seed in range(given.seeds)]
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(run, jobs))
    print(
        "| way | "
        + " | ".join(DATA)
        + " | all | minus stock, 95% interval | LM calls of the search, median |"
    )
    print("|---|" + "---|" * (len(DATA) + 3))
    for way in WAYS:
        by_data = {
            name: [found[way][0] for (where, _), found in zip(jobs, results, strict=True) if where == name]
            for name in DATA
        }
        differences = [found[way][0] - found["stock MIPROv2"][0] for found in results]
        low, high = interval(differences)
        cells = [f"{statistics.fmean(by_data[name]):.3f}" for name in DATA]
        every = statistics.fmean(score for scores in by_data.values() for score in scores)
        calls = statistics.median(found[way][1] for found in results)
        gain = f"{statistics.fmean(differences):+.4f} ({low:+.4f} to {high:+.4f})"
        print(f"| {way} | {' | '.join(cells)} | {every:.4f} | {gain} | {calls:.0f} |")
    for raced, whole in (
        ("concurrent", "concurrent, no racing"),
        ("all examples", "all examples, no racing"),
    ):
        ratio = statistics.median(found[raced][1] / found[whole][1] for found in results)
        differences = [found[raced][0] - found[whole][0] for found in results]
        low, high = interval(differences)
        print(
            f"racing, {raced}: {ratio:.2f} of the calls, test score {statistics.fmean(differences):+.4f} "
            f"({low:+.4f} to {high:+.4f})"
        )


if __name__ == "__main__":
    main()
