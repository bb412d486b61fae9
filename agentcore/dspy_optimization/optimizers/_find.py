"""Optimizers by name."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from agentcore.dspy_optimization.optimizers._base import Optimizer
from agentcore.errors import ConfigurationError
from agentcore.settings import explain

GROUP = "agentcore.optimizers"


def available_optimizers() -> list[str]:
    return sorted(entry_points(group=GROUP).names)


def make_optimizer(name: str, settings: Mapping[str, Any] | None = None) -> Optimizer:
    """The optimizer called `name`, with its settings.

    Raises:
        ConfigurationError: no such optimizer, or settings that it doesn't take.
    """
    found = entry_points(group=GROUP, name=name)
    if not found:
        raise ConfigurationError(f"no optimizer {name!r}: there is {', '.join(available_optimizers())}")
    try:
        optimizer: Optimizer = next(iter(found)).load()(**(settings or {}))
    except ValidationError as error:
        raise ConfigurationError(f"optimizer {name}: {explain(error)}") from None
    except TypeError as error:
        raise ConfigurationError(f"optimizer {name}: {error}") from None
    return optimizer
