"""Arguments of the command line that are more than one word, read."""

import json
import re
from typing import Any

from agentcore.errors import ConfigurationError


def optimizer_settings(optimizers: list[str], auto: str, given: list[str]) -> dict[str, dict[str, Any]]:
    """`--auto` and `--set`, by optimizer; where there are several each setting names its own."""
    found: dict[str, dict[str, Any]] = {name: {} for name in optimizers}
    if "miprov2" in found:
        found["miprov2"]["auto"] = None if auto == "none" else auto
    for text in given:
        name, value = _setting(text)
        owner, _, own = name.rpartition(".")
        if not owner and len(optimizers) == 1:
            owner = optimizers[0]
        if owner not in found:
            raise ConfigurationError(
                f"--set {text!r}: write optimizer.name=value, for one of {', '.join(optimizers)}"
            )
        found[owner][own] = value
    return found


def prices_of(given: list[str] | None) -> dict[str, Any]:
    found = {}
    for text in given or []:
        model, _, pair = text.rpartition("=")
        values = pair.split(",")
        if not model or len(values) != 2:
            raise ConfigurationError(
                f"--price {text!r}: write model=input,output in USD per million tokens, such as "
                "openai/gpt-5-mini=0.25,2"
            )
        found[model] = tuple(values)
    return found


def objective_of(text: str) -> dict[str, Any]:
    name, separator, weight = text.partition(":")
    try:
        return {"metric": name, "weight": float(weight) if separator else 1.0}
    except ValueError:
        raise ConfigurationError(f"--objective {text!r}: the weight is no number") from None


def slug(program: str) -> str:
    return re.sub(r"\W+", "-", program).strip("-") or "program"


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise ConfigurationError(f"--set {text!r}: write name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, None if value == "None" else value
