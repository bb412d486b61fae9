"""The promotion gate: which sealed examples a look uses, what it costs, and its evidence."""

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentcore.data import Dataset, Example, keys_of, sha256
from agentcore.dspy_optimization import Candidate
from agentcore.errors import DataError
from agentcore.registry._criteria import Criterion
from agentcore.registry._events import LookDebited
from agentcore.registry._policy import GatePolicy
from agentcore.registry._price import Expected, examples_for, price
from agentcore.registry._state import RegistryState

_CHEAPEST = 0.01
"""Minimum cost of a look, as a share of the error budget: cheaper looks would gain nothing."""


@dataclass(frozen=True)
class LookPlan:
    """A look that can be paid for.

    Attributes:
        examples: the sealed examples, a `Dataset`.
        alpha: the look's significance level.
        left: how many more such looks the error budget and the examples allow after a promotion.
        unused: sealed examples that are left for them.
        look: the id of an interrupted look that is already paid for.
    """

    examples: Dataset
    alpha: float
    expected: Expected
    left: int
    unused: int = 0
    look: str | None = None

    @property
    def members(self) -> list[str]:
        """The keys of the examples and of their clusters."""
        return sorted({key for item in self.examples for key in keys_of(item)})


def plan_look(
    agent: str, state: RegistryState, candidate: Candidate, policy: GatePolicy, data: Dataset | None
) -> LookPlan | Criterion:
    """Choose the examples of the next look and fix its price; or say why there can't be one.

    Args:
        data: a sealed test set from elsewhere, instead of the examples that the run kept sealed.

    Raises:
        DataError: examples of `data` were used by the run.
    """
    left = policy.lifetime_alpha - state.spent
    source = data if data is not None else candidate.splits.sealed
    if data is not None:
        _check_unseen(data, candidate)
    retired = state.retired()
    free = _free(source or (), retired)
    used, usable = len(source or ()) - len(free), _without_twins(free)
    clustered = source is not None and source.clusters is not None

    def expected_of(examples: Sequence[Example]) -> Expected:
        clusters = len({item.cluster for item in examples}) if clustered else len(examples)
        return Expected.of(candidate.validation_differences, len(examples) / max(1, clusters))

    known = expected_of(usable)
    needed = examples_for(max(left, 1e-6) / policy.planned_looks, policy.margin, policy.power, known)
    if len(usable) < policy.min_examples or source is None:
        return _too_few(len(usable), used, max(needed, policy.min_examples), retired)
    chosen = _chosen(agent, usable, max(needed, policy.min_examples))
    expected = expected_of(chosen)
    alpha = price(len(chosen), policy.margin, policy.power, expected)
    alpha = max(alpha, _CHEAPEST * policy.lifetime_alpha)
    if alpha > left * (1 + 1e-9):
        return _too_expensive(len(chosen), alpha, left, policy, expected)
    unused = len(usable) - len(chosen)
    looks = min(int((left - alpha) / alpha + 1e-9), unused // len(chosen))
    return LookPlan(source.part("gate", chosen), alpha, expected, looks, unused)


def interrupted_look(
    state: RegistryState,
    candidate: Candidate,
    champion: str,
    anchor: str | None,
    policy: GatePolicy,
    data: Dataset | None,
) -> LookPlan | None:
    """A look at the same programs under the same policy that was paid for and not finished; None if there is
    none, or some of its examples are missing."""
    found = state.open_look
    if found is None:
        return None
    paid = found.debited
    retired = state.retired()
    same = (
        not retired.keys() & set(paid.members)
        and (paid.metric, paid.lm) == (candidate.metric.name, candidate.lm.model)
        and (paid.challenger, paid.files) == (candidate.run_id, dict(candidate.digests))
        and (paid.champion, paid.anchor) == (champion, anchor)
        and paid.policy == policy.model_dump(mode="json")
    )
    source = data if data is not None else candidate.splits.sealed
    if not same or source is None:
        return None
    members = set(paid.members)
    examples = sorted(
        _without_twins([item for item in source if members.issuperset(keys_of(item))]),
        key=lambda item: item.digest,
    )
    chosen = source.part("gate", examples)
    if chosen.digest != paid.test_digest:
        return None
    left = policy.lifetime_alpha - state.spent
    unused = len(_without_twins(_free(source, retired))) - len(chosen)
    looks = min(int(left / paid.alpha + 1e-9), unused // len(chosen))
    return LookPlan(chosen, paid.alpha, Expected(paid.broken), looks, unused, paid.look)


def _check_unseen(data: Dataset, candidate: Candidate) -> None:
    known = candidate.splits.members().keys() | candidate.demos()
    seen = [number for number, item in enumerate(data, 1) if known & set(keys_of(item))]
    if seen:
        raise DataError(
            f"{len(seen)} of the {len(data)} examples of {data.name} (row {seen[0]}, …) were used by run "
            f"{candidate.short_id}, in training, validation, test or its demonstrations: the gate needs "
            "examples that the run has not used"
        )


def _free(examples: Iterable[Example], retired: Mapping[str, str]) -> list[Example]:
    """The examples that are not retired."""
    return [item for item in examples if not retired.keys() & keys_of(item)]


def _without_twins(examples: Sequence[Example]) -> list[Example]:
    """One example of those that differ only in case, spaces or punctuation at the ends: they are no
    independent evidence."""
    kept: dict[str, Example] = {}
    for item in sorted(examples, key=lambda item: item.digest):
        kept.setdefault(item.folded_digest, item)
    return list(kept.values())


def _chosen(agent: str, usable: Sequence[Example], number: int) -> list[Example]:
    """The first examples, whole clusters only, in a fixed order that nobody can choose."""

    def order(item: Example) -> bytes:
        return hashlib.sha256(f"{agent}:{keys_of(item)[-1]}".encode()).digest()

    chosen: list[Example] = []
    for item in sorted(usable, key=lambda item: (order(item), item.digest)):
        if len(chosen) >= number and (item.cluster is None or item.cluster != chosen[-1].cluster):
            break
        chosen.append(item)
    return sorted(chosen, key=lambda item: item.digest)


def _too_few(usable: int, used: int, needed: int, retired: Mapping[str, str]) -> Criterion:
    why = ""
    if used:
        reasons = ", ".join(sorted(set(retired.values())))
        why = f", and {used} are retired: {reasons}"
    return Criterion(
        "sealed examples",
        "undecided",
        f"{usable} examples are left that no run has used{why}; a look needs about {needed}. Optimize with "
        "sealed= (--sealed) to keep more of them back, or pass labelled examples that no run has used as "
        "data= (--data)",
        {"usable": usable, "retired": used, "needed": needed},
        max(1, needed - usable),
    )


def _too_expensive(
    number: int, alpha: float, left: float, policy: GatePolicy, expected: Expected
) -> Criterion:
    share = f"{max(0.0, left):.4f} of {policy.lifetime_alpha:g}"
    if left <= 1e-6:
        return Criterion(
            "error budget",
            "undecided",
            f"the agent's looks have used up its error budget of {policy.lifetime_alpha:g}: any further look "
            "would make a false promotion likelier than that. Promote with a reason as force= (--force), or "
            "accept a higher lifetime_alpha",
            {"left": max(0.0, left)},
        )
    needed = examples_for(policy.lifetime_alpha / policy.planned_looks, policy.margin, policy.power, expected)
    return Criterion(
        "error budget",
        "undecided",
        f"a look at the {number} examples that are left would cost {alpha:.4f} of the error budget, but only "
        f"{share} is left. With about {max(1, needed - number)} more sealed examples, it would cost "
        f"{policy.lifetime_alpha / policy.planned_looks:.4f}: pass labelled examples that no run has used as "
        "data= (--data)",
        {"alpha": alpha, "left": left, "needed": needed},
        max(1, needed - number),
    )


def debit(
    plan: LookPlan,
    candidate: Candidate,
    champion: str,
    anchor: str | None,
    policy: GatePolicy,
    by: str,
) -> LookDebited:
    """The entry that pays for a look."""
    return LookDebited(
        look=uuid.uuid4().hex,
        challenger=candidate.run_id,
        run=candidate.short_id,
        files=dict(candidate.digests),
        champion=champion,
        anchor=anchor,
        test_digest=plan.examples.digest,
        members=plan.members,
        examples=len(plan.examples),
        alpha=plan.alpha,
        broken=plan.expected.broken,
        metric=candidate.metric.name,
        lm=candidate.lm.model,
        policy=policy.model_dump(mode="json"),
        by=by,
    )


def evidence_digest(debited: LookDebited, criteria: Sequence[Mapping[str, Any]], verdict: str) -> str:
    """sha256 of what a decision rests on."""
    content = debited.model_dump(mode="json", exclude={"members"})
    return sha256({"look": content, "criteria": list(criteria), "verdict": verdict})
