"""Demonstrations as JSON, and back: the prompt that they make must not change on the way."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.adapters.utils import serialize_for_json

from agentcore._json import json_text, json_value, kind_of, restored
from agentcore._types import parse_type, type_text
from agentcore.tracking._trust import stored_type


def as_prompted(value: Any) -> Any:
    """A value as DSPy's adapters write it in a prompt, before it becomes text: enums by value, sets as lists,
    DSPy's own types as their marked content."""
    return serialize_for_json(value)


def dump_demos(demos: Sequence[Any]) -> dict[str, Any]:
    """Demonstrations as JSON values, with the types of those fields that JSON doesn't have."""
    rows = [dict(demo.items()) for demo in demos]
    names = dict.fromkeys(name for row in rows for name in row)
    types, plain = {}, set()
    for name in names:
        values = [row[name] for row in rows if name in row]
        try:
            kind = kind_of(values)
            if kind is not None:
                if any(json_text(restored(json_value(item), kind)) != json_text(item) for item in values):
                    raise ValueError(f"{name} doesn't come back")
                types[name] = type_text(kind)
        except (TypeError, ValueError):  # a tool, for example: only what the prompt says of it is kept
            plain.add(name)
    written = [
        {name: as_prompted(item) if name in plain else json_value(item) for name, item in row.items()}
        for row in rows
    ]
    return {"demos": written, "types": types}


def load_demos(stored: Mapping[str, Any], program: str) -> list[Any]:
    """The demonstrations that `dump_demos` wrote.

    Args:
        program: the path of the program's class; its package may have the values' types.

    Raises:
        ArtifactError: a field's type can't be found.
        ValueError: a value is not of its type.
    """
    kinds = {
        name: parse_type(text, lambda path: stored_type(path, program))
        for name, text in stored["types"].items()
    }
    return [
        dspy.Example(
            **{name: restored(item, kinds[name]) if name in kinds else item for name, item in row.items()}
        )
        for row in stored["demos"]
    ]


def messages_of(program: dspy.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What each predictor would send to a model, by adapter: a run's own, and DSPy's fallback.

    Placeholders stand in for inputs that a predictor gets from another one.
    """
    adapters = {"": dspy.settings.adapter or dspy.ChatAdapter(), " (as JSON)": dspy.JSONAdapter()}
    return {
        name + suffix: _formatted(adapter, predictor, inputs)
        for name, predictor in program.named_predictors()
        for suffix, adapter in adapters.items()
    }


def _formatted(adapter: Any, predictor: dspy.Predict, inputs: Mapping[str, Any]) -> Any:
    signature = predictor.signature
    given = {
        name: inputs[name] if name in inputs else _stand_in(name, info.annotation)
        for name, info in signature.input_fields.items()
    }
    try:
        return adapter.format(signature=signature, demos=list(predictor.demos), inputs=given)
    except Exception as error:  # noqa: BLE001 - a stand-in may not fit; then both programs fail alike
        return f"{type(error).__name__}: {error}"


def _stand_in(name: str, annotation: Any) -> Any:
    return dspy.History(messages=[]) if annotation is dspy.History else f"<{name}>"
