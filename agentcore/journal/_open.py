"""Opens the configured journal, once per process."""

import logging
import os
import threading
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from agentcore._forks import not_forked
from agentcore.errors import JournalDamagedError, JournalError
from agentcore.journal._journal import Journal
from agentcore.journal._salvage import put_aside
from agentcore.journal._schema import shown
from agentcore.settings import Settings

_logger = logging.getLogger("agentcore")

_open: dict[tuple[str, int], Journal] = {}
_lock = threading.Lock()


def open_journal(settings: Settings | None = None) -> Journal:
    """Open the configured journal, or return the one that is already open.

    Raises:
        JournalError: it can't be opened.
        ConfigurationError: there is no directory to put it in.
    """
    settings = settings or Settings()
    payloads = None
    if settings.journal_url is not None and settings.journal_url.get_secret_value().startswith("postgresql"):
        url = settings.journal_url.get_secret_value()
    else:
        directory = settings.state_directory()
        path = directory / "journal.db"
        if settings.journal_url is not None:
            path = Path(make_url(settings.journal_url.get_secret_value()).database or path).absolute()
        payloads = path.parent / "payloads"
        url = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
    with not_forked(), _lock:
        key = (url, os.getpid())  # a forked child must not use its parent's connections
        if key not in _open:
            try:
                _open[key] = _opened(url, payloads)
            except OSError as error:
                raise JournalError(
                    f"the journal at {shown(url)} can't be opened: {error}. Set AGENTCORE_STATE_DIR to a "
                    "writable directory"
                ) from None
        return _open[key]


def _opened(url: str, payloads: Path | None) -> Journal:
    """Open a journal; a damaged file is put aside and a new one begun."""
    try:
        return Journal(url, payloads)
    except JournalDamagedError as error:
        if payloads is None:
            raise
        aside = put_aside(Path(make_url(url).database or ""))
        _logger.warning(
            "%s. It was moved to %s, and a new journal was started. Save what can be read with: "
            "agentcore journal salvage %s",
            str(error).partition(". Save what")[0],
            aside,
            aside,
        )
        return Journal(url, payloads)


def close_journals() -> None:
    """Close every journal of this process. The next `open_journal` reopens it."""
    with _lock:
        for journal in _open.values():
            journal.close()
        _open.clear()
