"""Records the cost of every LM call by stage, regardless of which thread or copy of an LM makes it."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import dspy

from agentcore.lm._prices import Prices

asking: ContextVar[Any] = ContextVar("agentcore_asking", default=None)
"""The managed call being made in this context, on which its `CallRecord` is stored; None outside of one."""
_counted: ContextVar[Any] = ContextVar("agentcore_counted", default=None)
"""The outputs of the last call that `count` recorded: its history entry is not counted again."""


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
    unanswered: int = 0
    """Attempts without an answer here that the provider may still have answered and billed; part of
    `calls`. Their tokens and cost are unknown."""
    assumed_tokens: float = 0.0
    """The most tokens that were used without being reported; counts towards caps only."""
    assumed_cost_usd: float = 0.0
    """The same in USD."""

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def cost_usd(self) -> float | None:
        """USD; None if the price of at least one call is unknown."""
        return None if self.unpriced_calls else self.known_cost_usd

    @staticmethod
    def total(spends: "Sequence[Spend]") -> "Spend":
        """The sum."""
        return Spend(
            calls=sum(spend.calls for spend in spends),
            cache_hits=sum(spend.cache_hits for spend in spends),
            input_tokens=sum(spend.input_tokens for spend in spends),
            output_tokens=sum(spend.output_tokens for spend in spends),
            known_cost_usd=sum(spend.known_cost_usd for spend in spends),
            unpriced_calls=sum(spend.unpriced_calls for spend in spends),
            unanswered=sum(spend.unanswered for spend in spends),
            assumed_tokens=sum(spend.assumed_tokens for spend in spends),
            assumed_cost_usd=sum(spend.assumed_cost_usd for spend in spends),
        )

    def assuming(self, calls: int, tokens: float, usd: float) -> "Spend":
        """This spend with calls, tokens and USD that may have been used, and were not reported."""
        return replace(
            self,
            calls=self.calls + calls,
            unanswered=self.unanswered + calls,
            assumed_tokens=self.assumed_tokens + tokens,
            assumed_cost_usd=self.assumed_cost_usd + usd,
        )

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
    """Counts the calls of a context. It is also an entry of DSPy's `caller_modules`, so that models whose
    calls don't go through DSPy's execution are counted from their history entries."""

    def __init__(self) -> None:
        self.history = self
        self._lock = threading.Lock()
        self.spend = Spend()

    def __len__(self) -> int:
        return 0

    def append(self, entry: dict[str, Any]) -> None:
        if entry.get("outputs") is _counted.get() is not None:
            return
        record = call_record(entry)
        if (call := asking.get()) is not None:
            call.record = record
        self.add(record)

    def add(self, record: CallRecord) -> None:
        with self._lock:
            self.spend = self.spend.plus(record)

    def assume(self, calls: int, tokens: float, usd: float) -> None:
        with self._lock:
            self.spend = self.spend.assuming(calls, tokens, usd)


def _here() -> list[_Sink]:
    return [item for item in dspy.settings.get("agentcore_sinks") or () if isinstance(item, _Sink)]


def count(model: str, result: Any) -> CallRecord:
    """Record an answered call where it is made, whether or not DSPy's history will have it.

    Args:
        result: DSPy's `CallResult`.
    """
    entry = {"model": model, "usage": result.usage, "cost": result.cost, "response": result.responses or None}
    cache_hit = bool(result.cache_hit or _is_litellms(result.raw))
    record = replace(call_record(entry), cache_hit=cache_hit)
    if cache_hit:
        record = replace(record, cost_usd=0.0)
    elif not result.responses:
        record = replace(record, answers=max(1, len(result.outputs)))
    for sink in _here():
        sink.add(record)
    _counted.set(result.outputs)
    return record


def _is_litellms(raw: Any) -> bool:
    """Whether an answer comes from a cache of litellm's own, which DSPy disables and a program may enable."""
    hidden = getattr(raw, "_hidden_params", None)
    return isinstance(hidden, dict) and hidden.get("cache_hit") is True


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
    with _calling([*(dspy.settings.caller_modules or []), sink], [*_here(), sink]):
        yield sink


@contextmanager
def _calling(callers: list[Any], sinks: list[Any], **settings: Any) -> Iterator[None]:
    # The history counts calls of models that don't go through DSPy's execution, so it is enabled.
    size = dspy.settings.max_history_size or 10_000
    with dspy.context(
        caller_modules=callers,
        agentcore_sinks=sinks,
        disable_history=False,
        max_history_size=size,
        **settings,
    ):
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
        others = [item for item in _here() if item not in own]
        with _calling([*callers, sink], [*others, sink], agentcore_prices=self.prices):
            yield

    def assume(self, calls: int, tokens: float, usd: float) -> None:
        """Charge what may have been used to the current stage and example."""
        sinks = _here()
        if not any(item in sinks for item in list(self._sinks.values())):
            sinks = [*sinks, self._sink("unanswered")]
        for sink in sinks:
            sink.assume(calls, tokens, usd)

    def _sink(self, name: str) -> _Sink:
        return self._sinks.setdefault(name, _Sink())

    def by_stage(self) -> dict[str, Spend]:
        """Spend of each stage in which a call was answered."""
        found = {name: sink.spend for name, sink in list(self._sinks.items())}
        return {
            name: spend
            for name, spend in found.items()
            if spend.calls or spend.cache_hits or spend.assumed_tokens or spend.assumed_cost_usd
        }

    @property
    def total(self) -> Spend:
        return Spend.total([sink.spend for sink in list(self._sinks.values())])
