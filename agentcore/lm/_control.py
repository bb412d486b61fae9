"""What all models of one run share: its caps, each provider's rate limit, the questions under way."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from agentcore.errors import ConfigurationError
from agentcore.lm._ledger import Amount, Ledger, Reservation
from agentcore.lm._limit import AdaptiveLimit
from agentcore.lm._managed import Managed, managed_copy
from agentcore.lm._prices import Prices, most_input_tokens, most_output_tokens, price_of

_NO_TEXT = ('"image_url"', '"input_audio"', '"file"', '"image"')
"""Parts of a message whose bytes are no bound of their tokens."""
_MOST_OF_AN_IMAGE = 20_000


class Control:
    """What all LMs of one run share.

    Args:
        ledger: the account and its caps.
        max_concurrency: calls in flight of one model, at most.
        prices: the user's own, by model.
    """

    def __init__(self, ledger: Ledger, max_concurrency: int, prices: Prices) -> None:
        self.ledger = ledger
        self.max_concurrency = max_concurrency
        self.prices = prices
        self.limits: dict[str, AdaptiveLimit] = {}
        self.flights: dict[str, Future[bool]] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Control":
        return self

    def manage(self, lm: Any) -> Any:
        """A copy of an LM under this control, of the same class to all appearances; None stays None."""
        if lm is None or isinstance(lm, Managed):
            return lm
        return managed_copy(lm, self)

    def manage_program(self, program: Any) -> Any:
        """The program's own models under this control."""
        for predictor in program.predictors():
            predictor.lm = self.manage(predictor.lm)
        return program

    def check_bounds(self, *lms: Any) -> None:
        """Raise `ConfigurationError` where a cap can't be kept, since what a call can cost isn't known."""
        caps = self.ledger.caps
        for lm in lms:
            if lm is None:
                continue
            if caps.usd is not None and price_of(lm, self.prices) is None:
                raise ConfigurationError(
                    f"max_cost_usd: the price of {lm.model} is not known. Give it (prices=, or --price "
                    f"{lm.model}=INPUT,OUTPUT in USD per million tokens)"
                )
            if (caps.usd is not None or caps.tokens is not None) and most_output_tokens(lm) is None:
                name = "max_tokens" if caps.tokens is not None else "max_cost_usd"
                raise ConfigurationError(
                    f"{name}: how long an answer of {lm.model} can be is not known. Give the LM max_tokens="
                )

    def most(self, lm: Any, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> Amount:
        """What one call can cost at most."""
        caps = self.ledger.caps
        choices = int(kwargs.get("n") or lm.kwargs.get("n") or 1)
        if caps.tokens is None and caps.usd is None:
            return Amount(choices, 0, 0.0)
        merged = {name: value for name, value in {**lm.kwargs, **kwargs}.items() if "api_" not in name}
        texts = [_text_of(item) for item in (messages or [prompt])]
        texts += [_text_of(value) for value in merged.values()]
        images = sum(text.count(mark) for text in texts for mark in _NO_TEXT)
        taken = (most_input_tokens(texts) + images * _MOST_OF_AN_IMAGE) * choices
        told = most_output_tokens(lm, kwargs)
        if told is None:
            raise ConfigurationError(
                f"how long an answer of {lm.model} can be is not known: {sorted(merged)}"
            )
        price = price_of(lm, self.prices)
        usd = price.of(taken, told * choices) if price is not None else 0.0
        return Amount(choices, taken + told * choices, usd)

    def reserve_unmanaged(self, lm: Any, inputs: dict[str, Any]) -> Callable[[], None]:
        """For models made inside programs and metrics, which no one could put under control.

        Raises:
            CapReached: the call could go over a cap. It can't wait until others have made room.
        """
        kwargs = inputs.get("kwargs") or {}
        try:
            most = self.most(lm, inputs.get("prompt"), inputs.get("messages"), kwargs)
        except ConfigurationError:
            most = Amount(1, 0, 0.0)
        reservation = self.ledger.try_reserve(most, wait=False)
        assert isinstance(reservation, Reservation)
        return reservation.give_back

    def limit_of(self, lm: Any) -> AdaptiveLimit:
        with self._lock:
            return self.limits.setdefault(str(lm.model), AdaptiveLimit(self.max_concurrency))

    def first_to_ask(self, key: str) -> "Future[bool] | None":
        """None for the first that asks a question, else what is done once the first has its answer."""
        with self._lock:
            if key in self.flights:
                return self.flights[key]
            self.flights[key] = Future()
            return None

    def answered(self, key: str, success: bool) -> None:
        """Tell who waits whether the first had an answer."""
        with self._lock:
            future = self.flights.pop(key)
        future.set_result(success)


def _text_of(value: Any) -> str:
    """What a provider is sent of a value, at most."""
    schema = getattr(value, "model_json_schema", None)
    if isinstance(value, type) and callable(schema):
        return 2 * json.dumps(schema(), default=str)  # strict mode adds to it
    return json.dumps(value, default=str, ensure_ascii=False)
