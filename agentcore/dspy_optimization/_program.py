"""Builds or imports programs."""

from typing import Any, Literal, get_origin

import dspy

from agentcore._imports import import_object
from agentcore.data import Dataset
from agentcore.errors import ConfigurationError
from agentcore.evaluation import check_reserved, interface_of

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
    if isinstance(found, type) and issubclass(found, dspy.Signature):
        return dspy.ChainOfThought(found), None
    if isinstance(found, type) and issubclass(found, dspy.Module):
        found = instance_of(found, repr(spec))
    return checked_program(found, f"program {spec!r}"), spec


def instance_of(kind: type[dspy.Module], name: str) -> dspy.Module:
    """An instance of a program's class; raises `ConfigurationError` if its constructor needs arguments."""
    try:
        return kind()
    except TypeError as error:
        raise ConfigurationError(
            f"program {name}: can't be created without arguments ({error}); pass an instance instead"
        ) from None


def checked_program(program: dspy.Module, what: str = "program") -> dspy.Module:
    """`program`, which must be a `dspy.Module` instance with at least one predictor."""
    if not isinstance(program, dspy.Module):
        raise ConfigurationError(f"{what} must be a dspy.Module instance, got {type(program).__name__}")
    if not (hasattr(type(program), "forward") or hasattr(type(program), "aforward")):
        raise ConfigurationError(f"{what} has no forward method: define forward(self, …)")
    if not program.predictors():
        raise ConfigurationError(f"{what} has no dspy.Predict inside: nothing to optimize")
    interface_of(program)
    return program


def program_from_data(data: Dataset) -> dspy.Module:
    """Build a program from the data's fields: a `dspy.Predict` over Literals if all labels have few values,
    else a `dspy.ChainOfThought`.

    Raises:
        DataError: DSPy takes an input for its own argument.
    """
    check_reserved(dspy.Predict("question -> answer"), data.input_fields, data.name)
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
