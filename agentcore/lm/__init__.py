"""Language models: resolving, metering, caps and rate limits, and the offline engine."""

from agentcore.lm._control import Control
from agentcore.lm._formatting import remembering
from agentcore.lm._guard import LIMITS, Guard, SearchStopped, StopReason, is_lm_failure
from agentcore.lm._ledger import Amount, Ledger
from agentcore.lm._logs import redacted_logs
from agentcore.lm._managed import ManagedLM, manage, manage_program, unmanaged
from agentcore.lm._meter import CallRecord, Meter, Spend, collect_spend
from agentcore.lm._prices import Price, Prices, parse_prices, price_of
from agentcore.lm._resolve import OFFLINE_LM, OFFLINE_NOTE, is_offline, lm_secrets, offline_lm, resolve_lm

__all__ = [
    "LIMITS",
    "OFFLINE_LM",
    "OFFLINE_NOTE",
    "Amount",
    "CallRecord",
    "Control",
    "Guard",
    "Ledger",
    "ManagedLM",
    "Meter",
    "Price",
    "Prices",
    "SearchStopped",
    "Spend",
    "StopReason",
    "collect_spend",
    "is_lm_failure",
    "is_offline",
    "lm_secrets",
    "manage",
    "manage_program",
    "offline_lm",
    "parse_prices",
    "price_of",
    "redacted_logs",
    "remembering",
    "resolve_lm",
    "unmanaged",
]
