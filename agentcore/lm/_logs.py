"""Keeps secrets out of other libraries' logs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from agentcore._redaction import Redactor

_FORMATTER = logging.Formatter()


class _Redaction(logging.Filter):
    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        clean = self._redactor.text(message)
        if clean != message:
            record.msg, record.args = clean, None
        if record.exc_info:
            record.exc_text = _FORMATTER.formatException(record.exc_info)
            record.exc_info = None
        record.exc_text = record.exc_text and self._redactor.text(record.exc_text)
        record.stack_info = record.stack_info and self._redactor.text(record.stack_info)
        return True


@contextmanager
def redacted_logs(redactor: Redactor) -> Iterator[None]:
    """Redact secrets in the handlers of DSPy's logger and the root logger. Providers repeat a rejected key in
    their error message, which DSPy logs."""
    redaction = _Redaction(redactor)
    handlers = [*logging.getLogger("dspy").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(redaction)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(redaction)
