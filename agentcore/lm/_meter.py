"""Records the cost of every LM call by stage, regardless of which thread or copy of an LM makes it."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import dspy

from agentcore.lm._prices import Prices

asking: ContextVar[Any] = ContextVar("agentcore_asking", default=None)
"""The managed call being made in this context, on which its `CallRecord` is stored; None outside of one."""


@dataclass(frozen=True)
class CallRecord:
    """One answered LM call."""

    model: str
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    """USD; None if the price is unknown, 0 for a cache hit."""
    cache_hit: bool
    answers: int = 1
    """Number of answers, each counted as a call: more than one if the call asked for `n` of them."""


@dataclass(frozen=True)
class Spend:
    """A sum over calls. Cache hits are counted separately from `calls` and cost nothing."""

    calls: int = 0
    cache_hits: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    known_cost_usd: float = 0.0
    unpriced_calls: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def cost_usd(self) -> float | None:
        """USD; None if the price of at least one call is unknown."""
        return None if self.unpriced_calls else self.known_cost_usd

    def plus(self, call: CallRecord) -> "Spend":
        """This spend with one more call."""
        if call.cache_hit:
            return replace(self, cache_hits=self.cache_hits + 1)
        return replace(
            self,
            calls=self.calls + call.answers,
            input_tokens=self.input_tokens + call.input_tokens,
            output_tokens=self.output_tokens + call.output_tokens,
            known_cost_usd=self.known_cost_usd + (call.cost_usd or 0.0),
            unpriced_calls=self.unpriced_calls + call.answers * (call.cost_usd is None),
        )


class _Sink:
    """An entry of DSPy's `caller_modules`, so that `record_history` appends every call's entry to it.

    `lm.history` would miss calls of copies that the proposer makes, and drops entries beyond its limit; a
    callback sees neither usage nor cost. Remove once DSPy's `on_lm_end` carries both.
    """

    def __init__(self) -> None:
        self.history = self
        self._lock = threading.Lock()
        self.spend = Spend()

    def __len__(self) -> int:
        return 0

    def append(self, entry: dict[str, Any]) -> None:
        record = call_record(entry)
        if (call := asking.get()) is not None:
            call.record = record
        with self._lock:
            self.spend = self.spend.plus(record)


def call_record(entry: dict[str, Any]) -> CallRecord:
    usage = entry.get("usage") or {}
    cache_hit = not usage and _stored_usage(entry.get("response"))
    model = str(entry.get("model", ""))
    taken = int(usage.get("prompt_tokens") or usage.get("input_tokens") or 0)
    given = int(usage.get("completion_tokens") or usage.get("output_tokens") or 0)
    price = (dspy.settings.get("agentcore_prices") or {}).get(model)
    cost = entry.get("cost") if price is None else price.of(taken, given)
    # A cache hit reports the original cost again. The offline engine runs locally, for free.
    if cache_hit or (price is None and model.startswith("offline/")):
        cost = 0.0
    responses = entry.get("response")
    return CallRecord(
        model=model,
        input_tokens=taken,
        output_tokens=given,
        cost_usd=cost,
        cache_hit=cache_hit,
        answers=len(responses) if isinstance(responses, (list, tuple)) and responses else 1,
    )


def _stored_usage(response: Any) -> bool:
    """Whether a response has usage but its history entry has none, which is how DSPy marks a cache hit.

    If the provider reports no usage at all, both are empty: it counts as a call with an unknown price.
    """
    first = response[0] if isinstance(response, (list, tuple)) and response else response
    usage = first.get("usage") if isinstance(first, dict) else getattr(first, "usage", None)
    if usage is None:
        return False
    names = ("input_tokens", "output_tokens", "prompt_tokens", "completion_tokens")
    values = (usage.get(name) if isinstance(usage, dict) else getattr(usage, name, None) for name in names)
    return any(values)


@contextmanager
def collect_spend() -> Iterator[_Sink]:
    """Within the block, and in threads that copied its context, every answered call is added to `.spend`."""
    sink = _Sink()
    with _calling([*(dspy.settings.caller_modules or []), sink]):
        yield sink


@contextmanager
def _calling(callers: list[Any], **settings: Any) -> Iterator[None]:
    # Metering relies on the history, so it is enabled even if the user disabled it.
    size = dspy.settings.max_history_size or 10_000
    with dspy.context(caller_modules=callers, disable_history=False, max_history_size=size, **settings):
        yield


class Meter:
    """Spend of one run by stage. Nested stages are charged to the innermost one. Thread-safe.

    Args:
        prices: user-supplied prices by model; for other models the cost reported by the LM is used.
    """

    def __init__(self, prices: Prices | None = None) -> None:
        self.prices = dict(prices or {})
        self._sinks: dict[str, _Sink] = {}

    def start_from(self, spent: Mapping[str, Spend]) -> None:
        """Start from the spend of earlier processes of the same run, by stage."""
        for name, spend in spent.items():
            self._sink(name).spend = spend

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge LM calls within the block to a stage."""
        sink, own = self._sink(name), list(self._sinks.values())
        callers = [item for item in dspy.settings.caller_modules or [] if item not in own]
        with _calling([*callers, sink], agentcore_prices=self.prices):
            yield

    def _sink(self, name: str) -> _Sink:
        return self._sinks.setdefault(name, _Sink())

    def by_stage(self) -> dict[str, Spend]:
        """Spend of each stage in which a call was answered."""
        found = {name: sink.spend for name, sink in list(self._sinks.items())}
        return {name: spend for name, spend in found.items() if spend.calls or spend.cache_hits}

    @property
    def total(self) -> Spend:
        return _total(list(self._sinks.values()))


def _total(sinks: list[_Sink]) -> Spend:
    spends = [sink.spend for sink in sinks]
    return Spend(
        calls=sum(spend.calls for spend in spends),
        cache_hits=sum(spend.cache_hits for spend in spends),
        input_tokens=sum(spend.input_tokens for spend in spends),
        output_tokens=sum(spend.output_tokens for spend in spends),
        known_cost_usd=sum(spend.known_cost_usd for spend in spends),
        unpriced_calls=sum(spend.unpriced_calls for spend in spends),
    )
