"""One exception root, few leaves. Every message says what was wrong, where, and what to do."""

import os
import re
from collections.abc import Iterable

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)", re.IGNORECASE)
_MIN_SECRET_LENGTH = 8


class AgentCoreError(Exception):
    """The root of every error that AgentCore raises on purpose.

    `exit_code` is what the command line exits with: 2 for wrong usage, 3 where something outside failed.
    """

    exit_code = 3


class ConfigurationError(AgentCoreError):
    """Wrong arguments, settings, program path, optimizer or LM name."""

    exit_code = 2


class RunFinishedError(ConfigurationError):
    """A run that was to be gone on with has finished.

    Attributes:
        run_id: MLflow's, or the local one while MLflow doesn't have it.
    """

    def __init__(self, message: str, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class DataError(AgentCoreError):
    """Examples that can't be used as they are."""

    exit_code = 2


class MetricError(AgentCoreError):
    """A metric raised, or returned what is not a score in 0–1."""

    exit_code = 2


class EvaluationError(AgentCoreError):
    """Too many examples failed for the scores to mean anything."""


class LMUnavailableError(EvaluationError):
    """The language model can't be reached, or refuses: never turned into a score of 0."""


class ExecutorError(AgentCoreError):
    """The machines that programs should run on can't be reached, or don't keep running."""


class TrackingError(AgentCoreError):
    """The MLflow server or its stores can't be reached, or refuse."""


class ArtifactError(AgentCoreError):
    """A stored model is missing, changed, or doesn't fit the program it is loaded into."""


class JournalError(AgentCoreError):
    """The journal can't be read or written: what was asked for is not kept."""


class PayloadGoneError(JournalError):
    """A content that an event refers to was removed or changed: it will not come back."""


class UnknownRunError(JournalError):
    """The journal has no such run, or not any more."""


class LeaseLostError(JournalError):
    """Another process took this run over, because this one did not renew its lease in time."""


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without any known secret: those given, and the values of environment variables whose
    names say that they hold one (KEY, TOKEN, SECRET, PASSWORD, CREDENTIAL; at least 8 characters)."""
    return replace_secrets(text, environment_secrets() | set(secrets))


def replace_secrets(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _MIN_SECRET_LENGTH:
            text = text.replace(secret, "[redacted]")
    return text


def looks_random(text: str) -> bool:
    """Whether a secret's value can't be an ordinary word: long, with letters and digits."""
    return len(text) >= 16 and any(map(str.isdigit, text)) and any(map(str.isalpha, text))


def is_secret_name(name: str) -> bool:
    """Whether a variable's name says that it holds a secret."""
    return _SECRET_NAME.search(name) is not None


def environment_secrets() -> set[str]:
    """The values of environment variables whose names say that they hold a secret."""
    return {value for name, value in os.environ.items() if is_secret_name(name)}


def first_line(error: BaseException, limit: int = 300, *, secrets: Iterable[str] = ()) -> str:
    """An error from elsewhere on one line, redacted: its class and the start of its message."""
    message = redact(" ".join(str(error).split()), secrets)  # before the cut, which may go through a secret
    if len(message) > limit:
        message = message[: limit - 1] + "…"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
