"""How examples are divided into train, validation, test and a sealed rest.

Membership depends on the examples and the split's own seed, not on the search's: whoever repeats a search
with another seed is tested on the same examples."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agentcore.data._canonical import canonical_json
from agentcore.data._example import Example
from agentcore.errors import DataError

Split = Literal["train", "validation", "test", "sealed"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "sealed")
Fractions = tuple[float, float, float]

MINIMUM: Mapping[Split, int] = {"train": 2, "validation": 2, "test": 6}
"""Fewest groups of examples; with fewer than 6 pairs, no paired test can reach p < 0.05: 2 · 2⁻⁵ = 0.0625."""
_MAX_TRAIN, _MAX_VALIDATION, _MAX_TEST = 150, 300, 600
_MAX_LABELS = 20


def planned_sizes(examples: int) -> tuple[int, int, int]:
    """Sizes of train, validation and test; the rest stays sealed for later tests.

    Small sets are divided 30/30/40. With more examples, a search needs a smaller share of them (train and
    validation grow with √n, up to 150 and 300), and a test of 600 shows a gain of 0.06. docs/statistics.md
    has the measurements.
    """
    train = min(0.3 * examples, 2.7 * math.sqrt(examples), _MAX_TRAIN)
    share = 0.3 if examples < 100 else 0.35
    validation = min(share * examples, 5.9 * math.sqrt(examples), _MAX_VALIDATION)
    sizes = round(train), round(validation)
    return *sizes, min(_MAX_TEST, examples - sum(sizes))


@dataclass(frozen=True)
class _Group:
    """Examples that must stay together: the same inputs apart from case, spaces and
    punctuation at the ends, or one cluster."""

    order: bytes
    examples: tuple[Example, ...]
    keys: frozenset[str]
    stratum: str


def divide(
    examples: Sequence[Example],
    seed: int,
    fractions: Fractions | None,
    keep: Mapping[str, Split],
    name: str,
    sealed: int = 0,
) -> dict[Split, list[Example]]:
    """Divide examples into the four splits; see `Dataset.split`.

    Args:
        keep: splits of keys (see `keys_of`) that an earlier run has already used.
        sealed: minimum number of examples to keep sealed.
    """
    groups = _groups(examples, seed)
    _check_number(groups, name)
    placed: dict[Split, list[_Group]] = {part: [] for part in SPLITS}
    free = []
    for group in groups:
        known = {keep[key] for key in group.keys if key in keep}
        # What any search has seen can't be tested on.
        part = next((part for part in SPLITS if part in known), None)
        if part is None:
            free.append(group)
        else:
            placed[part].append(group)
    targets = _targets(max(0, len(examples) - sealed), fractions)
    if sealed:
        free, rest = _reserved(free, sealed)
        placed["sealed"] += rest
    _fill(placed, free, targets)
    if len(placed["test"]) < MINIMUM["test"]:
        raise DataError(
            f"{name}: only {len(placed['test'])} examples are left for the test split, but "
            f"{MINIMUM['test']} are needed: the others are demonstrations of the program, or were in the "
            "train or validation split of the run to start from. Add examples"
        )
    found = {part: [item for group in placed[part] for item in group.examples] for part in SPLITS}
    # The same test examples have the same digest, whatever led to them.
    found["test"].sort(key=lambda item: item.digest)
    return found


def _reserved(free: Sequence[_Group], sealed: int) -> tuple[list[_Group], list[_Group]]:
    """Divide groups into those to use and those to keep sealed, which are spread evenly among them."""
    total = sum(len(group.examples) for group in free)
    used: list[_Group] = []
    kept: list[_Group] = []
    seen = held = 0
    for group in free:
        seen += len(group.examples)
        if held < sealed and held * total < sealed * seen:
            kept.append(group)
            held += len(group.examples)
        else:
            used.append(group)
    return used, kept


def keys_of(example: Example) -> list[str]:
    """What ties an example to others: its folded inputs, and its cluster."""
    keys = [example.folded_digest]
    if example.cluster is not None:
        keys.append(hashlib.sha256(f"cluster {example.cluster}".encode()).hexdigest())
    return keys


def _targets(examples: int, fractions: Fractions | None) -> dict[Split, int]:
    if fractions is None:
        train, validation, test = planned_sizes(examples)
    else:
        train, validation = round(fractions[0] * examples), round(fractions[1] * examples)
        test = examples - train - validation
    return {"train": train, "validation": validation, "test": test}


def _fill(placed: dict[Split, list[_Group]], free: Sequence[_Group], targets: Mapping[Split, int]) -> None:
    """Place the free groups, in their order, until each split has its number of examples."""
    waiting = list(free)
    for part in ("train", "validation", "test"):
        mine, least = placed[part], MINIMUM[part]
        later = sum(
            max(0, MINIMUM[other] - len(placed[other])) for other in SPLITS[SPLITS.index(part) + 1 : 3]
        )
        size = sum(len(group.examples) for group in mine)
        last = part == "test" and targets["test"] < _MAX_TEST
        while waiting and (len(mine) < least or last or size + len(waiting[0].examples) / 2 <= targets[part]):
            if len(waiting) <= later and len(mine) >= least:
                break
            size += len(waiting[0].examples)
            mine.append(waiting.pop(0))
    placed["sealed"] += waiting


def _groups(examples: Sequence[Example], seed: int) -> list[_Group]:
    """Groups of examples, spread so that every range of them has all labels in proportion."""
    members = _connected([keys_of(item) for item in examples])
    strata = _strata(examples)
    groups = []
    for numbers in members:
        items = sorted((examples[number] for number in numbers), key=lambda item: item.digest)
        keys = frozenset(key for item in items for key in keys_of(item))
        order = hashlib.sha256(f"{seed}:{min(keys)}".encode()).digest()
        groups.append(_Group(order, tuple(items), keys, strata[items[0].digest]))
    return _spread(groups)


def _spread(groups: Iterable[_Group]) -> list[_Group]:
    """Order groups by their position within their stratum, from 0 to 1, by examples."""
    by_stratum: dict[str, list[_Group]] = {}
    for group in sorted(groups, key=lambda item: item.order):
        by_stratum.setdefault(group.stratum, []).append(group)
    placed = []
    for members in by_stratum.values():
        total, before = sum(len(item.examples) for item in members), 0
        for item in members:
            placed.append(((before + len(item.examples) / 2) / total, item.order, item))
            before += len(item.examples)
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


def _strata(examples: Sequence[Example]) -> dict[str, str]:
    """The label of each example, by digest, if the labels are few values; else the same for all."""
    labels = {item.digest: canonical_json(item.labels) for item in examples}
    distinct = set(labels.values())
    if len(distinct) <= min(_MAX_LABELS, len(examples) // 3):
        return labels
    return dict.fromkeys(labels, "")


def _connected(keys: Sequence[Sequence[str]]) -> list[list[int]]:
    """Positions that share a key, directly or through others."""
    parent = list(range(len(keys)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first: dict[str, int] = {}
    for number, own in enumerate(keys):
        for key in own:
            parent[root(number)] = root(first.setdefault(key, number))
    found: dict[int, list[int]] = {}
    for number in range(len(keys)):
        found.setdefault(root(number), []).append(number)
    return list(found.values())


def _check_number(groups: Sequence[_Group], name: str) -> None:
    needed = sum(MINIMUM.values())
    if len(groups) < needed:
        what = "example" if len(groups) == 1 else "examples"
        raise DataError(
            f"{name}: {len(groups)} distinct {what}, but at least {needed} are needed (train ≥ "
            f"{MINIMUM['train']}, validation ≥ {MINIMUM['validation']}, test ≥ {MINIMUM['test']}). Examples "
            "whose inputs differ only in case, spaces or punctuation at the ends, or that share a cluster, "
            "count once. Add examples"
        )
