"""Token prices, and upper bounds on the number of tokens in a call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentcore._imports import import_litellm
from agentcore.errors import ConfigurationError

if TYPE_CHECKING:
    import dspy


@dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """USD of a call."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


Prices = Mapping[str, Price]


def parse_prices(prices: Mapping[str, Any]) -> dict[str, Price]:
    """Prices by model, from `Price`s, pairs (input, output) or `{"input": …, "output": …}`.

    Raises:
        ConfigurationError: a value has another form, or a price is negative.
    """
    found = {}
    for model, value in prices.items():
        try:
            if isinstance(value, Mapping):
                value = (value["input"], value["output"])
            if isinstance(value, str):
                raise TypeError
            price = value if isinstance(value, Price) else Price(*map(float, value))
        except (KeyError, TypeError, ValueError):
            raise ConfigurationError(
                f"price of {model}: give two numbers, USD per million input and output tokens, not {value!r}"
            ) from None
        if price.input < 0 or price.output < 0:
            raise ConfigurationError(f"price of {model}: must not be negative")
        found[model] = price
    return found


def price_of(lm: "dspy.BaseLM", prices: Prices) -> Price | None:
    """The user's price, else litellm's; None if neither exists."""
    model = str(lm.model)
    if model in prices:
        return prices[model]
    if model.startswith("offline/"):
        return Price(0.0, 0.0)  # runs locally, for free
    found = _listed(model)
    if found.get("input_cost_per_token") is None or found.get("output_cost_per_token") is None:
        return None
    return Price(1e6 * found["input_cost_per_token"], 1e6 * found["output_cost_per_token"])


_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def max_answers(lm: "dspy.BaseLM", asked: Mapping[str, Any] | None = None) -> int:
    """How many answers one call asks for."""
    return max(_asked_for(lm, asked, ("n",)), default=1)


def max_answer_tokens(lm: "dspy.BaseLM", asked: Mapping[str, Any] | None = None) -> int | None:
    """Maximum answer length in tokens, from the call and the LM, or else litellm's table; None if unknown.

    Of several settings the largest counts, since providers differ in which one they follow."""
    if found := _asked_for(lm, asked, _LENGTHS):
        return max(found)
    limit = _listed(str(lm.model)).get("max_output_tokens")
    return None if limit is None else int(limit)


def _asked_for(lm: "dspy.BaseLM", asked: Mapping[str, Any] | None, names: tuple[str, ...]) -> list[int]:
    """The values of these settings, from the LM as changed by the call, and from its `extra_body`."""
    settings = {**(getattr(lm, "kwargs", None) or {}), **(asked or {})}
    body = settings.get("extra_body")
    places = (settings, body) if isinstance(body, Mapping) else (settings,)
    return [int(place[name]) for place in places for name in names if place.get(name) is not None]


def max_prompt_tokens(texts: list[str]) -> int:
    """An upper bound: no tokenizer makes more tokens from a text than it has bytes."""
    return sum(len(text.encode("utf-8", "replace")) + _PER_MESSAGE for text in texts)


_PER_MESSAGE = 16
"""Tokens that a provider adds for a message's role."""


def _listed(model: str) -> dict[str, Any]:
    table: dict[str, dict[str, Any]] = import_litellm().model_cost
    return table.get(model) or table.get(model.partition("/")[2]) or {}
