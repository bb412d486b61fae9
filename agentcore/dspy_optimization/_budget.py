"""The caps of a run, and the reserve for measuring the winner."""

import math
from collections.abc import Sequence

from agentcore.dspy_optimization.models import OptimizationConstraints
from agentcore.errors import ConfigurationError
from agentcore.evaluation import ExampleRecord
from agentcore.lm import Amount, Control, Ledger, Meter, Spend, StopReason

_MARGIN = 1.15
"""Safety factor: the winner may use more tokens per test example than the costliest candidate so far."""


class Budget:
    """The caps of one run.

    The search leaves enough to measure the winner: the cost of the baseline, or of the costliest candidate
    so far.

    Args:
        tests: number of test examples.
        repeats: how often each is run.
        sides: programs measured after the search: the winner, or the original program as well.
    """

    def __init__(
        self,
        constraints: OptimizationConstraints,
        meter: Meter,
        max_concurrency: int,
        tests: int,
        *,
        repeats: int = 1,
        sides: int = 1,
    ) -> None:
        self.constraints = constraints
        self.caps = Amount(constraints.max_lm_calls, constraints.max_tokens, constraints.max_cost_usd)
        self.ledger = Ledger(meter, self.caps)
        self.control = Control(self.ledger, max_concurrency, meter.prices)
        self._tests = tests
        self._repeats = repeats
        self._sides = sides
        self._needed = Amount(0, 0, 0.0)
        self._judged = Amount(0, 0, 0.0)
        self._taken: dict[str, tuple[int, Amount]] = {}
        """Number of runs and their total cost, by candidate."""

    def check_baseline(self) -> None:
        """Raise `ConfigurationError` if the caps don't cover even the baseline and the winner."""
        calls = self.caps.calls
        runs = self._tests * self._repeats
        if calls is not None and calls <= (1 + self._sides) * runs:
            least = (1 + self._sides) * runs
            raise self.too_little(
                f"the baseline and the winner need at least {runs} calls each, so set more than {least}, and "
                "more for the search"
            )

    def begin_search(self, baseline: Sequence[ExampleRecord], judged: Spend, *, begun: bool) -> None:
        """Reserve the cost of the baseline for each program measured after the search.

        Args:
            judged: spend of the metric's own LM calls on the baseline.
            begun: whether an earlier process of this run already started the search.

        Raises:
            ConfigurationError: nothing would be left for a search that has not started yet.
        """
        if not self.caps:
            return
        runs = sum(record.draws for record in baseline)
        self._judged = Amount.of(judged).plus(Amount(judged.cache_hits)).times(1 / runs)
        measured = [record for record in baseline if record.failed != "lm"] or list(baseline)
        total = Amount(0, 0, 0.0)
        for record in measured:
            total = total.plus(_amount(record))
        self._taken["baseline"] = sum(record.draws for record in measured), total
        self._keep()
        if begun:
            return
        left = self.ledger.left()
        for rest, needed in zip(_values(left), _values(self._needed), strict=True):
            if rest is not None and rest <= (needed or 0):
                raise self.too_little(f"measuring the winner takes about {_text(self._needed)}")

    def learn(self, candidate: str, record: ExampleRecord) -> None:
        """Record what a candidate spent on an example: the winner may cost as much."""
        if not self.caps or record.failed == "lm":
            return
        count, total = self._taken.get(candidate, (0, Amount(0, 0, 0.0)))
        self._taken[candidate] = count + record.draws, total.plus(_amount(record))
        self._keep()

    def affords_warm_up(self) -> bool:
        """Whether a run of the program that measures nothing is a small part of the calls left."""
        left = self.ledger.left().calls
        return left is None or left > (2 + self._sides) * self._tests * self._repeats

    def begin_winner(self) -> None:
        self.ledger.set_aside = Amount()

    def limit(self, reason: StopReason, *, searching: bool = False) -> str:
        """The setting behind a limit that was reached, with its value, and what a search left of it for the
        winner."""
        constraints, kept = self.constraints, self.ledger.set_aside
        calls, tokens, usd = constraints.max_lm_calls, constraints.max_tokens, constraints.max_cost_usd
        name, value, rest = {
            "time_limit": ("max_optimization_time", f"{constraints.max_optimization_time:g} s", None),
            "call_limit": ("max_lm_calls", f"{calls}", kept.calls and f"{math.ceil(kept.calls)}"),
            "token_limit": ("max_tokens", f"{tokens}", kept.tokens and f"{kept.tokens:.0f}"),
            "cost_limit": ("max_cost_usd", f"{usd}", kept.usd and f"{kept.usd:.4g}"),
        }[reason]
        left = f", of which {rest} were kept to measure the winner" if searching and rest else ""
        return f"{name} ({value}{left})"

    def too_little(self, why: str) -> ConfigurationError:
        named = {
            "max_lm_calls": self.caps.calls,
            "max_tokens": self.caps.tokens,
            "max_cost_usd": self.caps.usd,
        }
        caps = ", ".join(f"{name}={value:g}" for name, value in named.items() if value is not None)
        return ConfigurationError(f"{caps} leaves nothing for the search: {why}")

    def _keep(self) -> None:
        """Reserve what the costliest candidate so far would cost on the test split, including judging."""
        means = [total.times(1 / count) for count, total in self._taken.values()]
        calls, tokens, usd = (max(values) for values in zip(*map(_numbers, means), strict=True))
        # No margin on calls: they vary less per example than tokens do, and call caps may be tight.
        each = Amount(calls, tokens * _MARGIN, usd * _MARGIN).plus(self._judged)
        self._needed = self.ledger.set_aside = each.times(self._tests * self._repeats * self._sides)


def charge_reserved(meter: Meter, reserved: Amount | None) -> int:
    """Charge what a process that died had reserved and not accounted for; returns the number of calls."""
    if reserved is None:
        return 0
    spent = Amount.of(meter.total)
    rest = [max(0.0, most - used) for most, used in zip(_numbers(reserved), _numbers(spent), strict=True)]
    calls = math.ceil(rest[0] - 1e-9)
    meter.assume(calls, rest[1], rest[2])
    return calls


def _amount(record: ExampleRecord) -> Amount:
    return Amount(
        record.lm_calls + record.cache_hits,
        record.input_tokens + record.output_tokens,
        record.cost_usd or 0.0,
    )


def _numbers(amount: Amount) -> tuple[float, float, float]:
    return amount.calls or 0.0, amount.tokens or 0.0, amount.usd or 0.0


def _values(amount: Amount) -> tuple[float | None, ...]:
    return amount.calls, amount.tokens, amount.usd


def _text(amount: Amount) -> str:
    parts = [f"{amount.calls or 0:.0f} calls"]
    if amount.tokens:
        parts.append(f"{amount.tokens:,.0f} tokens")
    if amount.usd:
        parts.append(f"${amount.usd:.4g}")
    return ", ".join(parts)
