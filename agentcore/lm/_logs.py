"""Keeps secrets out of what other libraries log."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agentcore.errors import redact


class _Redaction(logging.Filter):
    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__()
        self._secrets = secrets

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        clean = redact(message, self._secrets)
        if clean != message:
            record.msg, record.args = clean, None
            record.exc_info = record.exc_text = None  # the traceback repeats the message
        return True


@contextmanager
def redacted_logs(secrets: Sequence[str]) -> Iterator[None]:
    """Within the block, no handler of DSPy's or the root logger writes one of `secrets`: providers repeat
    the key that they refuse, and DSPy logs what they say."""
    redaction = _Redaction(secrets)
    handlers = [*logging.getLogger("dspy").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(redaction)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(redaction)
