"""Builds or imports programs, and checks them against the data."""

import inspect
from typing import Any, Literal, get_args, get_origin

import dspy

from agentcore._imports import import_object
from agentcore.data import Dataset, Splits
from agentcore.errors import ConfigurationError, DataError

_MAX_LABELS = 20


def resolve_program(spec: str) -> tuple[Any, str | None]:
    """A program and its import path from `package.module:object`, or from a signature such as
    `"question -> answer"` (no path).

    Raises:
        ConfigurationError: `spec` is neither.
    """
    if "->" in spec:
        try:
            return dspy.ChainOfThought(spec), None
        except Exception as error:  # noqa: BLE001 - DSPy raises whatever its parser does
            raise ConfigurationError(
                f"program {spec!r} is not a valid signature ({error}): write 'question -> answer'"
            ) from None
    found = import_object(spec, "program")
    if isinstance(found, type) and issubclass(found, dspy.Module):
        try:
            found = found()
        except TypeError as error:
            raise ConfigurationError(
                f"program {spec!r}: can't be created without arguments ({error}); name an instance instead"
            ) from None
    return checked_program(found, f"program {spec!r}"), spec


def checked_program(program: dspy.Module, what: str = "program") -> dspy.Module:
    """`program`, which must be a `dspy.Module` instance with at least one predictor."""
    if not isinstance(program, dspy.Module):
        raise ConfigurationError(f"{what} must be a dspy.Module instance, got {type(program).__name__}")
    if not (hasattr(type(program), "forward") or hasattr(type(program), "aforward")):
        raise ConfigurationError(f"{what} has no forward method: define forward(self, …)")
    if not program.predictors():
        raise ConfigurationError(f"{what} has no dspy.Predict inside: nothing to optimize")
    return program


def program_from_data(data: Dataset) -> dspy.Module:
    """Build a program from the data's fields: a `dspy.Predict` over Literals if all labels have few values,
    else a `dspy.ChainOfThought`."""
    fields: dict[str, Any] = {}
    for name in data.input_fields:
        fields[name] = (_type_of([item.values[name] for item in data]), dspy.InputField())
    types = {name: _output_type([item.values[name] for item in data]) for name in data.output_fields}
    for name, kind in types.items():
        fields[name] = (kind, dspy.OutputField())
    instruction = data.description or (
        f"Given the fields {', '.join(f'`{name}`' for name in data.input_fields)}, "
        f"produce the fields {', '.join(f'`{name}`' for name in data.output_fields)}."
    )
    signature = dspy.Signature(fields, instruction)
    if all(get_origin(kind) is Literal for kind in types.values()):
        return dspy.Predict(signature)
    return dspy.ChainOfThought(signature)


def _type_of(values: list[Any]) -> Any:
    kinds = {type(value) for value in values}
    if kinds <= {int, float} and kinds:
        return float if float in kinds else int
    kind = kinds.pop() if len(kinds) == 1 else str
    return kind if kind in (str, bool, list, dict) else str


def _output_type(values: list[Any]) -> Any:
    kind = _type_of(values)
    labels = sorted(set(values)) if kind is str else []
    if 2 <= len(labels) <= _MAX_LABELS and len(values) >= 3 * len(labels):
        return Literal[tuple(labels)]
    return kind


def input_names(program: dspy.Module) -> list[str] | None:
    """Names of the program's inputs, from its signature or `forward`; None if it accepts any."""
    signature = _own_signature(program)
    if signature is not None:
        return list(signature.input_fields)
    parameters = _forward_parameters(program)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def required_inputs(program: dspy.Module) -> list[str]:
    signature = _own_signature(program)
    if signature is not None:
        return list(signature.input_fields)
    empty, keyword = inspect.Parameter.empty, inspect.Parameter.VAR_KEYWORD
    parameters = _forward_parameters(program)
    return [item.name for item in parameters if item.default is empty and item.kind is not keyword]


def _own_signature(program: dspy.Module) -> Any:
    """The signature of DSPy's own modules, whose `forward` takes any keyword."""
    if isinstance(program, dspy.ChainOfThought):
        return program.predict.signature
    return getattr(program, "signature", None)


def _forward_parameters(program: dspy.Module) -> list[inspect.Parameter]:
    kind = type(program)
    method = kind.forward if hasattr(kind, "forward") else kind.aforward
    return list(inspect.signature(method).parameters.values())[1:]


def check_fit(program: dspy.Module, data: Dataset) -> None:
    """Raise `DataError` unless the data has the program's inputs, and only labels that its types allow."""
    names = input_names(program)
    missing = [name for name in required_inputs(program) if name not in data.input_fields]
    extra = [name for name in data.input_fields if names is not None and name not in names]
    if missing or extra:
        raise DataError(
            f"{data.name}: its inputs ({', '.join(data.input_fields)}) don't match the program's "
            f"({', '.join(names or [])}); set them with input_fields=[…] (--inputs a,b)"
        )
    signature = _own_signature(program)
    if signature is not None and not set(signature.output_fields) & set(data.output_fields):
        raise DataError(
            f"{data.name}: none of its labels ({', '.join(data.output_fields)}) is an output of the program "
            f"({', '.join(signature.output_fields)}): rename one of them"
        )
    for name, allowed in _literal_outputs(program).items():
        if name not in data.output_fields:
            continue
        for number, item in enumerate(data, 1):
            if item.values[name] not in allowed:
                raise DataError(
                    f"{data.name}, row {number}: label {name}={item.values[name]!r} is not an answer that "
                    f"the program can give ({', '.join(map(repr, allowed))})"
                )


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


def _literal_outputs(program: dspy.Module) -> dict[str, tuple[Any, ...]]:
    return {
        name: get_args(info.annotation)
        for predictor in program.predictors()
        for name, info in predictor.signature.output_fields.items()
        if get_origin(info.annotation) is Literal
    }


def input_fields_for(program: dspy.Module, fields: tuple[str, ...]) -> list[str] | None:
    """The data's fields that are inputs of the program; None if its inputs don't settle that."""
    names = input_names(program)
    if not names:
        return None
    chosen = [name for name in fields if name in names]
    return chosen if chosen and len(chosen) < len(fields) else None
