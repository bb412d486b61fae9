"""The JSON Schema of rows: inferred from them, and checked."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agentcore.errors import DataError

PERSONAL = "x-personal-data"
"""The keyword that marks a field with personal data."""
_SHOWN = 5
"""Bad rows that an error lists."""


def type_of(value: Any) -> str:
    """The type of a JSON value, as JSON Schema names it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, (list, tuple)) else "object"


class SchemaBuilder:
    """Infers the schema of rows that pass by, in memory that doesn't grow with their number."""

    def __init__(self) -> None:
        self.rows = 0
        self._types: dict[str, set[str]] = {}
        self._present: dict[str, int] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        for name, value in row.items():
            self._types.setdefault(name, set()).add(type_of(value))
            self._present[name] = self._present.get(name, 0) + 1

    def schema(self) -> dict[str, Any]:
        """A JSON Schema: the types of each field, and which fields every row has."""
        return {
            "type": "object",
            "properties": {name: {"type": _shown(found)} for name, found in self._types.items()},
            "required": [name for name, count in self._present.items() if count == self.rows],
            "additionalProperties": False,
        }


def _shown(types: set[str]) -> str | list[str]:
    found = types - {"integer"} if "number" in types else types  # an integer is a number, too
    return next(iter(found)) if len(found) == 1 else sorted(found)


def row_problems(row: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row; nothing if it fits the schema."""
    properties = schema.get("properties", {})
    problems = [f"{name} is missing" for name in schema.get("required", ()) if name not in row]
    for name, value in row.items():
        if name not in properties:
            if schema.get("additionalProperties") is False:
                problems.append(f"{name} is unknown")
            continue
        allowed = properties[name].get("type")
        types = {allowed} if isinstance(allowed, str) else set(allowed or ())
        found = type_of(value)
        if types and found not in types and not (found == "integer" and "number" in types):
            problems.append(f"{name} is {found}, not {' or '.join(sorted(types))}")
    return problems


def checked(rows: Iterable[dict[str, Any]], schema: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """The rows; raises `DataError` with the first bad ones, once all rows or five bad ones have passed."""
    bad: list[str] = []
    for number, row in enumerate(rows, 1):
        problems = row_problems(row, schema)
        if problems:
            bad.append(f"row {number}: {', '.join(problems)}")
            if len(bad) == _SHOWN:
                break
        elif not bad:
            yield row
    if bad:
        raise DataError(f"{name} doesn't fit its schema: {'; '.join(bad)}")
