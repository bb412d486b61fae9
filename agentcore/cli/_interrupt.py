"""Ctrl-C while libraries are imported. The exception is lost if Python is in a callback of an import lock, or
in a library that catches everything around an optional import, and the command would run to its end."""

import signal
from typing import NoReturn

_asked = False


def _interrupt(*_: object) -> NoReturn:
    global _asked
    _asked = True
    raise KeyboardInterrupt


def remember_interrupts() -> None:
    """From now until `asyncio_takes_over`, remember Ctrl-C as well as raising KeyboardInterrupt."""
    signal.signal(signal.SIGINT, _interrupt)


def asyncio_takes_over() -> None:
    """Let asyncio handle Ctrl-C, which it does only in place of Python's own handler.

    Raises:
        KeyboardInterrupt: it was pressed, and got lost.
    """
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if _asked:
        raise KeyboardInterrupt
