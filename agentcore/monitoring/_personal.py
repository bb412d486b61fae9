"""Personal data: fields that the schema marks are kept out of everything that leaves the process."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from agentcore.data import PERSONAL
from agentcore.errors import ConfigurationError

REDACTED = "[personal data]"
_SHORTEST = 3
"""Characters of a personal value that is also looked for in other texts."""
_ALTERNATIVES = ("anyOf", "oneOf", "allOf", "if", "then", "else", "not", "dependentSchemas")

Redaction = Callable[[Any], Any]
"""Takes a request or a decision, and returns what may leave the process."""


class Personal:
    """Removes personal data by a schema, at any depth.

    Args:
        schema: JSON Schema with marks such as `{"type": "string", "x-personal-data": true}`, or a Pydantic
            model with `Field(json_schema_extra={"x-personal-data": True})`, whose fields may be named by
            alias or not.
    """

    def __init__(self, schema: Mapping[str, Any] | type[BaseModel] | None) -> None:
        self._schemas: list[Mapping[str, Any]] = []
        if isinstance(schema, type):
            self._schemas = [schema.model_json_schema(by_alias=by_alias) for by_alias in (True, False)]
        elif isinstance(schema, Mapping):
            self._schemas = [schema]
        elif schema is not None:
            raise ConfigurationError(
                f"schema must be a JSON Schema (a dict) or a Pydantic model, not {type(schema).__name__}"
            )

    def clean(self, value: Any) -> tuple[Any, set[str]]:
        """The value without personal data, and what was removed, to be looked for elsewhere."""
        removed: set[str] = set()
        for schema in self._schemas:
            value = _Walk(schema, removed).clean(value, schema, frozenset())
        return value, removed


class _Walk:
    def __init__(self, root: Mapping[str, Any], removed: set[str]) -> None:
        self.root = root
        self.removed = removed

    def clean(self, value: Any, part: Any, seen: frozenset[str]) -> Any:
        if not isinstance(part, Mapping) or value is None or value == REDACTED:
            return value
        if part.get(PERSONAL):
            self.removed.update(texts_in(value))
            return REDACTED
        reference = part.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            value = self.clean(value, self.at(reference), seen | {reference})
        for keyword in _ALTERNATIVES:
            found = part.get(keyword)
            choices = found if isinstance(found, list) else [found]
            if keyword == "dependentSchemas" and isinstance(found, Mapping):
                choices = list(found.values())
            for choice in choices:
                value = self.clean(value, choice, seen)
        if isinstance(value, Mapping):
            return {name: self.field(str(name), item, part) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = part.get("items")
            first, rest = part.get("prefixItems") or [], items
            if isinstance(items, list):  # JSON Schema before 2020-12
                first, rest = items, part.get("additionalItems")
            return [
                self.clean(
                    self.clean(item, first[number] if number < len(first) else rest, frozenset()),
                    part.get("contains"),
                    frozenset(),
                )
                for number, item in enumerate(value)
            ]
        return value

    def field(self, name: str, value: Any, part: Mapping[str, Any]) -> Any:
        """A value of an object, by every subschema that may apply to its name."""
        properties = part.get("properties") or {}
        patterns = part.get("patternProperties") or {}
        known = [properties[name]] if name in properties else []
        # A pattern may need another dialect of regular expressions: it applies to every name.
        for choice in (*known, *patterns.values()):
            value = self.clean(value, choice, frozenset())
        if not known:
            for keyword in ("additionalProperties", "unevaluatedProperties"):
                value = self.clean(value, part.get(keyword), frozenset())
        return value

    def at(self, reference: str) -> Any:
        """What a reference within the schema points to."""
        found: Any = self.root
        for step in reference.lstrip("#").strip("/").split("/"):
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or key not in found:
                # A reference that can't be followed may point to a marked field.
                return {PERSONAL: True} if step else self.root
            found = found[key]
        return found


def texts_in(value: Any) -> Iterable[str]:
    """Every text and number in a value that is long enough to be recognized elsewhere."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_in(item)
    elif value is not None and not isinstance(value, bool) and len(str(value)) >= _SHORTEST:
        yield str(value)


def scrubbed(value: Any, removed: Iterable[str]) -> Any:
    """A value in which the removed texts don't occur."""
    ordered = sorted(removed, key=len, reverse=True)
    if not ordered:
        return value
    if isinstance(value, str):
        for text in ordered:
            value = value.replace(text, REDACTED)
        return value
    if isinstance(value, Mapping):
        return {name: scrubbed(item, ordered) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrubbed(item, ordered) for item in value]
    return REDACTED if not isinstance(value, bool) and value is not None and str(value) in ordered else value
