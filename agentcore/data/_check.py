"""Validation of rows before they become a dataset."""

import keyword
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentcore._json import json_text
from agentcore.errors import DataError

LABEL_NAMES = frozenset(
    {
        "answer",
        "category",
        "class_name",
        "expected",
        "label",
        "output",
        "response",
        "sentiment",
        "target",
        "y",
    }
)


InputFields = Sequence[str] | Callable[[tuple[str, ...]], Sequence[str] | None] | None
"""Names of the input fields, or a function that picks them from the data's fields (None if it can't)."""


def check_rows(rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Raise `DataError` unless all rows have the same, usable fields; it names the row (from 1) and field."""
    if not rows:
        raise DataError(f"{name}: no examples. Pass a list of rows such as {{'question': …, 'answer': …}}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"{name}, row {number}: expected a dict of fields, got {type(row).__name__}")
    fields = dict.fromkeys(rows[0])
    if not fields:
        raise DataError(f"{name}, row 1: no fields")
    for field in fields:
        _check_name(field, name)
    for number, row in enumerate(rows, 1):
        if row.keys() != fields.keys():
            _raise_differing(name, number, list(fields), list(row))
        for field, value in row.items():
            _check_value(value, f"{name}, row {number}, field {field!r}")


def resolve_input_fields(fields: tuple[str, ...], input_fields: InputFields, name: str) -> tuple[str, ...]:
    """The input fields: passed in, picked by a function, or all fields not named like a label.

    At least one field must remain as an output.
    """
    if callable(input_fields):
        input_fields = input_fields(fields)
    if input_fields is None:
        labels = [field for field in fields if field.lower() in LABEL_NAMES]
        if not labels:
            raise DataError(
                f"{name}: can't tell inputs from outputs among the fields {', '.join(fields)}. "
                "Name the inputs (input_fields=[…], or --inputs a,b)"
            )
        input_fields = [field for field in fields if field not in labels]
    missing = [field for field in input_fields if field not in fields]
    if missing:
        raise DataError(
            f"{name}: no field {', '.join(map(repr, missing))} in the data (it has {', '.join(fields)})"
        )
    chosen = tuple(field for field in fields if field in set(input_fields))
    if not chosen or len(chosen) == len(fields):
        raise DataError(
            f"{name}: {'every' if chosen else 'no'} field is an input; "
            f"examples need at least one input and one output among {', '.join(fields)}"
        )
    return chosen


_DSPYS_OWN = ("base", "self")
"""Names that `dspy.Example(**fields)` reserves."""
_CONTENT_MARK = "<<CUSTOM-TYPE-START-IDENTIFIER>>"
"""With this, DSPy marks content in a prompt that is no text."""


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def _check_name(field: Any, name: str) -> None:
    if field in _DSPYS_OWN or str(field).startswith("dspy_"):
        raise DataError(f"{name}: field name {field!r} is reserved by DSPy. Rename it")
    if not isinstance(field, str) or not field.isidentifier() or keyword.iskeyword(field):
        usable = re.sub(r"\W+", "_", str(field)).strip("_") or "field"
        usable = usable if usable.isidentifier() and not keyword.iskeyword(usable) else f"field_{usable}"
        raise DataError(
            f"{name}: field name {field!r} is not a valid Python identifier, as DSPy requires. "
            f"Rename it, for example to {usable!r}"
        )


def _raise_differing(name: str, number: int, expected: list[str], actual: list[str]) -> None:
    missing = [field for field in expected if field not in actual]
    extra = [field for field in actual if field not in expected]
    what = []
    if missing:
        what.append(f"lacks {', '.join(missing)}")
    if extra:
        what.append(f"has extra {', '.join(map(str, extra))}")
    raise DataError(
        f"{name}, row {number}: its fields differ from row 1's ({', '.join(expected)}): "
        f"it {' and '.join(what)}"
    )


def _check_value(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: {value} is not a finite number. Replace it or drop the row")
    try:
        text = json_text(value)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: a value of type {type(value).__name__} can't be stored as JSON ({error})"
        ) from None
    if _CONTENT_MARK in text:
        raise DataError(
            f"{where}: contains {_CONTENT_MARK}, which DSPy would turn into files and addresses that the "
            "provider fetches. Remove it"
        )
