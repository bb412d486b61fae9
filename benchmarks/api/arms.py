"""How often the comparison of two versions is wrong, and when it finds a difference, by simulation.

    python -m benchmarks.api.arms --comparisons 1000

Each comparison is looked at about 60 times, from 1,000 requests to the end: a claim is wrong if the interval
misses the true difference at any look. For one figure, at most 1.67% may be. Error rates and scores are drawn
by bucket, as the API counts them; latencies as sums of logarithms.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from agentcore.api._arms import BUCKETS, ArmTotals, claims_of

_ZERO = np.zeros(BUCKETS)
Totals = Iterator[tuple[int, ArmTotals, ArmTotals]]


def looks(most: int) -> "np.ndarray":
    return np.unique(np.geomspace(1_000, most, 60).astype(int))


@dataclass
class Keys:
    """Keys with rates of their own: the share of requests that fail, of each of them."""

    rates: Callable[["np.random.Generator", int], "np.ndarray"]
    keys: int | None = None
    """None: each request has a key of its own."""


def errors(rng: "np.random.Generator", most: int, share: float, old: Keys, new: Keys) -> Totals:
    """Totals at each look."""
    sums = np.zeros((2, 2, BUCKETS))
    before = 0
    count = old.keys
    if count is not None:
        mine = rng.random(count) < share
        buckets, rates = rng.integers(BUCKETS, size=count), old.rates(rng, count)
    for at in looks(most):
        step, before = at - before, at
        if count is None:
            for arm, size, keys in ((0, step - round(step * share), old), (1, round(step * share), new)):
                found = rng.multinomial(size, np.full(BUCKETS, 1 / BUCKETS))
                sums[arm, 0] += found
                sums[arm, 1] += rng.binomial(found, keys.rates(rng, 1)[0])
        else:
            found = rng.multinomial(step, np.full(count, 1 / count))
            failed = rng.binomial(found, rates)
            for arm, which in ((0, ~mine), (1, mine)):
                sums[arm, 0] += np.bincount(buckets[which], found[which], BUCKETS)
                sums[arm, 1] += np.bincount(buckets[which], failed[which], BUCKETS)
        yield at, *(ArmTotals(arm[0], arm[1], _ZERO, _ZERO, _ZERO) for arm in sums)  # type: ignore[misc]


def latencies(
    rng: "np.random.Generator",
    most: int,
    share: float,
    slow: tuple[float, float],
    factor: float,
    sigma: float,
) -> Totals:
    """Lognormal, with a share of requests that are slower by a factor; the challenger by another one."""
    sums = np.zeros((2, 2, BUCKETS))
    before = 0
    for at in looks(most):
        step, before = at - before, at
        for arm, size in ((0, step - round(step * share)), (1, round(step * share))):
            found = rng.multinomial(size, np.full(BUCKETS, 1 / BUCKETS))
            slower = rng.binomial(found, slow[0])
            sums[arm, 0] += found
            sums[arm, 1] += rng.normal(0, sigma * np.sqrt(found)) + slower * np.log(slow[1])
            sums[arm, 1] += found * np.log(factor) * arm
        yield at, *(ArmTotals(arm[0], _ZERO, arm[1], _ZERO, _ZERO) for arm in sums)  # type: ignore[misc]


def measured(make: Callable[["np.random.Generator"], Totals], figure: int, truth: float, count: int) -> str:
    wrong, found = 0, []
    for number in range(count):
        rng = np.random.default_rng([7, number])
        missed, first = False, None
        for at, old, new in make(rng):
            claim = claims_of(old, new)[figure]
            if claim.difference is None or claim.low is None or claim.high is None:
                continue
            missed |= not claim.low <= truth <= claim.high
            if first is None and claim.verdict != "not proven":
                first = at
        wrong += missed
        found.append(first)
    shown = "" if truth == 0 else f"{np.median([item or np.inf for item in found]):,.0f}"
    return f"{100 * wrong / count:.2f}% | {shown}"


def fixed(rate: float) -> Keys:
    return Keys(lambda rng, size: np.full(size, rate))


def beta(mean: float, strength: float, keys: int) -> Keys:
    return Keys(lambda rng, size: rng.beta(mean * strength, (1 - mean) * strength, size), keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=1000)
    count = parser.parse_args().comparisons
    print("| what | share | wrong at any look | requests until found (median) |\n|---|---:|---:|---:|")
    for rate in (0.001, 0.01, 0.05, 0.3):
        for share in (0.01, 0.1, 0.5):
            told = measured(
                lambda rng, r=rate, s=share: errors(rng, 60_000, s, fixed(r), fixed(r)), 0, 0.0, count
            )  # type: ignore[misc]
            print(f"| error rate {rate:g}, both | {share:.0%} | {told} |", flush=True)
    for mean, keys, share in ((0.05, 5_000, 0.01), (0.01, 5_000, 0.01), (0.05, 2_000, 0.1), (0.3, 500, 0.1)):
        own = beta(mean, 1.0, keys)
        told = measured(lambda rng, o=own, s=share: errors(rng, 60_000, s, o, o), 0, 0.0, count)  # type: ignore[misc]
        print(f"| error rate {mean:g}, each of {keys:,} keys its own | {share:.0%} | {told} |", flush=True)
    for slow in ((0.0, 1.0), (0.01, 20.0), (0.05, 20.0)):
        for share in (0.01, 0.1):
            told = measured(
                lambda rng, w=slow, s=share: latencies(rng, 60_000, s, w, 1.0, 1.5), 1, 0.0, count
            )  # type: ignore[misc]
            name = (
                f"latency, {slow[0]:.0%} of requests {slow[1]:g} times slower"
                if slow[0]
                else "latency, lognormal"
            )
            print(f"| {name} | {share:.0%} | {told} |", flush=True)
    for before, after in ((0.05, 0.1), (0.05, 0.02), (0.005, 0.02)):
        told = measured(
            lambda rng, b=before, a=after: errors(rng, 60_000, 0.1, fixed(b), fixed(a)),
            0,
            after - before,
            count,  # type: ignore[misc]
        )
        print(f"| error rate {before:g} → {after:g} | 10% | {told} |", flush=True)
    for factor, sigma in ((1.1, 0.5), (1.3, 0.5), (1.3, 1.5)):
        told = measured(
            lambda rng, f=factor, g=sigma: latencies(rng, 60_000, 0.1, (0.0, 1.0), f, g),
            1,
            factor - 1,
            count,  # type: ignore[misc]
        )
        print(f"| latency {factor - 1:+.0%}, σ {sigma:g} | 10% | {told} |", flush=True)


if __name__ == "__main__":
    main()
