"""Judges the outcome of an attempt: whether an answer is one, and whether a failed attempt may have cost."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import dspy

_NOT_ANSWERED = (
    dspy.LMAuthError,
    dspy.LMBillingError,
    dspy.LMConfigurationError,
    dspy.LMInvalidRequestError,
    dspy.LMLockTimeoutError,
    dspy.LMRateLimitError,
    dspy.LMUnsupportedFeatureError,
)
_GATEWAY_TIMEOUTS = (408, 504, 524)
_NEVER_SENT = ("ConnectError", "ConnectionRefusedError", "gaierror", "NewConnectionError", "ConnectTimeout")
_APOLOGY = re.compile(
    r"temporarily unavailable|service unavailable|bad gateway|gateway time-?out|internal server error"
    r"|overloaded|try again later|too many requests",
    re.IGNORECASE,
)
_APOLOGY_LENGTH = 300
_STRUCTURED = ("[[ ## ", "JSON object", "</")
"""Marks of prompts whose answers have a structure that no apology has."""


class NoAnswerError(dspy.LMServerError):
    """The provider reported success, but its answer is empty, filtered, or an apology for an outage."""


def no_answer(answer: Any, asked: Sequence[Any]) -> str | None:
    """Why a model's output is not an answer; None if it is one.

    Args:
        answer: a model's outputs, texts or dicts.
        asked: the messages.
    """
    if not isinstance(answer, (list, tuple)):
        return None
    outputs = [_text(item) for item in answer]
    if not outputs:
        return "no choices"
    if all(not text for text, more in outputs if not more) and not any(more for _, more in outputs):
        return "an empty text"
    apologies = [text for text, more in outputs if not more and _is_apology(text)]
    if len(apologies) == len(outputs) and _expects_structure(asked):
        return f"{apologies[0][:80]!r}"
    return None


def may_have_been_answered(error: BaseException) -> bool:
    """Whether the provider may have worked on an attempt that failed here: a time-out, a lost connection, or
    a cancelled request. Refusals and connections that were never made cost nothing."""
    if not isinstance(error, Exception):
        return True
    if isinstance(error, _NOT_ANSWERED):
        return False
    if isinstance(error, dspy.LMServerError):
        return getattr(error, "status", None) in _GATEWAY_TIMEOUTS
    return not any(type(cause).__name__ in _NEVER_SENT for cause in _causes(error))


def _text(output: Any) -> tuple[str, bool]:
    """The text of an output, and whether it has anything besides."""
    if isinstance(output, dict):
        more = any(value for name, value in output.items() if name not in ("text", "logprobs"))
        return str(output.get("text") or "").strip(), more
    return ("" if output is None else str(output).strip()), False


def _is_apology(text: str) -> bool:
    marked = "[[ ##" in text or text.startswith(("{", "<"))
    return len(text) <= _APOLOGY_LENGTH and not marked and _APOLOGY.search(text) is not None


def _expects_structure(asked: Sequence[Any]) -> bool:
    texts = [str(item.get("content", "")) if isinstance(item, dict) else str(item) for item in asked]
    return any(mark in text for text in texts for mark in _STRUCTURED)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__
