"""Ranks a prompt's demonstrations by distance to the query."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from agentcore.lm._prompt import Field


class Neighbour(NamedTuple):
    position: int
    distance: float
    """0 for equal inputs, 1 for inputs that have nothing in common."""


def rank(demos: Sequence[dict[str, str]], query: dict[str, str], fields: Sequence[Field]) -> list[Neighbour]:
    """All demonstrations, nearest first; ties keep their order in the prompt.

    The distance is the root mean square of the distances per input field: the difference divided by the range
    (numbers), 0 or 1 (fields with listed values), 1 − cosine of TF-IDF vectors (text), 1 (a missing value).
    """
    if not demos:
        return []
    columns = [
        _distances([demo.get(field.name) for demo in demos], query.get(field.name), field) for field in fields
    ]
    found = [
        Neighbour(index, math.sqrt(sum(column[index] ** 2 for column in columns) / max(1, len(columns))))
        for index in range(len(demos))
    ]
    return sorted(found, key=lambda item: item.distance)


def _distances(values: list[str | None], target: str | None, field: Field) -> list[float]:
    if target is None:
        return [1.0] * len(values)
    if field.allowed:
        return [0.0 if value == target else 1.0 for value in values]
    numbers = [_number(value) for value in values]
    goal = _number(target)
    present = [number for number in numbers if number is not None]
    if goal is not None and len(present) == sum(value is not None for value in values):
        spread = max([*present, goal]) - min([*present, goal])
        return [
            1.0 if number is None else abs(number - goal) / spread if spread else 0.0 for number in numbers
        ]
    return _text_distances(values, target)


def _text_distances(values: list[str | None], target: str) -> list[float]:
    texts = [value or "" for value in values]
    try:
        # The default pattern drops one-character words, but digits and single letters matter here.
        words = TfidfVectorizer(token_pattern=r"\w+")  # noqa: S106 - a pattern, not a secret
        vectors = words.fit_transform([*texts, target])
    except ValueError:  # none of the texts contains a word
        return [0.0 if value == target else 1.0 for value in values]
    similarity = cosine_similarity(vectors[:-1], vectors[-1]).ravel()
    return [
        1.0 if value is None else min(1.0, max(0.0, 1.0 - float(score)))
        for value, score in zip(values, similarity, strict=True)
    ]


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
