"""Checks that data fits a program, and gives values read from files the types of the program's fields."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import dspy

from agentcore.data import Dataset, Splits, is_missing
from agentcore.errors import DataError
from agentcore.evaluation import Interface, check_reserved, equal, interface_of


def input_fields_for(program: dspy.Module, fields: tuple[str, ...]) -> list[str] | None:
    """The data's fields that are inputs of the program; None if its inputs don't settle that."""
    names = interface_of(program).inputs
    if not names:
        return None
    chosen = [name for name in fields if name in names]
    return chosen if chosen and len(chosen) < len(fields) else None


def fitted(program: dspy.Module, data: Dataset) -> Dataset:
    """The data with its values, if they come from a file, in the types that the program declares.

    Raises:
        DataError: it lacks the program's inputs, a value is missing or is not of its type, or a label is not
            an answer that the program can give.
    """
    interface = interface_of(program)
    check_reserved(program, data.input_fields, data.name)
    _check_names(interface, data)
    if data.from_file and interface.types:
        data = data.with_values(
            [
                {
                    key: _typed(value, interface, key, f"{data.name}, row {number}")
                    for key, value in row.items()
                }
                for number, row in enumerate(data.rows(), 1)
            ]
        )
    _check_missing(interface, data)
    _check_literals(program, interface, data)
    return data


def _check_names(interface: Interface, data: Dataset) -> None:
    names = interface.inputs
    missing = [name for name in interface.required if name not in data.input_fields]
    extra = [name for name in data.input_fields if names is not None and name not in names]
    if missing or extra:
        what = [f"lacks {', '.join(missing)}"] if missing else []
        what += [f"the program doesn't take {', '.join(extra)}"] if extra else []
        raise DataError(
            f"{data.name}: its inputs ({', '.join(data.input_fields)}) don't match the program's "
            f"({', '.join(names if names is not None else interface.required)}): it {', and '.join(what)}. "
            "Add or rename the columns, or set the inputs with input_fields=[…] (--inputs a,b)"
        )
    outputs = interface.outputs
    if outputs is not None and not set(outputs) & set(data.output_fields):
        raise DataError(
            f"{data.name}: none of its labels ({', '.join(data.output_fields)}) is an output of the program "
            f"({', '.join(outputs)}). Rename a label or an output so that they match"
        )


def _typed(value: Any, interface: Interface, name: str, where: str) -> Any:
    try:
        return interface.typed(name, value)
    except ValueError as error:
        raise DataError(f"{where}, field {name!r}: {error}") from None


def _check_missing(interface: Interface, data: Dataset) -> None:
    """An empty cell is a mistake, unless the program's field may be empty or only the metric knows it."""
    known = {*(interface.inputs or ()), *interface.types, *(interface.outputs or ())}
    if interface.inputs is None:
        known |= set(data.input_fields)
    for name in data.fields:
        if name not in known or interface.allows_none(name):
            continue
        for number, item in enumerate(data, 1):
            if is_missing(item.values[name]):
                raise DataError(
                    f"{data.name}, row {number}, field {name!r}: missing value. Fill it in, drop the row, or "
                    "declare the program's field Optional"
                )


def _check_literals(program: dspy.Module, interface: Interface, data: Dataset) -> None:
    if interface.outputs is None:
        return  # the program may turn a predictor's answer into another
    for name, allowed in _literal_outputs(program).items():
        if name not in data.output_fields or name not in interface.outputs:
            continue
        for number, item in enumerate(data, 1):
            if not _can_be(item.values[name], allowed):
                raise DataError(
                    f"{data.name}, row {number}: label {name}={item.values[name]!r} is not an answer that "
                    f"the program can give ({', '.join(map(repr, allowed))}). Correct the label, or "
                    "add it to the Literal"
                )


def _can_be(label: Any, allowed: Sequence[Any]) -> bool:
    return any(label == answer or equal(label, answer) for answer in allowed)


def unusual_labels(program: dspy.Module, data: Dataset) -> list[str]:
    """Warnings for labels that no predictor of the program can give: its `forward` has to make them."""
    if interface_of(program).outputs is not None:
        return []
    found = []
    for name, allowed in _literal_outputs(program).items():
        if name in data.output_fields:
            labels = [item.values[name] for item in data]
            others = sorted({str(label) for label in labels if not _can_be(label, allowed)})
            if others:
                found.append(
                    f"no predictor of the program can answer {name}={', '.join(others[:5])}: examples "
                    "with these labels score 0 unless the program's forward turns some other answer into them"
                )
    return found


def unseen_labels(program: dspy.Module, splits: Splits) -> list[str]:
    """Warnings for test labels that occur in neither the train nor the validation split."""
    known = [*splits.train, *splits.validation]
    found = []
    for name in _literal_outputs(program):
        if name in splits.test.output_fields:
            seen = {item.values[name] for item in known}
            unseen = sorted({str(item.values[name]) for item in splits.test if item.values[name] not in seen})
            if unseen:
                found.append(
                    f"label {name}={', '.join(unseen)} appears only in the test split: "
                    "no demonstration can show it; add examples of it"
                )
    return found


def _literal_outputs(program: dspy.Module) -> Mapping[str, tuple[Any, ...]]:
    """The answers that the predictors can give, by output."""
    found: dict[str, tuple[Any, ...]] = {}
    for predictor in program.predictors():
        for name, info in predictor.signature.output_fields.items():
            if get_origin(info.annotation) is Literal:
                found[name] = (*found.get(name, ()), *get_args(info.annotation))
    return found
