"""What a driver and its Ray workers send each other."""

import io
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cloudpickle
import dspy

from agentcore.errors import replace_secrets

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
    """What a worker knows of a model: enough to write its prompts, nothing to reach it with."""

    number: int
    name: str
    type: str
    cache: bool
    kwargs: dict[str, Any]
    abilities: dict[str, Any]

    @classmethod
    def of(cls, lm: Any, number: int) -> "Model":
        plain = (int, float, bool, str, type(None))
        kwargs = {
            key: value
            for key, value in (getattr(lm, "kwargs", None) or {}).items()
            if isinstance(value, plain) and not _CONNECTION.search(key)
        }
        abilities = {name: getattr(lm, name) for name in _ABILITIES}
        return cls(number, str(lm.model), lm.model_type, bool(lm.cache), kwargs, abilities)


Asked = tuple[Any, Any, dict[str, Any]]
"""Prompt, messages and settings of an LM call."""


@dataclass(frozen=True)
class Question:
    """An LM call that a worker's program makes."""

    number: int
    example: int
    model: int
    blocking: bool
    """Whether the program called synchronously."""
    content: bytes
    """`Asked`."""


@dataclass(frozen=True)
class Answer:
    """What the driver's model gave, or the error it raised; `error_number` names it on the driver."""

    question: int
    content: bytes
    error_number: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of an example: a prediction, the program's error, or why it could not be run there.

    `error_number` stands for an error of the driver's own that the program let through.
    """

    prediction: bytes | None = None
    seconds: float = 0.0
    trace: bytes | None = None
    error: bytes | None = None
    error_number: int | None = None
    unable: str | None = None


class _Pickler(cloudpickle.CloudPickler):
    """Leaves models behind: the driver keeps them, with their keys."""

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
    """A value as bytes, and the models that were found in it, which the bytes name by their places here."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(value)
    return buffer.getvalue(), pickler.lms


def load(content: bytes, stand_in: Callable[[Model], Any]) -> Any:
    # Between a driver and the workers it started itself: Ray's own calls are pickles too.
    return _Unpickler(io.BytesIO(content), stand_in).load()


def dump_error(error: BaseException, secrets: Iterable[str] = ()) -> bytes:
    """An error as bytes that can be read again and hold no secret: where its own can't or do, those of a
    RuntimeError with its text."""
    text = replace_secrets(f"{type(error).__name__}: {error}", secrets)
    try:
        content: bytes = cloudpickle.dumps(error)
        cloudpickle.loads(content)  # some can be written and not read
    except Exception:  # noqa: BLE001 - errors of any library
        content = cloudpickle.dumps(RuntimeError(text))
    if any(secret and secret.encode() in content for secret in secrets):
        content = cloudpickle.dumps(RuntimeError(text))
    return content
