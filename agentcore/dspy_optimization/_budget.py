"""What an optimization may spend, and what of it is kept for measuring the winner."""

from collections.abc import Sequence

from agentcore.dspy_optimization.models import OptimizationConstraints
from agentcore.errors import ConfigurationError
from agentcore.evaluation import ExampleRecord
from agentcore.lm import Amount, Control, Ledger, Meter, Spend, StopReason

_MARGIN = 1.15
"""The winner may take this much more per example on the test split than the costliest candidate so far."""


class Budget:
    """The caps of one run.

    The search leaves enough for the winner's measuring: as much as the baseline took, or as the costliest
    candidate so far would take.
    """

    def __init__(
        self, constraints: OptimizationConstraints, meter: Meter, max_concurrency: int, tests: int
    ) -> None:
        self.constraints = constraints
        self.caps = Amount(constraints.max_lm_calls, constraints.max_tokens, constraints.max_cost_usd)
        self.ledger = Ledger(meter, self.caps)
        self.control = Control(self.ledger, max_concurrency, meter.prices)
        self._tests = tests
        self._needed = Amount(0, 0, 0.0)
        self._judged = Amount(0, 0, 0.0)

    def check_baseline(self) -> None:
        """Raise `ConfigurationError` where the caps can't even pay for measuring baseline and winner."""
        calls = self.caps.calls
        if calls is not None and calls <= 2 * self._tests:
            raise self.too_little(f"baseline and winner take at least {self._tests} calls each")

    def begin_search(self, baseline: Sequence[ExampleRecord], judged: Spend, *, begun: bool) -> None:
        """Keep for the winner what the baseline took.

        Args:
            judged: what the metric's own LM calls took for the baseline.
            begun: whether an earlier process of the run has begun the search.

        Raises:
            ConfigurationError: that is all that is left, and nothing was searched yet.
        """
        if not self.caps:
            return
        self._judged = Amount.of(judged).plus(Amount(judged.cache_hits)).times(1 / len(baseline))
        self._keep(baseline)
        if begun:
            return
        left = self.ledger.left()
        for rest, needed in zip(_values(left), _values(self._needed), strict=True):
            if rest is not None and rest <= (needed or 0):
                raise self.too_little(f"measuring the winner takes about {_text(self._needed)}")

    def learn(self, records: Sequence[ExampleRecord]) -> None:
        """A candidate was measured: the winner may be as costly."""
        if self.caps and records:
            self._keep(records)

    def begin_winner(self) -> None:
        self.ledger.kept = Amount()

    def limit(self, reason: StopReason) -> str:
        """A limit that was reached, as the user named it."""
        constraints = self.constraints
        return {
            "time_limit": f"max_optimization_time ({constraints.max_optimization_time:g} s)",
            "call_limit": f"max_lm_calls ({constraints.max_lm_calls})",
            "token_limit": f"max_tokens ({constraints.max_tokens})",
            "cost_limit": f"max_cost_usd ({constraints.max_cost_usd})",
        }[reason]

    def too_little(self, why: str) -> ConfigurationError:
        named = {
            "max_lm_calls": self.caps.calls,
            "max_tokens": self.caps.tokens,
            "max_cost_usd": self.caps.usd,
        }
        given = ", ".join(f"{name}={value:g}" for name, value in named.items() if value is not None)
        return ConfigurationError(f"{given} leaves nothing for the search: {why}")

    def _keep(self, records: Sequence[ExampleRecord]) -> None:
        each = [record for record in records if record.failed != "lm"] or records
        factor = _MARGIN * self._tests / len(each)
        judge = self._judged.times(self._tests)
        calls = sum(record.lm_calls + record.cache_hits for record in each) * factor / _MARGIN
        tokens = sum(record.input_tokens + record.output_tokens for record in each) * factor
        usd = sum(record.cost_usd or 0.0 for record in each) * factor
        calls += judge.calls or 0
        tokens += (judge.tokens or 0) * _MARGIN
        usd += (judge.usd or 0) * _MARGIN
        before = self._needed
        self._needed = Amount(
            max(before.calls or 0, calls), max(before.tokens or 0, tokens), max(before.usd or 0, usd)
        )
        self.ledger.kept = self._needed


def _values(amount: Amount) -> tuple[float | None, ...]:
    return amount.calls, amount.tokens, amount.usd


def _text(amount: Amount) -> str:
    parts = [f"{amount.calls or 0:.0f} calls"]
    if amount.tokens:
        parts.append(f"{amount.tokens:,.0f} tokens")
    if amount.usd:
        parts.append(f"${amount.usd:.4g}")
    return ", ".join(parts)
