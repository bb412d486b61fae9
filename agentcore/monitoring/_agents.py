"""Any agent as a program: a function from dict to dict, a DSPy program, or the one behind an alias."""

import asyncio
import copy
import dataclasses
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import dspy
from pydantic import BaseModel

from agentcore._imports import import_object
from agentcore.data import Example
from agentcore.errors import ConfigurationError, DataError
from agentcore.evaluation import interface_of
from agentcore.lm import resolve_lm
from agentcore.registry import load
from agentcore.settings import MLflowConfig, Settings

AgentFunction = Callable[[dict[str, Any]], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]
Row = Mapping[str, Any]

_ROW = "agentcore_row"
_PREFIXES = ("expected_", "true_", "target_", "gold_", "label_")
_SUFFIXES = ("_expected", "_true", "_target", "_gold", "_label")


class _Function(dspy.Module):  # type: ignore[misc,unused-ignore]
    """A function as a program with one input, so that no row can name an argument of DSPy."""

    def __init__(self, function: AgentFunction) -> None:
        super().__init__()
        self.function = function

    def forward(self, agentcore_row: Row) -> Any:
        """Call the function with a copy of the row."""
        found: Any = self.function(copy.deepcopy(dict(agentcore_row)))
        if inspect.isawaitable(found):  # such as a functools.partial of an async function

            async def wait() -> Any:
                return await found

            found = asyncio.run(wait())
        return prediction_of(found)


class _AsyncFunction(_Function):
    async def aforward(self, agentcore_row: Row) -> Any:
        """Await the function with a copy of the row."""
        found: Any = self.function(copy.deepcopy(dict(agentcore_row)))
        return prediction_of(await found)


def prediction_of(found: Any) -> "dspy.Prediction":
    """What an agent returned, as a prediction.

    Raises:
        TypeError: it has no named fields.
    """
    if isinstance(found, dspy.Prediction):
        return found
    if isinstance(found, BaseModel):
        found = found.model_dump()
    elif dataclasses.is_dataclass(found) and not isinstance(found, type):
        found = dataclasses.asdict(found)
    if not isinstance(found, Mapping):
        raise TypeError(f"the agent returned {type(found).__name__} instead of a dict")
    # As a whole: DSPy has arguments of its own, which a field may be named like.
    return dspy.Prediction({str(name): value for name, value in found.items()})


class _NoModel:
    """An engine where no model is configured: a function may need none."""

    def complete(self, request: Any) -> Any:
        """Raise the error that says how to configure one."""
        with dspy.context(lm=None):
            return resolve_lm(None)

    async def acomplete(self, request: Any) -> Any:
        """The same."""
        return self.complete(request)


class Agent:
    """An agent to evaluate.

    Args:
        given: a function (sync or async) from dict to dict, a `dspy.Module` or a class of one,
            `package.module:object`, or `name@champion`.
        lm: for DSPy; default: `AGENTCORE_LM`, else `dspy.settings.lm`. Functions may do without.
    """

    def __init__(self, given: Any, lm: Any = None, config: MLflowConfig | None = None) -> None:
        self._given = given
        self._lm = lm
        self._config = config
        self._lock = threading.Lock()
        self._program: Any = None
        if not isinstance(given, str) and not callable(given):
            raise ConfigurationError(
                f"agent_func must be a function from dict to dict, a dspy.Module, package.module:object or "
                f"name@champion, not {type(given).__name__}"
            )

    async def program(self) -> Any:
        """The agent as a program."""
        if self._program is None:
            self._program = await self._resolved(self._given)
        return self._program

    async def _resolved(self, given: Any) -> Any:
        if isinstance(given, str):
            given = import_object(given, "agent") if ":" in given else await self._loaded(given)
        if isinstance(given, type) and issubclass(given, dspy.Module):
            given = given()
        if isinstance(given, dspy.Module):
            return given
        if not callable(given):
            raise ConfigurationError(f"agent {self._given!r}: {type(given).__name__} can't be called")
        call = getattr(given, "__call__", None)  # noqa: B004 - a callable object with an async __call__
        is_async = inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(call)
        return (_AsyncFunction if is_async else _Function)(given)

    async def _loaded(self, name: str) -> Any:
        try:
            return await load(name, config=self._config)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{error}. Pass the agent as agent_func (--func package.module:object), or promote a version "
                "of it (agentcore promote)"
            ) from None

    async def lm(self) -> Any:
        """The language model."""
        function = isinstance(await self.program(), _Function)
        if function and self._lm is None and not (Settings().lm or dspy.settings.lm):
            return dspy.LM("none/none", engine=_NoModel(), num_retries=0, cache=False)
        return resolve_lm(self._lm)

    async def examples(self, rows: Sequence[Row], target: str, where: str) -> list[Example]:
        """Rows as examples. The agent doesn't get the target.

        Raises:
            DataError: a row has no target, or lacks an input that the program needs.
        """
        missing = [number for number, row in enumerate(rows, 1) if row.get(target) is None]
        if missing:
            fields = ", ".join(rows[missing[0] - 1])
            raise DataError(
                f"{where}, row {missing[0]}: no value for the target {target!r} (fields: {fields}). Name the "
                "field of the expected answer with target_field (--target), and leave out rows without one"
            )
        program = await self.program()
        if isinstance(program, _Function):
            return [
                Example(
                    {
                        _ROW: {name: value for name, value in row.items() if name != target},
                        target: row[target],
                    },
                    (_ROW,),
                )
                for row in rows
            ]
        interface = interface_of(getattr(program, "program", program))
        names = [name for name in rows[0] if name != target]
        if interface.inputs is not None:
            names = [name for name in names if name in interface.inputs]
        lacking = [name for name in interface.required if name not in names]
        if lacking:
            raise DataError(f"{where} has no field {lacking[0]!r}, which the program needs")
        try:
            return [
                Example(
                    {
                        **{name: interface.typed(name, row.get(name)) for name in names},
                        target: row[target],
                    },
                    tuple(names),
                )
                for row in rows
            ]
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None


def answer_fields(target: str, given: str | None) -> tuple[str, ...]:
    """The fields that may hold the answer: the one given, or the target's name, also without `expected_`."""
    if given is not None:
        return (given,)
    found = [target]
    found += [target.removeprefix(item) for item in _PREFIXES if target.startswith(item)]
    found += [target.removesuffix(item) for item in _SUFFIXES if target.endswith(item)]
    return tuple(found)


def answer_in(values: Row, fields: Sequence[str], *, only: bool) -> tuple[bool, Any]:
    """Whether an answer has one of the fields, and that field's value; with `only`, an answer's only field
    (apart from `reasoning`) will do."""
    for name in fields:
        if name in values:
            return True, values[name]
    rest = [name for name in values if name != "reasoning"]
    return (True, values[rest[0]]) if only and len(rest) == 1 else (False, None)
