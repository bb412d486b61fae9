"""Which version of an agent runs in production: gate, promotion, rollback, history, loading.

Names load on first use: DSPy and MLflow take seconds to import.
"""

from typing import TYPE_CHECKING

from agentcore._imports import lazy

if TYPE_CHECKING:
    from agentcore.registry._change import Change
    from agentcore.registry._checks import GateCheck, GateContext, at_least, gate_check
    from agentcore.registry._criteria import Criterion, Look, Side, judge, verdict_of
    from agentcore.registry._history import HistoryEntry
    from agentcore.registry._load import LiveProgram, load, load_blocking
    from agentcore.registry._policy import GatePolicy, read_policy
    from agentcore.registry._price import Expected, examples_for, price
    from agentcore.registry._promotion import Promotion, Rollback, Verification
    from agentcore.registry._registry import Registry, SyncRegistry
    from agentcore.registry._state import CHAMPION

_MODULES = {
    "CHAMPION": "_state",
    "Change": "_change",
    "Criterion": "_criteria",
    "Expected": "_price",
    "GateCheck": "_checks",
    "GateContext": "_checks",
    "GatePolicy": "_policy",
    "HistoryEntry": "_history",
    "LiveProgram": "_load",
    "Look": "_criteria",
    "Promotion": "_promotion",
    "Registry": "_registry",
    "Rollback": "_promotion",
    "Side": "_criteria",
    "SyncRegistry": "_registry",
    "Verification": "_promotion",
    "at_least": "_checks",
    "examples_for": "_price",
    "gate_check": "_checks",
    "judge": "_criteria",
    "load": "_load",
    "load_blocking": "_load",
    "price": "_price",
    "read_policy": "_policy",
    "verdict_of": "_criteria",
}

__all__ = [
    "CHAMPION",
    "Change",
    "Criterion",
    "Expected",
    "GateCheck",
    "GateContext",
    "GatePolicy",
    "HistoryEntry",
    "LiveProgram",
    "Look",
    "Promotion",
    "Registry",
    "Rollback",
    "Side",
    "SyncRegistry",
    "Verification",
    "at_least",
    "examples_for",
    "gate_check",
    "judge",
    "load",
    "load_blocking",
    "price",
    "read_policy",
    "verdict_of",
]

__getattr__ = lazy(__name__, _MODULES)
