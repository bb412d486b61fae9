"""Simulate projects that use the promotion gate: `python -m benchmarks.gate.simulate --projects 500`.

Every project has a champion and tries 20 candidates one after the other. Prices, looks, criteria and retired
examples are those of `agentcore.registry`; only the programs' scores are drawn here. For comparison, the
usual practice: promote the best of the runs so far as soon as its p-value on the same test set is below
.05.
"""

import argparse
import multiprocessing
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from agentcore.data import Dataset
from agentcore.evaluation import EvaluationReport, ExampleRecord, paired_test
from agentcore.registry import Criterion, GatePolicy, Look, Side, judge, verdict_of
from agentcore.registry._events import LookDecided, SetExposed
from agentcore.registry._gate import LookPlan, debit, plan_look
from agentcore.registry._state import RegistryState

LOOKS = 20
VALIDATION = 150
NO_GUARDS = GatePolicy(delta={})


@dataclass
class World:
    """How scores are drawn.

    Attributes:
        champion: draws the champion's scores.
        candidate: draws a candidate's, given the champion's.
        cluster: number of examples per cluster; 1 for independent ones.
    """

    champion: Callable[[np.random.Generator, int], np.ndarray]
    candidate: Callable[[np.random.Generator, np.ndarray], np.ndarray]
    sealed: int = 300
    cluster: int = 1
    policy: GatePolicy = field(default_factory=lambda: NO_GUARDS)


def coin(rate: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, count: (rng.random(count) < rate).astype(float)


def symmetric(share: float, gain: float = 0.0) -> Callable[[np.random.Generator, np.ndarray], np.ndarray]:
    """0/1 scores of which a share changes: as many for the better as for the worse, apart from the gain."""

    def draw(rng: np.random.Generator, old: np.ndarray) -> np.ndarray:
        rate = old.mean()
        up = min(1.0, (share + gain) / 2 / max(1e-9, 1 - rate))
        down = min(1.0, (share - gain) / 2 / max(1e-9, rate))
        chance = np.where(old > 0, down, up)
        return np.where(rng.random(old.size) < chance, 1 - old, old)

    return draw


def clustered(size: int, within: float) -> Callable[[np.random.Generator, np.ndarray], np.ndarray]:
    """Changes that whole clusters share: the intra-cluster correlation of the differences is `within`."""

    def draw(rng: np.random.Generator, old: np.ndarray) -> np.ndarray:
        groups = np.repeat(rng.choice([-1.0, 1.0], old.size // size + 1), size)[: old.size]
        own = rng.choice([-1.0, 1.0], old.size)
        difference = np.where(rng.random(old.size) < within**0.5, groups, own)
        return np.where(rng.random(old.size) < 0.4, np.clip(old + difference, 0, 1), old)

    return draw


def documents(rng: np.random.Generator, old: np.ndarray) -> np.ndarray:
    """Ten questions about each document: a tenth of the documents loses nine, the others win one. No gain."""
    lost = np.repeat(rng.random(old.size // 10 + 1) < 0.1, 10)[: old.size]
    place = np.arange(old.size) % 10
    change = np.where(lost, -1.0 * (place < 9), 1.0 * (place < 1))
    return np.clip(old + change, 0, 1)


def rare_losses(rng: np.random.Generator, old: np.ndarray) -> np.ndarray:
    """Graded scores: +.05 in 90 %, −.45 in 10 % of the examples; no gain."""
    return np.clip(old + np.where(rng.random(old.size) < 0.9, 0.05, -0.45), 0, 1)


WORLDS = {
    "0/1 scores, 25 % differ": World(coin(0.6), symmetric(0.25)),
    "0/1 scores, 35 % differ": World(coin(0.6), symmetric(0.35)),
    "graded scores, many small gains and few large losses": World(
        lambda rng, count: np.full(count, 0.5), rare_losses, policy=GatePolicy(delta={}, margin=0.1)
    ),
    "clusters of ten, many small gains and few large losses": World(
        lambda rng, count: np.where(np.arange(count) % 10 < 1, 0.0, 1.0), documents, sealed=3000, cluster=10
    ),
    "clusters of ten, correlation .3": World(coin(0.5), clustered(10, 0.3), sealed=3000, cluster=10),
}


def examples(count: int, cluster: int) -> Dataset:
    rows = [{"question": f"q{n}", "answer": "a", "group": f"g{n // cluster}"} for n in range(count)]
    return Dataset.from_rows(rows, input_fields=["question"], cluster="group" if cluster > 1 else None)


def side(scores: np.ndarray, cost: Any = 0.01, latency: Any = 100.0) -> Side:
    def at(value: Any, number: int) -> float:
        return float(value[number]) if isinstance(value, np.ndarray) else value

    return Side(
        EvaluationReport(
            tuple(
                ExampleRecord(n, str(n), {}, float(score), None, at(latency, n), 10, 10, at(cost, n), 1, 0)
                for n, score in enumerate(scores)
            ),
            0.5,
        )
    )


@dataclass
class Project:
    """One agent's life, up to its first false promotion."""

    world: World
    rng: np.random.Generator
    data: Dataset
    state: RegistryState = field(default_factory=RegistryState)

    def look(
        self, scores: np.ndarray, champion: np.ndarray, validation: np.ndarray
    ) -> tuple[str, list[Criterion]]:
        candidate = SimpleNamespace(
            run_id=uuid.uuid4().hex,
            short_id="",
            digests={},
            metric=SimpleNamespace(name="recorded"),
            lm=SimpleNamespace(model="recorded"),
            validation_differences=tuple(validation),
            splits=SimpleNamespace(sealed=self.data),
        )
        plan = plan_look("agent", self.state, candidate, self.world.policy, None)
        if not isinstance(plan, LookPlan):
            return "no look", [plan]
        entry = debit(plan, candidate, "1", None, self.world.policy, "me")
        self.state.add(entry)
        number = {item.digest: position for position, item in enumerate(self.data)}
        chosen = [number[item.digest] for item in plan.examples]
        clusters = plan.examples.clusters
        measured = Look(
            side(scores[chosen]),
            side(champion[chosen]),
            None,
            tuple(clusters) if clusters else None,
            plan.alpha,
        )
        verdict = verdict_of(judge(measured, self.world.policy))
        shown = judge(measured, self.world.policy, coarse=True)
        self.state.add(LookDecided(look=entry.look, verdict=verdict, criteria=[], shown=[], evidence=""))
        return verdict, shown


def project(arguments: tuple[str, int, str]) -> dict[str, float]:
    """Whether the gate, and whether the usual practice, ever promotes a candidate that is no better."""
    name, seed, developer = arguments
    world, rng = WORLDS[name], np.random.default_rng([seed, 17])
    own = Project(world, rng, examples(world.sealed, world.cluster))
    champion = world.champion(rng, world.sealed)
    validation_champion = world.champion(rng, VALIDATION)
    test_champion = world.champion(rng, 200)
    false = usual = looks = refused = 0
    best, kept = -1.0, champion
    spread: list[float] = []
    for _ in range(LOOKS):
        scores = world.candidate(rng, champion)
        if developer == "climbs" and best > 0:
            # Keeps most of what was shown to be best, and changes the rest.
            scores = np.where(rng.random(scores.size) < 0.7, kept, scores)
        validation = world.candidate(rng, validation_champion) - validation_champion
        spread.append(float(validation.mean()))
        test = world.candidate(rng, test_champion) - test_champion
        usual |= int(test.mean() > 0 and paired_test(list(test)).p_value < 0.05)
        if false:
            continue
        verdict, shown = own.look(scores, champion, validation)
        if verdict == "no look":
            refused += 1
            continue
        looks += 1
        gain = shown[0].figures["gain"]
        if gain > best:
            best, kept = gain, scores
        false = int(verdict == "promote")
        if developer == "looks" and not false:
            last = list(own.state.looks.values())[-1].debited
            own.state.add(SetExposed(look=last.look, members=last.members, how="show", by="me"))
    return {
        "false": false,
        "usual": usual,
        "looks": looks,
        "refused": refused,
        "curse": max(spread),
        "spent": own.state.spent,
    }


def lives(projects: int, only: str) -> None:
    print("| no candidate better | developer | gate | p < .05 on the best run | looks | refused |")
    print("|---|---|---|---|---|---|")
    cases = [(name, "one bit") for name in WORLDS]
    first = next(iter(WORLDS))
    cases += [(first, "climbs"), (first, "looks")]
    cases = [case for case in cases if only in case[0]]
    with multiprocessing.Pool(2) as pool:
        for name, developer in cases:
            found = pool.map(project, [(name, seed, developer) for seed in range(projects)], 5)

            def mean(key: str, found: list[dict[str, float]] = found) -> float:
                return float(np.mean([item[key] for item in found]))

            assert max(item["spent"] for item in found) <= 0.05 + 1e-9
            print(
                f"| {name} | {developer} | {mean('false'):.1%} | {mean('usual'):.0%} | {mean('looks'):.1f} | "
                f"{mean('refused'):.1f} |",
                flush=True,
            )
            if developer == "one bit" and name == first:
                curse = mean("curse")
    if not only:
        print(f"winner's curse: the best of {LOOKS} that are no better: {curse:+.3f} on validation, truly 0")


def power(draws: int) -> None:
    print("\n| true gain .15, n = 200 | share that differs | promoted |\n|---|---|---|")
    policy = NO_GUARDS
    for share in (0.25, 0.3, 0.35):
        rng, promoted = np.random.default_rng(11), 0
        for _ in range(draws):
            kind = rng.choice(
                4, 200, p=[(share + 0.15) / 2, (share - 0.15) / 2, 0.5 - share / 2, 0.5 - share / 2]
            )
            old = np.isin(kind, (1, 2)).astype(float)  # fixed, broken, right, wrong
            new = np.isin(kind, (0, 2)).astype(float)
            found = judge(Look(side(new), side(old), None, None, 0.005), policy)
            promoted += verdict_of(found) == "promote"
        print(f"| at a = .005 | {share:.0%} | {promoted / draws:.1%} |", flush=True)


def guards(draws: int) -> None:
    print("\n| guard | true increase | passed |\n|---|---|---|")
    for name, allowed in (("avg_cost", 0.2), ("avg_latency_ms", 0.2)):
        policy = GatePolicy(delta={name: allowed})
        for increase in (0.0, allowed, 1.5 * allowed):
            rng, passed = np.random.default_rng(13), 0
            for _ in range(draws):
                old = coin(0.5)(rng, 200)
                new = symmetric(0.35, 0.25)(rng, old)
                base = rng.lognormal(0, 0.3, 200)
                own = base * rng.lognormal(0, 0.2, 200) / np.exp(0.02) * (1 + increase)
                sides = (
                    (side(new, cost=own), side(old, cost=base))
                    if name == "avg_cost"
                    else (side(new, latency=100 * own * np.exp(0.02)), side(old, latency=100 * base))
                )
                found = judge(Look(*sides, None, None, 0.0034), policy)
                passed += found[-1].outcome == "passed"
            print(f"| {name}, δ = {allowed:.0%} | {increase:+.0%} | {passed / draws:.1%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--projects", type=int, default=500)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--only", default="", help="simulate only worlds whose name contains this")
    arguments = parser.parse_args()
    lives(arguments.projects, arguments.only)
    if not arguments.only:
        power(arguments.draws)
        guards(arguments.draws)


if __name__ == "__main__":
    main()
