"""The default metric: whether a prediction equals the labels."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from numbers import Number
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel, RootModel, TypeAdapter, ValidationError

from agentcore._json import json_value
from agentcore.data import is_missing
from agentcore.errors import MetricError

if TYPE_CHECKING:
    import dspy

_RELATIVE = 1e-9
_BOOL = TypeAdapter(bool)
_PARSED = (date, datetime, time, timedelta, UUID)


@dataclass(frozen=True)
class ExactMatch:
    """Whether the predicted fields equal their labels, recursively and in the type of the field.

    Text is compared ignoring case and whitespace, and numbers within a relative 1e-9. A number, a
    truth value, a date, an enum, a model or a collection equals its text or JSON form: `5.0` and `"5"`,
    `True` and `"true"`, `[Item(name="x")]` and `[{"name": "x"}]`. The order of items counts in lists and
    tuples, but not in sets.

    Args:
        fields: the label fields to compare; None for all of them.
    """

    fields: tuple[str, ...] | None = None
    __name__ = "exact_match"

    def __call__(self, example: "dspy.Example", prediction: "dspy.Prediction", trace: Any = None) -> bool:
        """Compare a prediction with an example's labels.

        Raises:
            MetricError: the prediction has no such field: the program would score 0 for another reason than
                its answers.
        """
        labels = dict(example.labels().items())
        compared = labels if self.fields is None else [name for name in labels if name in self.fields]
        return all(equal(labels[name], _predicted(prediction, name)) for name in compared)


exact_match = ExactMatch()


def _predicted(prediction: Any, name: str) -> Any:
    # Attribute access would find a Prediction's methods instead of fields with the same name.
    items = getattr(prediction, "items", None)
    fields = dict(items()) if callable(items) else None
    if fields is None:
        what = "nothing" if prediction is None else f"a {type(prediction).__name__}"
        raise MetricError(
            f"exact_match compares the label {name!r}, but the program returned {what}: return "
            f"dspy.Prediction({name}=…) from forward, or pass a metric of your own"
        )
    if name not in fields:
        raise MetricError(
            f"exact_match compares the label {name!r}, but the program's prediction has only "
            f"{', '.join(map(str, fields)) or 'no fields'}: rename the label or the output, or pass a metric "
            "of your own"
        )
    return fields[name]


def equal(expected: Any, actual: Any) -> bool:
    """Whether two values are equal in the type of the more specific one; missing ones are equal."""
    if is_missing(expected) or is_missing(actual):
        return is_missing(expected) and is_missing(actual)
    if isinstance(expected, Enum) or isinstance(actual, Enum):
        return _enums(expected, actual)
    if isinstance(expected, bool) or isinstance(actual, bool):
        return _truths(expected, actual)
    if isinstance(expected, str) and isinstance(actual, str):
        return _folded(expected) == _folded(actual)
    for kind, compare in _COMPARISONS:
        if isinstance(actual, kind):
            return compare(actual, expected)
        if isinstance(expected, kind):
            return compare(expected, actual)
    if dataclasses.is_dataclass(actual) or dataclasses.is_dataclass(expected):
        return equal(_plain(expected), _plain(actual))
    return bool(expected == actual)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _enums(one: Any, other: Any) -> bool:
    if type(one) is type(other):
        return one is other
    if isinstance(other, Enum):
        one, other = other, one
    value = other.value if isinstance(other, Enum) else other
    return equal(one.value, value) or (isinstance(value, str) and _folded(one.name) == _folded(value))


def _truths(one: Any, other: Any) -> bool:
    try:
        return _BOOL.validate_python(_stripped(one)) is _BOOL.validate_python(_stripped(other))
    except ValidationError:
        return False


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _numbers(number: Any, other: Any) -> bool:
    if isinstance(number, complex) or isinstance(other, complex):
        return bool(number == other)
    if isinstance(number, int) and isinstance(other, int):
        return number == other
    try:
        if isinstance(number, Decimal) or isinstance(other, Decimal):
            return Decimal(str(number)) == Decimal(str(other).strip())
        return math.isclose(float(number), float(other), rel_tol=_RELATIVE)
    except (TypeError, ValueError, ArithmeticError):
        return False


def _models(model: BaseModel, other: Any) -> bool:
    if isinstance(model, RootModel):
        return equal(model.root, other.root if isinstance(other, RootModel) else other)
    other = _as_model(type(model), _plain(other) if type(other) is not type(model) else other)
    if other is None:
        return False
    names = type(model).model_fields
    return all(equal(getattr(model, name), getattr(other, name)) for name in names)


def _as_model(kind: type[BaseModel], value: Any) -> Any:
    """A dict or JSON text as a model; None if it isn't one."""
    try:
        if isinstance(value, kind):
            return value
        return kind.model_validate_json(value) if isinstance(value, str) else kind.model_validate(value)
    except ValidationError:
        return None


def _parsed(value: Any, other: Any) -> bool:
    """Dates and the like, which text and JSON write in several ways."""
    if isinstance(value, date) and isinstance(other, date) and type(value) is not type(other):
        value, other = _moment(value), _moment(other)
    try:
        return bool(TypeAdapter(type(value)).validate_python(_stripped(other)) == value)
    except ValidationError:
        return False


def _moment(value: date) -> datetime:
    return value if isinstance(value, datetime) else datetime.combine(value, time())


def _bytes(value: bytes, other: Any) -> bool:
    return other in (bytes(value), value.decode(errors="replace"), json_value(bytes(value)))


def _mappings(one: Mapping[Any, Any], other: Any) -> bool:
    other = _plain(_from_text(other))
    if not isinstance(other, Mapping) or len(one) != len(other):
        return False
    texts = {_text_of(key): value for key, value in other.items()}
    return all(_text_of(key) in texts and equal(value, texts[_text_of(key)]) for key, value in one.items())


def _text_of(key: Any) -> str:
    key = key.value if isinstance(key, Enum) else key
    return key if isinstance(key, str) else str(key)


def _sets(one: Set[Any], other: Any) -> bool:
    other = _from_text(other)
    if not _is_collection(other):
        return False
    distinct: list[Any] = []
    for item in other:
        if not any(equal(item, known) for known in distinct):
            distinct.append(item)
    left = list(one)
    for item in distinct:
        found = next((number for number, known in enumerate(left) if equal(known, item)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _sequences(one: Sequence[Any], other: Any) -> bool:
    other = _from_text(other)
    if not _is_collection(other) or isinstance(other, Set):
        return False
    return len(one) == len(other) and all(map(equal, one, other))


def _is_collection(value: Any) -> bool:
    return isinstance(value, (Sequence, Set)) and not isinstance(value, (str, bytes))


def _from_text(value: Any) -> Any:
    """What JSON text holds, as a cell of a CSV file does."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _plain(value: Any) -> Any:
    """A model or a dataclass as its fields."""
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    return value


_COMPARISONS: tuple[tuple[Any, Callable[[Any, Any], bool]], ...] = (
    (BaseModel, _models),
    (Set, _sets),
    (Mapping, _mappings),
    (_PARSED, _parsed),
    ((bytes, bytearray), _bytes),
    ((list, tuple), _sequences),
    ((Number, Decimal, Fraction), _numbers),
)
"""By type, from the most specific one: the comparison takes a value of the type first."""
