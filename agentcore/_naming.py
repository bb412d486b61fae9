"""Run names, local run ids and timestamps."""

import time
from datetime import UTC, datetime

LOCAL_PREFIX = "local-"
"""Prefix of the id of a run that MLflow may not have yet; followed by the journal's stream id."""


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def utc(milliseconds: int) -> datetime:
    """A Unix time in milliseconds as a UTC datetime."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def timestamp(milliseconds: int | None = None) -> str:
    """`20261125_211757` (UTC), for run names; defaults to the current time."""
    return utc(now_ms() if milliseconds is None else milliseconds).strftime("%Y%m%d_%H%M%S")


def run_name(purpose: str, *parts: str, at_ms: int | None = None) -> str:
    """`{purpose}_{parts…}_{timestamp}`; default: the current time."""
    return "_".join([purpose, *parts, timestamp(at_ms)])


def short_id(stream: str) -> str:
    """A run's id as people see and type it: the start of its journal stream's id."""
    return stream[:8]


def local_id(stream: str) -> str:
    """The local run id of a journal stream."""
    return LOCAL_PREFIX + stream
