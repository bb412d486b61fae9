"""The inputs and outputs of a program: their names and types."""

import ast
import contextlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import dspy
from dspy.utils.constants import IS_TYPE_UNDEFINED
from pydantic import ValidationError

from agentcore._json import adapter
from agentcore.data import is_missing
from agentcore.errors import ConfigurationError, DataError

_ARGUMENTS = frozenset(
    {
        *("config", "demos", "interpreter", "interpreter_factory", "lm", "max_iters", "new_signature"),
        *("prediction", "signature", "_trace"),
    }
)
"""What DSPy's modules take for their own arguments: `config` could send the calls, and the API key, to an
address that a row names."""
_SHOWN = 60
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Interface:
    """What a program takes and gives.

    Attributes:
        inputs: their names; None if it takes any.
        required: the inputs without a default.
        named: the parameters of the user's own `forward`.
        outputs: the names of its outputs; None if only running it tells them.
        types: the declared types of inputs and outputs, by name; none where predictors disagree.
    """

    inputs: tuple[str, ...] | None
    required: tuple[str, ...]
    named: frozenset[str]
    outputs: tuple[str, ...] | None
    types: Mapping[str, Any]

    def typed(self, name: str, value: Any) -> Any:
        """Convert a value from a file or a request to the type of its field.

        Raises:
            ValueError: it isn't one.
        """
        kind = self.types.get(name, Any)
        if is_missing(value):
            return None if self.allows_none(name) and not _accepts(kind, value) else value
        if kind is str and isinstance(value, (int, float)):
            return str(value)
        if kind is Any or _accepts(kind, value):
            return value
        try:
            return adapter(kind).validate_python(value)
        except ValidationError as error:
            for form in _forms(value, kind):
                with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                    return form()
            if get_origin(kind) is Literal:
                return value  # whoever checks labels says which answers there are
            shown = repr(value) if len(repr(value)) <= _SHOWN else repr(value)[:_SHOWN] + "…"
            raise ValueError(
                f"{shown} is not of the program's type {_name(kind)}: {error.errors()[0]['msg']}"
            ) from None

    def allows_none(self, name: str) -> bool:
        """Whether a field may be missing from an example."""
        if name in self.types and _allows_none(self.types[name]):
            return True
        return self.inputs is not None and name in self.inputs and name not in self.required


def interface_of(program: dspy.Module) -> Interface:
    """The interface of a program, from DSPy's signature or its own `forward`.

    Raises:
        ConfigurationError: its `forward` takes an input by position only.
    """
    signature, parameters = _declared(program)
    taken, given = _predictors_types(program)
    if signature is not None:
        fields = {**signature.input_fields, **signature.output_fields}
        return Interface(
            tuple(signature.input_fields),
            tuple(name for name, info in signature.input_fields.items() if info.is_required()),
            frozenset(),
            tuple(signature.output_fields),
            {name: info.annotation for name, info in fields.items() if _says_type(info)},
        )
    by_position = [item.name for item in parameters if item.kind is inspect.Parameter.POSITIONAL_ONLY]
    if by_position:
        raise ConfigurationError(
            f"{type(program).__name__}.forward takes {', '.join(by_position)} by position only, but inputs "
            "are passed by name: remove the '/' from its parameters"
        )
    named = [item for item in parameters if item.kind in _BY_NAME]
    names = [item.name for item in named]
    anything = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters)
    return Interface(
        None if anything else tuple(item.name for item in named),
        tuple(item.name for item in named if item.default is inspect.Parameter.empty),
        frozenset() if _is_dspys(_method(program)) else frozenset(item.name for item in named),
        None,
        # One predictor's output may be another's input: of the two, only inputs of the program are inputs.
        {
            **taken,
            **given,
            **{name: taken[name] for name in names if name in taken},
            **_hints(_method(program), names),
        },
    )


def _accepts(kind: Any, value: Any) -> bool:
    try:
        return bool(adapter(kind).validate_python(value, strict=True) == value)
    except ValueError:
        return False


def _forms(value: Any, kind: Any) -> list[Callable[[], Any]]:
    """Other ways in which a cell of a file may hold a value: JSON within text, text for a number, DSPy's own
    constructors."""
    forms: list[Callable[[], Any]] = []
    if isinstance(value, str):
        forms.append(lambda: adapter(kind).validate_json(value))
        # As pandas writes a list into a CSV file.
        forms.append(lambda: adapter(kind).validate_python(ast.literal_eval(value)))
    if isinstance(value, (int, float)):
        forms.append(lambda: adapter(kind).validate_python(str(value)))
    # DSPy's own: constructing them touches neither files nor the network.
    if isinstance(value, str) and isinstance(kind, type) and issubclass(kind, dspy.Type) and _is_dspys(kind):
        forms.append(lambda: kind(value))
    return forms


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind)


def check_reserved(program: dspy.Module, names: Iterable[Any], where: str) -> None:
    """Raise `DataError` if an input's name is one that DSPy takes for its own argument, unless it is a
    parameter of the user's own `forward`."""
    taken = sorted(_ARGUMENTS & set(names) - interface_of(program).named)
    if taken:
        raise DataError(
            f"{where}: DSPy would treat an input named {', '.join(taken)} as one of its own arguments, so "
            "the data could change how the model is called. Rename the field, or make it a parameter of your "
            "program's forward and pass it to DSPy under another name"
        )


def _declared(program: dspy.Module) -> tuple[Any, list[inspect.Parameter]]:
    """The signature of a module whose `forward` is DSPy's, or else the parameters of `forward`."""
    if _is_dspys(_method(program)):
        inner = getattr(program, "module", None)  # BestOfN and Refine
        if inner is None:
            inner = next(iter(getattr(program, "programs", None) or ()), None)  # Ensemble
        if isinstance(inner, dspy.Module):
            return _declared(inner)
        if isinstance(program, dspy.ChainOfThought):
            return program.predict.signature, []
        signature = getattr(program, "signature", None)
        if hasattr(signature, "input_fields"):
            return signature, []
    return None, list(inspect.signature(_method(program)).parameters.values())[1:]


def _method(program: dspy.Module) -> Any:
    """The user's `forward`, or `aforward` in a program that has only that."""
    for kind in type(program).__mro__:
        for name in ("forward", "aforward"):
            if name in vars(kind):
                return vars(kind)[name]
    raise ConfigurationError(f"{type(program).__name__} has no forward method: define forward(self, …)")


def _is_dspys(method: Any) -> bool:
    return str(getattr(method, "__module__", "")).partition(".")[0] == "dspy"


def _predictors_types(program: dspy.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The types of the predictors' inputs and outputs, where all that have a field declare it alike."""
    predictors = program.predictors()
    return (
        _agreed([item.signature.input_fields for item in predictors]),
        _agreed([item.signature.output_fields for item in predictors]),
    )


def _agreed(groups: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for group in groups:
        for name, info in group.items():
            found.setdefault(name, []).append(info.annotation if _says_type(info) else None)
    return {
        name: kinds[0]
        for name, kinds in found.items()
        if kinds[0] is not None and all(kind == kinds[0] for kind in kinds)
    }


def _says_type(info: Any) -> bool:
    """Whether a field's type was declared: DSPy takes str if not."""
    return not (info.json_schema_extra or {}).get(IS_TYPE_UNDEFINED, False)


def _hints(method: Any, names: Iterable[str]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(method)
    except (NameError, TypeError, AttributeError):  # a name that is only imported for type checkers
        return {}
    return {name: hints[name] for name in names if name in hints}


def _allows_none(annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _allows_none(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return any(map(_allows_none, arguments))
    return annotation in (None, type(None), Any)
