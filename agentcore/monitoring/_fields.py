"""Input drift: whether the values of a field have another distribution in one data set than in another."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from agentcore._json import json_text
from agentcore.data import is_missing

FIELD_ALPHA = 0.01
"""Rate of false discoveries among the fields (Benjamini and Hochberg 1995)."""
_CATEGORIES = 50
_EXPECTED = 5
"""Values of which fewer are expected in the smaller data set count as one category."""
_BINS = 10
_FEW_NUMBERS = 10
_IDENTIFIER = re.compile(r"(^|_)(id|uuid|guid|key)$|^index$", re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?")

Kind = Literal["Kolmogorov–Smirnov", "chi-squared", "domain classifier", "missing values", "not tested"]


@dataclass(frozen=True)
class FieldDrift:
    """One field of two data sets.

    Attributes:
        test: how it was compared.
        effect: 0 (the same) to 1: the KS statistic of numbers, Cramér's V of categories, and of text
            2·AUC − 1 of a classifier that tells the data sets apart.
        p_value: None if the field was not tested, or only one data set has it.
        adjusted: for the number of fields.
        psi: population stability index; over 0.2 is commonly called large. None for text.
        note: why it was not tested, or what else there is to say.
    """

    name: str
    test: Kind
    effect: float
    p_value: float | None
    adjusted: float | None = None
    psi: float | None = None
    drifted: bool = False
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return dict(vars(self))


def field_drift(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], alpha: float = FIELD_ALPHA
) -> list[FieldDrift]:
    """Compare every field of two data sets. Identifiers and times are not tested: they always differ."""
    names = list(dict.fromkeys(name for rows in (before, after) for row in rows for name in row))
    found = [_field(name, before, after) for name in names]
    tested = [number for number, item in enumerate(found) if item.p_value is not None]
    if tested:
        adjusted = stats.false_discovery_control([float(found[number].p_value or 0) for number in tested])
        for number, value in zip(tested, adjusted, strict=True):
            found[number] = replace(found[number], adjusted=float(value), drifted=bool(value < alpha))
    return found


def _field(name: str, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> FieldDrift:
    columns = [[row.get(name) for row in rows] for rows in (before, after)]
    present = [[value for value in column if not is_missing(value)] for column in columns]
    lost = [len(column) - len(values) for column, values in zip(columns, present, strict=True)]
    if not present[0] and not present[1]:
        return FieldDrift(name, "not tested", 0.0, None, note="no values")
    found = [_compared(name, *present)] if present[0] and present[1] else []
    if any(lost):
        share, p = _counts([lost, [len(values) for values in present]])
        told = f"missing: {lost[0] / len(columns[0]):.1%} → {lost[1] / len(columns[1]):.1%}"
        found.append(FieldDrift(name, "missing values", share, p, note=told))
    kinds = [Counter(map(_kind, values)) for values in present]
    if found and len({*kinds[0], *kinds[1]}) > 1 and all(present):
        share, p = _counts([[kinds[0][kind], kinds[1][kind]] for kind in {**kinds[0], **kinds[1]}])
        told = " → ".join(", ".join(f"{count} {kind}" for kind, count in part.items()) for part in kinds)
        found.append(FieldDrift(name, "chi-squared", share, p, note=told))
    tested = [item for item in found if item.p_value is not None]
    if not tested:
        return found[0]
    # The smallest of several p-values, for their number (Bonferroni).
    best = min(tested, key=lambda item: item.p_value if item.p_value is not None else 1.0)
    return replace(best, p_value=min(1.0, len(tested) * float(best.p_value or 0.0)))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "booleans"
    if isinstance(value, (int, float)):
        return "numbers"
    return "texts" if isinstance(value, str) else "others"


def _compared(name: str, before: list[Any], after: list[Any]) -> FieldDrift:
    both = [*before, *after]
    texts = [value if isinstance(value, str) else json_text(value) for value in both]
    distinct = len(set(texts))
    if _IDENTIFIER.search(name) and distinct > len(both) / 4:
        return FieldDrift(name, "not tested", 0.0, None, note="an identifier")
    if all(isinstance(value, str) and _TIME.fullmatch(value) for value in both):
        return FieldDrift(name, "not tested", 0.0, None, note="a time")
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in both)
    if numeric and distinct > _FEW_NUMBERS:
        return _numbers(name, np.asarray(before, dtype=float), np.asarray(after, dtype=float))
    if distinct <= _CATEGORIES or numeric:
        return _categories(name, texts[: len(before)], texts[len(before) :])
    if distinct > 0.95 * len(both) and not any(" " in text.strip() for text in texts):
        return FieldDrift(name, "not tested", 0.0, None, note="every value is different")
    return _texts(name, texts[: len(before)], texts[len(before) :])


def _numbers(name: str, before: "np.ndarray", after: "np.ndarray") -> FieldDrift:
    found = stats.ks_2samp(before, after)
    quantiles, times = np.unique(np.quantile(before, np.linspace(0, 1, _BINS + 1)[1:-1]), return_counts=True)
    # A value that many rows have gets a bin of its own.
    edges = np.unique(np.append(quantiles, np.nextafter(quantiles[times > 1], math.inf)))
    counts = [
        np.bincount(np.searchsorted(edges, values, side="right"), minlength=edges.size + 1)
        for values in (before, after)
    ]
    note = f"mean {before.mean():.4g} → {after.mean():.4g}"
    return FieldDrift(
        name, "Kolmogorov–Smirnov", float(found.statistic), float(found.pvalue), psi=_psi(*counts), note=note
    )


def _categories(name: str, before: Sequence[str], after: Sequence[str]) -> FieldDrift:
    old, new = Counter(before), Counter(after)
    # As many as the test needs are expected in the smaller data set.
    share = min(len(before), len(after)) / (len(before) + len(after))
    common = [value for value in {**old, **new} if (old[value] + new[value]) * share >= _EXPECTED]
    kept = set(common)
    rest = [sum(count[value] for value in count if value not in kept) for count in (old, new)]
    table = [[old[value], new[value]] for value in common]
    if any(rest):
        if table and sum(rest) * share < _EXPECTED:
            least = min(table, key=sum)
            table.remove(least)
            rest = [one + other for one, other in zip(rest, least, strict=True)]
        table.append(rest)
    if len(table) < 2:
        return FieldDrift(name, "chi-squared", 0.0, 1.0, psi=0.0)
    effect, p = _counts(table)
    return FieldDrift(name, "chi-squared", effect, p, psi=_psi(*np.asarray(table).T))


def _counts(table: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Cramér's V and p-value of a table of counts; Fisher's exact test of a small one of 2 × 2."""
    counts = np.asarray(table)
    counts = counts[counts.sum(axis=1) > 0]
    if counts.shape[0] < 2:
        return 0.0, 1.0
    found = stats.chi2_contingency(counts, correction=False)
    p = float(found.pvalue)
    if counts.shape[0] == 2 and found.expected_freq.min() < 2 * _EXPECTED:
        p = float(stats.fisher_exact(counts).pvalue)
    return math.sqrt(float(found.statistic) / counts.sum()), p


def _psi(before: Any, after: Any) -> float:
    """Σ (q − p)·ln(q/p) over the bins, with half a row added to each so that none is empty, less what is
    expected of two samples from one distribution; at least 0."""
    old, new = (np.asarray(item, dtype=float) + 0.5 for item in (before, after))
    chance = (old.size - 1) * (1 / old.sum() + 1 / new.sum())
    old, new = old / old.sum(), new / new.sum()
    return max(0.0, float(((new - old) * np.log(new / old)).sum() - chance))


def _texts(name: str, before: Sequence[str], after: Sequence[str]) -> FieldDrift:
    """Train a classifier to tell the data sets apart on one half of each (by the digest of the text, so that
    equal texts stay together), and test its ranking of the other half."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = np.asarray([*before, *after], dtype=object)
    current = np.arange(texts.size) >= len(before)
    first = np.asarray(
        [hashlib.sha256(text.encode("utf-8", "replace")).digest()[0] % 2 == 0 for text in texts]
    )
    parts = [int(current[mask].sum()) for mask in (first, ~first)]
    sizes = [int(mask.sum()) for mask in (first, ~first)]
    if min(*parts, sizes[0] - parts[0], sizes[1] - parts[1]) < 5:
        return FieldDrift(name, "not tested", 0.0, None, note="too few texts")
    model = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), max_features=20_000, sublinear_tf=True),
        LogisticRegression(max_iter=1000, class_weight="balanced"),
    )
    model.fit(texts[first], current[first])
    scores = model.decision_function(texts[~first])
    new, old = scores[current[~first]], scores[~current[~first]]
    found = stats.mannwhitneyu(new, old, alternative="greater")
    area = float(found.statistic) / (new.size * old.size)
    return FieldDrift(name, "domain classifier", max(0.0, 2 * area - 1), float(found.pvalue))
