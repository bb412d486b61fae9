"""Check that random caps on calls, tokens and USD are not exceeded: `python -m benchmarks.search.budgets`."""

import argparse
import random
from collections import Counter

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.errors import ConfigurationError
from agentcore.lm import Price
from benchmarks.search.common import make_lm, match, quiet, task

PRICES = {"offline/knn": Price(1.0, 5.0)}
ALGORITHMS = ("miprov2", "bootstrap_random_search", "copro", "labeled_few_shot")
SETTINGS = {
    "miprov2": {"auto": "light"},
    "bootstrap_random_search": {"num_candidate_programs": 4},
    "copro": {"breadth": 3, "depth": 2},
    "labeled_few_shot": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=int, default=200)
    given = parser.parse_args()
    rng, ended, exceeded, without = random.Random(0), Counter[str](), 0, 0
    closest = 1.0
    for number in range(given.budgets):
        name = rng.choice(("max_lm_calls", "max_tokens", "max_cost_usd"))
        cap = {
            "max_lm_calls": rng.randint(110, 500),
            "max_tokens": rng.randint(60_000, 500_000),
            "max_cost_usd": rng.uniform(0.06, 0.5),
        }[name]
        algorithm, concurrency = rng.choice(ALGORITHMS), rng.choice((1, 4, 16))
        work = task("iris", number, steps=rng.choice((1, 1, 2)), train=30, validation=30)
        lm = make_lm()
        pipeline = OptimizationPipeline(
            work.program(),
            match,
            lm,
            enable_tracking=False,
            prices=PRICES,
            max_concurrency=concurrency,
            seed=number,
        )
        try:
            with quiet():
                result = pipeline.sync.run_optimization(
                    {
                        "target": {"id": "budget"},
                        "algorithms": [algorithm],
                        "optimizer_settings": {algorithm: SETTINGS[algorithm]},
                        "constraints": {name: cap},
                    },
                    training_data=work.splits.train,
                    validation_data=work.splits.validation,
                    test_data=work.splits.test.part("test", work.splits.test.examples[:40]),
                )
        except ConfigurationError as error:
            told = "leaves nothing for the search" in str(error)
            ended["refused before the search" if told else f"failed: {error}"] += 1
            continue
        spend = result.spend
        used = {
            "max_lm_calls": lm.engine.calls,
            "max_tokens": spend.total_tokens,
            "max_cost_usd": spend.cost_usd or 0.0,
        }[name]
        assert spend.calls == lm.engine.calls
        exceeded += used > cap + 1e-12
        without += result.program is None or result.optimized_performance is None
        ended[result.status] += 1
        if result.status == "budget_exhausted":
            closest = min(closest, 1 - used / cap)
    ways = ", ".join(f"{count} {status}" for status, count in sorted(ended.items()))
    print(f"{given.budgets} budgets: {ways}; {exceeded} exceeded, {without} without a measured winner")
    print(f"the closest run used {1 - closest:.1%} of its cap")


if __name__ == "__main__":
    main()
