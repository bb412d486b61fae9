"""Keeps the progress bars and logs of DSPy's own optimizers off the user's screen.

They run in DSPy's threads, which inherit its settings: within `quiet`, and nowhere else in the process, its
bars are not drawn, and its log lines, a traceback for each answer that can't be parsed, are dropped."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import dspy
from tqdm.std import tqdm

_SETTING = "agentcore_quiet"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block, DSPy draws no bars and logs nothing below CRITICAL."""
    for handler in logging.getLogger("dspy").handlers:
        handler.addFilter(_heard)  # adding it again does nothing
    with dspy.context(**{_SETTING: True}):
        yield


def _heard(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or not dspy.settings.get(_SETTING)


_init = tqdm.__init__


def _drawn(self: Any, *arguments: Any, **named: Any) -> None:
    if dspy.settings.get(_SETTING):
        named["disable"] = True
    _init(self, *arguments, **named)


# GEPA's and DSPy's bars have no other switch that their optimizers pass on.
tqdm.__init__ = _drawn
