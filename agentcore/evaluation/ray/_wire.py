"""Messages between a driver and its Ray workers."""

import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle
import dspy

from agentcore._redaction import Redactor

_CONNECTION = re.compile(
    r"key|secret|password|credential|auth|header|url|base|endpoint|(?<!max_)(?<!completion_)token\b", re.I
)

_ABILITIES = (
    "supports_function_calling",
    "supports_reasoning",
    "supports_response_schema",
    "supported_params",
    "supports_decision_requests",
)


@dataclass(frozen=True)
class Model:
    """A worker's description of a model: enough to format prompts, but no keys or addresses."""

    number: int
    name: str
    type: str
    cache: bool
    kwargs: dict[str, Any]
    abilities: dict[str, Any]

    @classmethod
    def of(cls, lm: dspy.BaseLM, number: int) -> "Model":
        plain = (int, float, bool, str, type(None))
        kwargs = {
            key: value
            for key, value in (getattr(lm, "kwargs", None) or {}).items()
            if isinstance(value, plain) and not _CONNECTION.search(key)
        }
        abilities = {name: getattr(lm, name) for name in _ABILITIES}
        return cls(number, str(lm.model), lm.model_type, bool(lm.cache), kwargs, abilities)


Asked = tuple[Any, Any, dict[str, Any]]
"""The prompt, messages and settings of an LM call."""


@dataclass(frozen=True)
class Question:
    """An LM call made by a program on a worker."""

    number: int
    example: int
    model: int
    blocking: bool
    """Whether the call was synchronous."""
    content: bytes
    """A pickled `Asked`."""


@dataclass(frozen=True)
class Answer:
    """The answer of the driver's model, or the error it raised; `error_number` identifies the error on the
    driver."""

    question: int
    content: bytes
    error_number: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of an example: a prediction, the program's error, or the reason it could not run.

    `error_number` identifies a driver-side LM error that the program did not catch.
    """

    prediction: bytes | None = None
    seconds: float = 0.0
    trace: bytes | None = None
    error: bytes | None = None
    error_number: int | None = None
    unable: str | None = None


class _Pickler(cloudpickle.CloudPickler):
    """Leaves models out of the pickle: they stay on the driver, with their keys."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.lms: list[Any] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Model | None:
        if not isinstance(obj, dspy.BaseLM):
            return None
        if id(obj) not in self._numbers:
            self._numbers[id(obj)] = len(self.lms)
            self.lms.append(obj)
        return Model.of(obj, self._numbers[id(obj)])


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, stand_in: Callable[[Model], Any]) -> None:
        super().__init__(file)
        self._stand_in = stand_in

    def persistent_load(self, pid: Model) -> Any:
        return self._stand_in(pid)


def dump(value: Any) -> tuple[bytes, list[Any]]:
    """Pickle a value; returns the bytes and the models found in it, to which the bytes refer by position."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(value)
    return buffer.getvalue(), pickler.lms


def load(content: bytes, stand_in: Callable[[Model], Any]) -> Any:
    # Safe to unpickle: only a driver and the workers it started exchange these, as Ray's own calls do.
    return _Unpickler(io.BytesIO(content), stand_in).load()


def dump_error(error: BaseException, redactor: Redactor | None = None) -> bytes:
    """Pickle an error without secrets. If it can't be unpickled or contains a secret, pickle a RuntimeError
    with its redacted text instead."""
    redactor = redactor or Redactor(unmistakable=True)
    text = redactor.text(f"{type(error).__name__}: {error}")
    try:
        content: bytes = cloudpickle.dumps(error)
        cloudpickle.loads(content)  # some can be pickled but not unpickled
    except Exception:  # noqa: BLE001 - the error may come from any library
        content = cloudpickle.dumps(RuntimeError(text))
    if redactor.holds(content):
        content = cloudpickle.dumps(RuntimeError(text))
    return content
