"""The inputs of a prediction: hostile until they fit the program's fields."""

from collections.abc import Mapping
from typing import Any

from agentcore.data import check_rows
from agentcore.errors import DataError
from agentcore.evaluation import check_reserved, interface_of


def checked_inputs(program: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a request with the types of the program's fields. Blocking.

    Raises:
        DataError: a name or a value doesn't fit, or would change how the model is called.
    """
    if not inputs:
        raise DataError("inputs: no fields")
    check_rows([inputs], "inputs")
    check_reserved(program, inputs, "inputs")
    interface = interface_of(program)
    if interface.inputs is not None:
        unknown = [name for name in inputs if name not in interface.inputs]
        if unknown:
            raise DataError(
                f"inputs: the program has no field {', '.join(map(repr, unknown))}; "
                f"it takes {', '.join(interface.inputs)}"
            )
    lacking = [name for name in interface.required if name not in inputs]
    if lacking:
        raise DataError(f"inputs: the program needs {', '.join(map(repr, lacking))}")
    found = {}
    for name, value in inputs.items():
        if value is None and not interface.allows_none(name):
            raise DataError(f"inputs.{name}: null, but the program needs a value")
        try:
            found[name] = interface.typed(name, value)
        except ValueError as error:
            raise DataError(f"inputs.{name}: {error}") from None
    return found
