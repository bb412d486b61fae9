"""Canonical forms of values, and their digests."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from agentcore._json import json_text, json_value

_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{1,15})?")
_EXACT = 2**53
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})
_EDGES = frozenset({"Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sk", "So"})
"""Unicode's punctuation, and symbols such as backticks and emoji; not those of mathematics and money."""


def canonical_json(value: Any) -> str:
    """Canonical JSON, the same for equal data: sorted keys, no spaces, no NaN or infinity."""
    return json_text(value, compact=True)


def sha256(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fold(value: Any) -> Any:
    """A value without what rarely distinguishes two questions: case, spaces, invisible characters, curly
    quotes, punctuation at the ends, and whether a number is written as text (as in a CSV file)."""
    if isinstance(value, bool):
        return str(value).casefold()
    if isinstance(value, (int, float)):
        return _number(str(value))
    if isinstance(value, str):
        visible = "".join(item for item in value if unicodedata.category(item) != "Cf")
        words = " ".join(unicodedata.normalize("NFKC", visible).translate(_QUOTES).casefold().split())
        if _NUMBER.fullmatch(words):
            return _number(words)
        start, end = 0, len(words)
        while start < end and not words[start].isalnum() and _is_edge(words[start]):
            start += 1
        while end > start and not words[end - 1].isalnum() and _is_edge(words[end - 1]):
            end -= 1
        return words[start:end] or words
    if isinstance(value, Mapping):
        return {str(fold(str(key))): fold(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fold(item) for item in value]
    return value if value is None else fold(json_value(value))


def folded_digest(values: Mapping[str, Any]) -> str:
    """sha256 of folded values: equal for examples that must not be in different splits."""
    return sha256(fold(values))


def _is_edge(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in _EDGES


def _number(text: str) -> str:
    number = float(text)
    return str(int(number)) if number.is_integer() and abs(number) < _EXACT else repr(number)
