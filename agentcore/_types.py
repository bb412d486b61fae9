"""Converts field types to text and back, without evaluating code from a file."""

import ast
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from agentcore.errors import ArtifactError

_PLAIN: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list": list,
    "dict": dict,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "bytes": bytes,
    "None": type(None),
    "Any": Any,
}
_NAMES = {value: name for name, value in _PLAIN.items()}


def type_text(annotation: Any) -> str:
    """`list[str]`, `Literal['a', 'b']`, `Union[int, None]`; other classes as `'package.module:Name'`."""
    if annotation is None:
        return "None"
    if annotation is ...:
        return "..."
    if annotation in (list, dict, tuple, set, frozenset) or get_origin(annotation) is None:
        try:
            return _NAMES[annotation]
        except (KeyError, TypeError):
            if not isinstance(annotation, type):
                return f"Any  # {annotation!r}"  # for human readers; `parse_type` can't restore it
            return repr(f"{annotation.__module__}:{annotation.__qualname__}")
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    inner = ", ".join(map(type_text, arguments))
    if origin in (Union, types.UnionType):
        return f"Union[{inner}]"
    return f"{_NAMES.get(origin, 'Any')}[{inner}]"


def parse_type(text: str, find: Callable[[str], type]) -> Any:
    """Parse the output of `type_text`.

    Args:
        find: returns the class at `package.module:Name`.

    Raises:
        ArtifactError: the text has another form, or the class can't be imported.
    """
    try:
        if "  # " in text:
            raise ValueError("the type has no text form")
        return _build(ast.parse(text, mode="eval").body, find)
    except (SyntaxError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise ArtifactError(f"field type {text!r} can't be restored ({error}): pass program=") from None


def _build(node: ast.expr, find: Callable[[str], type]) -> Any:
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None)
    if isinstance(node, ast.Constant) and node.value is ...:
        return ...
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return find(node.value)
    if isinstance(node, ast.Name):
        return _PLAIN[node.id]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            return Literal[tuple(ast.literal_eval(item) for item in items)]
        arguments = tuple(_build(item, find) for item in items)
        if node.value.id == "Union":
            return typing.Union[arguments]  # noqa: UP007 - built at run time
        return _PLAIN[node.value.id][arguments[0] if len(arguments) == 1 else arguments]
    raise ValueError("unsupported syntax")
