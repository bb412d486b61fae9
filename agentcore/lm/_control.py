"""State shared by all models of a run: caps, each model's rate limit, and the calls in flight."""

import json
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from agentcore._redaction import first_line
from agentcore.errors import ConfigurationError
from agentcore.lm._ledger import Amount, Ledger
from agentcore.lm._limit import AdaptiveLimit
from agentcore.lm._prices import Prices, max_answer_tokens, max_answers, max_prompt_tokens, price_of
from agentcore.lm._secrets import lm_secrets

if TYPE_CHECKING:
    import dspy

_NO_TEXT = ('"image_url"', '"input_audio"', '"file"', '"image"')
"""Message parts whose size in bytes is no upper bound for their tokens."""
_MOST_OF_AN_IMAGE = 20_000


class Control:
    """State shared by all LMs of a run.

    Args:
        ledger: the account and its caps.
        max_concurrency: maximum number of calls in flight per model.
        prices: user-supplied prices by model.
    """

    def __init__(self, ledger: Ledger, max_concurrency: int, prices: Prices) -> None:
        self.ledger = ledger
        self.max_concurrency = max_concurrency
        self.prices = prices
        self.limits: dict[str, AdaptiveLimit] = {}
        self.flights: dict[str, Future[bool]] = {}
        self.failures = 0
        """Number of attempts that failed, most of which were retried."""
        self.last_failure: str | None = None
        self.no_answers = 0
        """Number of answers that were none, such as empty ones."""
        self.escapes = 0
        """Number of calls outside of the run's context, which are on nobody's account."""
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Number of calls being made."""
        with self._lock:
            return sum(limit.in_flight for limit in self.limits.values())

    def failed(self, lm: "dspy.BaseLM", error: BaseException) -> None:
        """Note a failed attempt, for whoever watches the run."""
        self.failures += 1
        self.last_failure = first_line(error, 160, secrets=lm_secrets(lm))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Control":
        return self

    def check_bounds(self, *lms: Any) -> None:
        """Raise `ConfigurationError` if a cap can't be enforced because a call's maximum cost is unknown."""
        caps = self.ledger.caps
        for lm in lms:
            if lm is None:
                continue
            if caps.usd is not None and price_of(lm, self.prices) is None:
                raise ConfigurationError(unpriced(lm))
            if (caps.usd is not None or caps.tokens is not None) and max_answer_tokens(lm) is None:
                name = "max_tokens" if caps.tokens is not None else "max_cost_usd"
                raise ConfigurationError(
                    f"{name}: the maximum answer length of {lm.model} is unknown. Set max_tokens= on the LM "
                    "(--lm-arg max_tokens=…)"
                )

    def bound(self, lm: "dspy.BaseLM", prompt: Any, messages: Any, kwargs: dict[str, Any]) -> Amount:
        """Upper bound for the cost of one call."""
        caps = self.ledger.caps
        choices = max_answers(lm, kwargs)
        if caps.tokens is None and caps.usd is None:
            return Amount(choices, 0, 0.0)
        merged = {name: value for name, value in {**lm.kwargs, **kwargs}.items() if "api_" not in name}
        texts = [_text_of(item) for item in (messages or [prompt])]
        texts += [_text_of(value) for value in merged.values()]
        images = sum(text.count(mark) for text in texts for mark in _NO_TEXT)
        taken = (max_prompt_tokens(texts) + images * _MOST_OF_AN_IMAGE) * choices
        told = max_answer_tokens(lm, kwargs)
        if told is None:
            raise ConfigurationError(
                f"the maximum answer length of {lm.model} is unknown (settings: {sorted(merged)}). "
                "Set max_tokens= on the LM"
            )
        price = price_of(lm, self.prices)
        if price is None and caps.usd is not None:
            raise ConfigurationError(unpriced(lm))
        usd = price.of(taken, told * choices) if price is not None else 0.0
        return Amount(choices, taken + told * choices, usd)

    def escaped(self, lm: "dspy.BaseLM") -> None:
        """Note a call of one of the run's models that was made outside of the run's context.

        Raises:
            ConfigurationError: the run has caps, which such calls escape. The run fails with the same error.
        """
        if not self.ledger.caps:
            self.escapes += 1
            return
        error = ConfigurationError(
            f"the caps of this run can't be enforced: {lm.model} was called in a thread without the run's "
            "context. Start the program's threads with contextvars.copy_context().run, or with "
            "dspy.Parallel; put a call that has nothing to do with the run into agentcore.lm.outside_runs()"
        )
        self.ledger.refused = error
        raise error

    def check(self) -> None:
        """Raise the error of `escaped`, if a call has escaped."""
        if self.ledger.refused is not None:
            raise self.ledger.refused

    def limit_of(self, lm: "dspy.BaseLM") -> AdaptiveLimit:
        """The concurrency limit of a model, shared by its copies."""
        with self._lock:
            return self.limits.setdefault(str(lm.model), AdaptiveLimit(self.max_concurrency))

    def first_to_ask(self, key: str) -> "Future[bool] | None":
        """None for the first caller with this key; for others, a future that is done when the first ends."""
        with self._lock:
            if key in self.flights:
                return self.flights[key]
            self.flights[key] = Future()
            return None

    def answered(self, key: str, success: bool) -> None:
        """Resolve the future of `first_to_ask`: whether the first caller got an answer."""
        with self._lock:
            future = self.flights.pop(key)
        future.set_result(success)


def unpriced(lm: "dspy.BaseLM") -> str:
    return (
        f"max_cost_usd: the price of {lm.model} is unknown. Pass it as prices= or --price "
        f"{lm.model}=INPUT,OUTPUT, in USD per million tokens"
    )


def _text_of(value: Any) -> str:
    """An upper bound for the text sent to the provider for a value."""
    schema = getattr(value, "model_json_schema", None)
    if isinstance(value, type) and callable(schema):
        return 2 * json.dumps(schema(), default=str)  # strict mode makes the schema longer
    return json.dumps(value, default=str, ensure_ascii=False)
