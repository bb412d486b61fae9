"""Language models: resolving, metering, stopping, and the offline engine."""

from agentcore.lm._guard import Guard, SearchStopped, StopReason, is_lm_failure
from agentcore.lm._logs import redacted_logs
from agentcore.lm._meter import CallRecord, Meter, Spend, collect_spend
from agentcore.lm._resolve import OFFLINE_LM, OFFLINE_NOTE, is_offline, lm_secrets, offline_lm, resolve_lm

__all__ = [
    "OFFLINE_LM",
    "OFFLINE_NOTE",
    "CallRecord",
    "Guard",
    "Meter",
    "SearchStopped",
    "Spend",
    "StopReason",
    "collect_spend",
    "is_lm_failure",
    "is_offline",
    "lm_secrets",
    "offline_lm",
    "redacted_logs",
    "resolve_lm",
]
