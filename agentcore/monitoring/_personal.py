"""Personal data: fields that the schema marks are kept out of everything that leaves the process."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

MARK = "x-personal-data"
"""A keyword of JSON Schema: `{"type": "string", "x-personal-data": true}`; in a Pydantic model
`Field(json_schema_extra={"x-personal-data": True})`."""
REDACTED = "[personal data]"

Redaction = Callable[[Any], Any]
"""Takes a request or a decision, and returns what may leave the process."""


def personal_fields(schema: Mapping[str, Any]) -> frozenset[str]:
    """The fields that a schema marks at its top level."""
    properties = schema.get("properties") or {}
    return frozenset(name for name, part in properties.items() if isinstance(part, dict) and part.get(MARK))


def redaction(schema: Mapping[str, Any] | type[BaseModel] | None) -> Redaction:
    """A redaction of the fields that a schema marks, at any depth."""
    if schema is None:
        return lambda value: value
    whole = schema.model_json_schema() if isinstance(schema, type) else schema
    definitions = whole.get("$defs") or {}

    def clean(value: Any, part: Any) -> Any:
        if not isinstance(part, Mapping):
            return value
        if part.get(MARK):
            return None if value is None else REDACTED
        if "$ref" in part:
            return clean(value, definitions.get(str(part["$ref"]).rpartition("/")[2]))
        for choice in (*part.get("anyOf", ()), *part.get("oneOf", ()), *part.get("allOf", ())):
            value = clean(value, choice)
        if isinstance(value, Mapping):
            properties, others = part.get("properties") or {}, part.get("additionalProperties")
            return {name: clean(item, properties.get(name, others)) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item, part.get("items")) for item in value]
        return value

    return lambda value: clean(value, whole)
