"""Enforces a run's caps: the maximum cost of each call is reserved before the call is made."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from agentcore.errors import AgentCoreError
from agentcore.lm._meter import Meter, Spend

Limit = Literal["call_limit", "token_limit", "cost_limit"]


@dataclass(frozen=True)
class Amount:
    """Calls, tokens and USD; as a cap, None means unlimited."""

    calls: float | None = None
    tokens: float | None = None
    usd: float | None = None

    @classmethod
    def of(cls, spend: Spend) -> "Amount":
        """What counts towards caps."""
        return cls(
            spend.calls,
            spend.total_tokens + spend.assumed_tokens,
            spend.known_cost_usd + spend.assumed_cost_usd,
        )

    def plus(self, other: "Amount") -> "Amount":
        """The sum; None counts as 0."""
        return Amount(
            (self.calls or 0) + (other.calls or 0),
            (self.tokens or 0) + (other.tokens or 0),
            (self.usd or 0) + (other.usd or 0),
        )

    def times(self, factor: float) -> "Amount":
        """The multiple; None counts as 0."""
        return Amount((self.calls or 0) * factor, (self.tokens or 0) * factor, (self.usd or 0) * factor)

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.calls, self.tokens, self.usd))


class CapReached(BaseException):
    """A call was not made because it could have exceeded a cap.

    A BaseException, because DSPy turns an `Exception` into a score of 0 and continues.
    """

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.limit: Limit = limit


class CapsRefused(BaseException):
    """A call was not made because the run's caps can't be enforced."""

    def __init__(self, error: AgentCoreError) -> None:
        super().__init__(str(error))
        self.error = error


Announce = Callable[[Amount], "Future[Any]"]
_AHEAD = 4


def _numbers(amount: Amount) -> tuple[float, float, float]:
    return amount.calls or 0.0, amount.tokens or 0.0, amount.usd or 0.0


class Ledger:
    """Admits a call if spent + reserved + set aside + the call's maximum cost stays within the caps.
    Thread-safe.

    Spent is the meter's total, which includes calls that were not reserved. A reservation is released once
    the meter has recorded the call's answer."""

    def __init__(self, meter: Meter, caps: Amount) -> None:
        self.meter = meter
        self.caps = caps
        self.set_aside = Amount()
        """Set aside for evaluating the winner."""
        self.refused: AgentCoreError | None = None
        """Set once the caps can't be enforced; every further reservation raises it."""
        self.announce: Announce | None = None
        """Writes down how much may be spent before it is: what a process had reserved when it was killed
        counts as spent."""
        self._announced = Amount(0, 0, 0.0)
        self._announcing: Future[Any] | None = None
        self._reserved = Amount(0, 0, 0.0)
        self._open = 0
        self._waiting: list[Future[None]] = []
        self._lock = threading.Lock()

    def try_reserve(self, bound: Amount, *, wait: bool = True) -> "Reservation | Future[None]":
        """A reservation, or a future that is done when it is worth trying again.

        Raises:
            CapReached: no call in flight could free up budget, or `wait` is False.
            CapsRefused: a model was called where no cap reaches.
        """
        with self._lock:
            if self.refused is not None:
                raise CapsRefused(self.refused)
            limit = self._over(bound)
            if limit is None:
                self._reserved = self._reserved.plus(bound)
                self._open += 1
                return Reservation(self, bound, self._announced_by(bound))
            if not self._open or not wait:
                raise CapReached(limit)
            future: Future[None] = Future()
            self._waiting.append(future)
            return future

    def assume(self, taken: Amount) -> None:
        """Charge the maximum cost of an attempt or an answer that the meter could not measure."""
        self.meter.assume(round(taken.calls or 0), taken.tokens or 0.0, taken.usd or 0.0)

    def _announced_by(self, bound: Amount) -> "Future[Any] | None":
        """A future that is done once what is reserved now has been announced; None if it has been."""
        if self.announce is None or not self.caps:
            return None
        most = Amount.of(self.meter.total).plus(self._reserved)
        if any(now > known for now, known in zip(_numbers(most), _numbers(self._announced), strict=True)):
            # Some calls ahead, so that not every call waits for a write.
            self._announced = most.plus(bound.times(_AHEAD))
            self._announcing = self.announce(self._announced)
        return self._announcing

    def is_settled(self) -> bool:
        """Whether nothing is reserved. Forgets what was announced: the account says all there is."""
        with self._lock:
            if not self._open:
                self._announced = Amount(0, 0, 0.0)
            return not self._open

    def left(self) -> Amount:
        """The remaining budget; None means unlimited."""
        spent = Amount.of(self.meter.total)

        def rest(cap: float | None, used: float | None) -> float | None:
            return None if cap is None else cap - (used or 0)

        return Amount(
            rest(self.caps.calls, spent.calls),
            rest(self.caps.tokens, spent.tokens),
            rest(self.caps.usd, spent.usd),
        )

    def _over(self, bound: Amount) -> Limit | None:
        if not self.caps:
            return None
        total = Amount.of(self.meter.total).plus(self._reserved).plus(self.set_aside).plus(bound)
        caps = self.caps
        if caps.calls is not None and (total.calls or 0) > caps.calls:
            return "call_limit"
        if caps.tokens is not None and (total.tokens or 0) > caps.tokens:
            return "token_limit"
        if caps.usd is not None and (total.usd or 0) > caps.usd + 1e-12:
            return "cost_limit"
        return None

    def _give_back(self, bound: Amount) -> None:
        with self._lock:
            self._reserved = self._reserved.plus(bound.times(-1))
            self._open -= 1
            if not self._open:
                self._reserved = Amount(0, 0, 0.0)  # discard accumulated rounding errors
            waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


@dataclass(frozen=True)
class Reservation:
    ledger: Ledger
    bound: Amount
    announced: "Future[Any] | None" = None
    """Done once the reservation is written down; the call must not be made before."""

    def give_back(self) -> None:
        self.ledger._give_back(self.bound)
