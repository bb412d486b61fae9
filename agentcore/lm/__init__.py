"""Language models: resolving, metering, caps and rate limits, and the offline engine."""

from agentcore.lm._answers import NoAnswerError
from agentcore.lm._control import Control
from agentcore.lm._endpoint import described, endpoint_of
from agentcore.lm._formatting import remembering
from agentcore.lm._given import given_lm, recorded_model
from agentcore.lm._guard import LIMITS, Guard, SearchStopped, StopReason, is_lm_failure
from agentcore.lm._ledger import Amount, Announce, Ledger
from agentcore.lm._logs import redacted_logs
from agentcore.lm._managed import ManagedLM, manage, manage_program, uncached, unmanaged
from agentcore.lm._meter import CallRecord, Meter, Spend, collect_spend
from agentcore.lm._prices import Price, Prices, parse_prices, price_of
from agentcore.lm._resolve import (
    GENERATION_SETTINGS,
    OFFLINE_LM,
    OFFLINE_NOTE,
    check_stored_name,
    is_offline,
    offline_lm,
    resolve_lm,
)
from agentcore.lm._secrets import is_secret_attribute, lm_secrets, program_secrets
from agentcore.lm._watch import install, of_run, outside_runs

install()

__all__ = [
    "GENERATION_SETTINGS",
    "LIMITS",
    "OFFLINE_LM",
    "OFFLINE_NOTE",
    "Amount",
    "Announce",
    "CallRecord",
    "Control",
    "Guard",
    "Ledger",
    "ManagedLM",
    "Meter",
    "NoAnswerError",
    "Price",
    "Prices",
    "SearchStopped",
    "Spend",
    "StopReason",
    "check_stored_name",
    "collect_spend",
    "described",
    "endpoint_of",
    "given_lm",
    "is_lm_failure",
    "is_offline",
    "is_secret_attribute",
    "lm_secrets",
    "manage",
    "manage_program",
    "of_run",
    "offline_lm",
    "outside_runs",
    "parse_prices",
    "price_of",
    "program_secrets",
    "recorded_model",
    "redacted_logs",
    "remembering",
    "resolve_lm",
    "uncached",
    "unmanaged",
]
