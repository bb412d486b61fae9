"""Values of any origin as JSON, and back."""

import base64
import dataclasses
import json
import math
import types
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Union

import pydantic_core
from pydantic import BaseModel, ConfigDict, PydanticUserError, RootModel, TypeAdapter

_NATIVE = (str, int, float, bool, type(None))
_BYTES = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


def plain(value: Any) -> Any:
    """One step to JSON, for `json.dumps(…, default=plain)`: models and dataclasses by their fields, enums
    by value, dates as ISO 8601, sets sorted, bytes in base64.

    Raises:
        TypeError: JSON has no form for such a value.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel):
        return _model(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, (set, frozenset)):
        return sorted(map(json_value, value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    try:
        return pydantic_core.to_jsonable_python(value)
    except (pydantic_core.PydanticSerializationError, ValueError) as error:
        raise TypeError(str(error)) from None


def _model(value: BaseModel) -> Any:
    if isinstance(value, RootModel):
        return value.root
    if any(map(_is_dspys, _parts(value))):  # DSPy's own types serialize to what the prompt says
        return {name: getattr(value, name) for name in type(value).model_fields}
    return value.model_dump(mode="json", by_alias=True, round_trip=True)


def _is_dspys(value: Any) -> bool:
    return any(base.__module__ == "dspy.adapters.types.base_type" for base in type(value).__mro__)


def _parts(value: Any) -> Iterable[Any]:
    """A value and everything within it."""
    yield value
    if isinstance(value, BaseModel):
        inner: Iterable[Any] = vars(value).values()
    elif isinstance(value, Mapping):
        inner = value.values()
    else:
        inner = value if isinstance(value, (list, tuple, set, frozenset)) else ()
    for item in inner:
        yield from _parts(item)


def json_value(value: Any) -> Any:
    """A value as JSON has it.

    Raises:
        TypeError: it holds something that JSON can't represent.
        ValueError: it holds NaN or infinity, or itself.
    """
    return json.loads(json_text(value))


def json_text(value: Any, *, compact: bool = False) -> str:
    """A value's JSON text; `compact` is canonical, the same for equal values: sorted keys, no spaces.

    Raises:
        TypeError: see `json_value`.
        ValueError: see `json_value`.
    """
    separators = (",", ":") if compact else None

    def dump(item: Any) -> str:
        return json.dumps(
            item,
            sort_keys=compact,
            separators=separators,
            ensure_ascii=False,
            allow_nan=False,
            default=plain,
        )

    try:
        return dump(value)
    except TypeError:
        return dump(_with_text_keys(value))


def _with_text_keys(value: Any) -> Any:
    """A value whose mappings have keys that JSON takes."""
    if isinstance(value, (str, int, float, type(None))) and not isinstance(value, Enum):
        return value
    if isinstance(value, Mapping):
        return {_key(key): _with_text_keys(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(item) for item in value]
    return _with_text_keys(plain(value))


def _key(key: Any) -> str:
    found = json_value(key)
    return found if isinstance(found, str) else json.dumps(found)


def jsonable(value: Any) -> Any:
    """Convert a value to what JSON can represent; anything else becomes text, NaN and infinity too."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(jsonable(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    try:
        return jsonable(plain(value))
    except (TypeError, ValueError):
        return str(value)


def kind_of(values: Iterable[Any]) -> Any:
    """The type that brings values back from JSON; None if JSON itself has them all."""
    kinds = set(map(_kind, values))
    if all(map(_is_native, kinds)):
        return None
    return _union(sorted(kinds, key=lambda kind: (_is_native(kind), str(kind))))


def _union(kinds: list[Any]) -> Any:
    return Union[tuple(kinds)]  # noqa: UP007 - built at run time


def _kind(value: Any) -> Any:
    kind: Any = type(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        item = _one([_kind(item) for item in value])
        if kind is list:
            return Any if _is_native(item) else types.GenericAlias(list, (item,))
        if kind is tuple:
            return types.GenericAlias(tuple, (item, ...))
        return types.GenericAlias(kind, (item,)) if kind in (set, frozenset) else kind
    if kind is dict:
        keys, items = _one([_kind(key) for key in value]), _one([_kind(item) for item in value.values()])
        if _is_native(items) and (keys is str or not value):
            return Any
        return types.GenericAlias(dict, (keys, items))
    return kind


def _is_native(kind: Any) -> bool:
    return kind is Any or kind in _NATIVE


def _one(kinds: list[Any]) -> Any:
    distinct = sorted(set(kinds), key=str)
    if not distinct or Any in distinct:
        return Any if all(map(_is_native, distinct)) else _union(distinct)
    if all(map(_is_native, distinct)) and len(distinct) > 1:
        return Any
    return distinct[0] if len(distinct) == 1 else _union(distinct)


@lru_cache(maxsize=256)
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's adapter of a type, with bytes in base64."""
    try:
        return TypeAdapter(kind, config=_BYTES)
    except PydanticUserError:  # a model's own configuration holds
        return TypeAdapter(kind)


def restored(value: Any, kind: Any) -> Any:
    """A JSON value as an instance of `kind`.

    Raises:
        ValueError: it isn't one, or Pydantic knows no such type.
    """
    try:
        return adapter(kind).validate_json(json.dumps(value))
    except (PydanticUserError, TypeError) as error:
        raise ValueError(str(error)) from None
