"""How often the product's own tests are wrong: `python -m benchmarks.proof.simulate [--draws 4000]`.

Prints the tables of docs/statistics.md:

1. verdict `better` on noise: 0/1 scores exactly, by summing over all outcomes; graded and clustered scores by
   simulation, with differences whose mean is 0;
2. coverage of the 95% interval, where there is a gain;
3. power at `smallest_detectable_gain` and `gain_that_can_show`;
4. the best of 20 runs by the ranking of `agentcore best`: how often it has no gain.

Exits 1 if a bound of docs/statistics.md is exceeded.
"""

import argparse
import sys
from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from agentcore.evaluation import (
    exact_power,
    exact_test,
    gain_that_can_show,
    mean_interval,
    paired_test,
    smallest_detectable_gain,
)

SIZES = (20, 40, 60, 100, 200, 500)
MOST_ERRORS, LEAST_COVERAGE, MOST_FALSE_BESTS = 0.025, 0.95, 0.06
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def two_points(share: float, loss: float) -> Draw:
    """Losses with a small probability that pay for gains in all other examples."""
    gain = share * loss / (1 - share)
    return lambda rng, shape: np.where(rng.random(shape) < share, -loss, gain)


GRADED: dict[str, Draw] = {
    "uniform scores": lambda rng, shape: rng.random(shape) - rng.random(shape),
    "fifths, 10% differ": lambda rng, shape: np.where(
        rng.random(shape) < 0.1, rng.choice([-0.4, -0.2, 0.2, 0.4], shape), 0.0
    ),
    "halves and wholes": lambda rng, shape: rng.choice([-1.0, 0.5, 0.0], shape, p=[0.1, 0.2, 0.7]),
    "+.05 in 90%, −.45 in 10%": two_points(0.1, 0.45),
    "+.11 in 90%, −.99 in 10%": two_points(0.1, 0.99),
    "+.05 in 95%, −.95 in 5%": two_points(0.05, 0.95),
    "+.02 in 98%, −.98 in 2%": two_points(0.02, 0.98),
    "U-shaped": lambda rng, shape: rng.beta(0.3, 0.1, shape) - 0.75,
}


def correlated(rng: np.random.Generator, shape: tuple[int, ...], within: float, binary: bool) -> np.ndarray:
    """Differences of clusters of ten with this intra-cluster correlation and mean 0."""
    groups = shape[-1] // 10
    common = rng.normal(size=(*shape[:-1], groups, 1))
    own = rng.normal(size=(*shape[:-1], groups, 10))
    latent = (np.sqrt(within) * common + np.sqrt(1 - within) * own).reshape(*shape[:-1], groups * 10)
    if not binary:
        return np.clip(0.25 * latent, -1, 1)
    limit = stats.norm.ppf(0.875)
    return (latent > limit).astype(float) - (latent < -limit).astype(float)


def multinomial(examples: int, up: float, down: float) -> Iterator[tuple[int, int, float]]:
    """All likely outcomes (fixed, broken) and their probabilities."""
    counts = np.arange(examples + 1)
    for changed, chance in zip(counts, stats.binom.pmf(counts, examples, up + down), strict=True):
        if chance < 1e-10:
            continue
        fixed = np.arange(changed + 1)
        for number, part in zip(fixed, stats.binom.pmf(fixed, changed, up / (up + down)), strict=True):
            if part > 1e-9:
                yield int(number), int(changed - number), float(chance * part)


def errors_of_0_1_scores() -> float:
    print("\nverdict `better` on noise, 0/1 scores, exact (share of examples that differ × test examples)\n")
    print("| differ |", " | ".join(map(str, SIZES)), "|\n|---|" + "---|" * len(SIZES))
    worst = 0.0
    for share in (0.02, 0.05, 0.1, 0.25, 0.5):
        row = [exact_power(size, share / 2, share / 2) for size in SIZES]
        worst = max(worst, *row)
        print(f"| {share:.0%} |", " | ".join(f"{value:.2%}" for value in row), "|")
    return worst


def errors_of_graded_scores(draws: int) -> tuple[float, float]:
    print("\nverdict `better` / the interval holds 0, on noise, graded scores\n")
    print("| differences |", " | ".join(map(str, SIZES)), "|\n|---|" + "---|" * len(SIZES))
    worst, least = 0.0, 1.0
    for name, draw in GRADED.items():
        row = []
        for size in SIZES:
            found = [paired_test(values) for values in draw(np.random.default_rng(size), (draws, size))]
            better = float(np.mean([item.verdict == "better" for item in found]))
            covered = float(
                np.mean([item.interval.low <= 1e-9 and item.interval.high >= -1e-9 for item in found])
            )
            worst, least = max(worst, better), min(least, covered)
            row.append(f"{better:.1%} / {covered:.1%}")
        print(f"| {name} |", " | ".join(row), "|")
    return worst, least


def errors_of_clusters(draws: int) -> tuple[float, float]:
    sizes = (60, 100, 200, 500)
    print("\nverdict `better` / the interval holds 0, on noise, clusters of ten\n")
    print("| scores, correlation |", " | ".join(map(str, sizes)), "|\n|---|" + "---|" * len(sizes))
    worst, least = 0.0, 1.0
    for binary in (True, False):
        for within in (0.0, 0.3, 0.7):
            row = []
            for size in sizes:
                clusters = [number // 10 for number in range(size)]
                every = correlated(np.random.default_rng(size), (draws, size), within, binary)
                found = [paired_test(values, clusters) for values in every]
                better = float(np.mean([item.verdict == "better" for item in found]))
                covered = float(
                    np.mean([item.interval.low <= 1e-9 and item.interval.high >= -1e-9 for item in found])
                )
                worst, least = max(worst, better), min(least, covered)
                row.append(f"{better:.1%} / {covered:.1%}")
            print(f"| {'0/1' if binary else 'graded'}, {within:g} |", " | ".join(row), "|")
    return worst, least


def coverage_with_a_gain(draws: int) -> float:
    print(
        "\nthe interval holds the true gain: 0/1 scores exact (80% of the changed fixed), graded simulated\n"
    )
    print("| scores |", " | ".join(map(str, SIZES)), "|\n|---|" + "---|" * len(SIZES))
    least = 1.0
    for share in (0.05, 0.1, 0.25, 0.5):
        row = []
        for size in SIZES:
            up, down = 0.8 * share, 0.2 * share
            covered = sum(
                chance
                for fixed, broken, chance in multinomial(size, up, down)
                if (found := exact_test(fixed, broken, size).interval).low <= up - down <= found.high
            )
            row.append(covered)
        least = min(least, *row)
        print(f"| 0/1, {share:.0%} differ |", " | ".join(f"{value:.1%}" for value in row), "|")
    for name in ("uniform scores", "+.11 in 90%, −.99 in 10%", "halves and wholes"):
        row = []
        for size in SIZES:
            every = 0.5 * GRADED[name](np.random.default_rng(size + 1), (draws, size)) + 0.1
            found = [paired_test(values).interval for values in every]
            row.append(float(np.mean([item.low <= 0.1 <= item.high for item in found])))
        least = min(least, *row)
        print(f"| half of {name}, gain .1 |", " | ".join(f"{value:.1%}" for value in row), "|")
    return least


def power(draws: int) -> float:
    print("\npower at the smallest detectable gain (80% is promised)\n")
    print("| scores |", " | ".join(map(str, SIZES)), "|\n|---|" + "---|" * len(SIZES))
    off = 0.0
    for down in (0.0, 0.02, 0.1):
        row = []
        for size in SIZES:
            gain = smallest_detectable_gain([-1.0] * round(down * size) + [0.0] * (size - round(down * size)))
            if gain is None:
                row.append("none")
                continue
            true = round(down * size) / size
            reached = sum(
                chance
                for fixed, broken, chance in multinomial(size, true + gain, max(true, 1e-12))
                if exact_test(fixed, broken, size).verdict == "better"
            )
            off = max(off, abs(reached - 0.8))
            row.append(f"{gain:.3f}: {reached:.0%}")
        print(f"| 0/1, {down:.0%} broken |", " | ".join(row), "|")
    for spread in (0.1, 0.3):
        row = []
        for size in SIZES:
            rng = np.random.default_rng(size)
            gain = smallest_detectable_gain(spread * np.resize([1.0, -1.0], size))
            assert gain is not None
            every = np.clip(rng.normal(gain, spread, (draws, size)), -1, 1)
            reached = float(np.mean([paired_test(values).verdict == "better" for values in every]))
            off = max(off, abs(reached - 0.8))
            row.append(f"{gain:.3f}: {reached:.0%}")
        print(f"| graded, deviation {spread:g} |", " | ".join(row), "|")
    row = []
    for size in SIZES:
        gain = gain_that_can_show(size)
        if gain is None:
            row.append("none")
            continue
        reached = exact_power(size, (0.25 + gain) / 2, (0.25 - gain) / 2)
        off = max(off, abs(reached - 0.8))
        row.append(f"{gain:.3f}: {reached:.0%}")
    print("| before the run, 25% differ |", " | ".join(row), "|")
    return off


def ranking(draws: int) -> float:
    """20 runs on one test split of 100; half of them have no gain, the others up to 0.3, over baselines from
    0.1 to 0.7. Also shows what ranking by improvement_percentage would choose."""
    rng = np.random.default_rng(0)
    false, short, wrong, far, none = 0, [], 0, [], 0
    for _ in range(draws):
        baseline = rng.uniform(0.1, 0.7, 20)
        gain = np.where(rng.random(20) < 0.5, 0.0, rng.uniform(0, 0.3, 20))
        lost = rng.uniform(0.02, 0.1, 20)
        runs = []
        for base, more, less in zip(baseline, gain, lost, strict=True):
            before = rng.random(100) < base
            broken = before & (rng.random(100) < min(1.0, less / base))
            fixed = ~before & (rng.random(100) < min(1.0, (less + more) / (1 - base)))
            after = (before & ~broken) | fixed
            tested = exact_test(int(fixed.sum()), int(broken.sum()), 100)
            low = mean_interval(list(after.astype(float))).low
            improvement = (after.mean() - before.mean()) / max(before.mean(), 0.01)
            runs.append((tested.interval.low > 0, low, improvement, base + more, more))
        best = max(run[3] for run in runs)
        naive = max(runs, key=lambda run: run[2])
        wrong += naive[4] <= 0
        far.append(best - naive[3])
        proven = [run for run in runs if run[0]]
        if not proven:
            none += 1
            continue
        chosen = max(proven, key=lambda run: run[1])
        false += chosen[4] <= 0
        short.append(best - chosen[3])
    share = false / draws
    print("\nthe best of 20 runs on one test split of 100 examples\n")
    print(
        "| ranked by | the chosen run has no true gain | its true quality falls short of the best by (mean) "
        "| no run chosen |\n|---|---|---|---|"
    )
    print(f"| `agentcore best` | {share:.1%} | {np.mean(short):.3f} | {none / draws:.1%} |")
    print(f"| `improvement_percentage` | {wrong / draws:.1%} | {np.mean(far):.3f} | 0.0% |")
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=4000)
    draws = parser.parse_args().draws
    # Three standard errors of a proportion: a simulated figure may be off by that.
    slack = 3 * np.sqrt(0.025 * 0.975 / draws)
    graded, held = errors_of_graded_scores(draws)
    clustered, clusters_held = errors_of_clusters(draws)
    bounds = [
        ("better on noise, 0/1", errors_of_0_1_scores(), MOST_ERRORS),
        ("better on noise, graded", graded, MOST_ERRORS + slack),
        ("better on noise, clustered", clustered, MOST_ERRORS + slack),
        ("not covered, graded", 1 - held, 1 - LEAST_COVERAGE + 1.5 * slack),
        ("not covered, clustered", 1 - clusters_held, 1 - LEAST_COVERAGE + 1.5 * slack),
        ("not covered, with a gain", 1 - coverage_with_a_gain(draws), 1 - LEAST_COVERAGE + 1.5 * slack),
        ("power off by", power(draws), 0.05),
        ("best of 20 without a gain", ranking(min(draws, 2000)), MOST_FALSE_BESTS),
    ]
    print("\n| | worst | bound |\n|---|---|---|")
    for name, value, bound in bounds:
        print(f"| {name} | {value:.2%} | {bound:.2%} |")
    sys.exit(any(value > bound for _, value, bound in bounds))


if __name__ == "__main__":
    main()
