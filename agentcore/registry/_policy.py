"""`GatePolicy`: what a program has to show before it may run in production."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agentcore.errors import ConfigurationError
from agentcore.evaluation import Figure
from agentcore.settings import explain, read_toml

POLICY_FILE = "gate.toml"
_TABLE = "[tool.agentcore.gate]"


class GatePolicy(BaseModel):
    """The criteria of the promotion gate; docs/gate.md explains the procedure.

    Read from `gate.toml`, else from `[tool.agentcore.gate]` of `pyproject.toml`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    figure: Literal["quality_score", "success_rate"] = "quality_score"
    """The figure in which the challenger must be better than the champion."""
    margin: float = Field(default=0.15, gt=0, le=1)
    """The true gain in this figure that a look must detect with probability `power`; it determines what the
    look costs. A gain that is proven to be smaller is a reason to reject."""
    power: float = Field(default=0.8, ge=0.5, lt=1)
    """Probability of detecting a true gain of `margin`."""
    lifetime_alpha: float = Field(default=0.05, gt=0, le=0.2)
    """The error budget, an upper bound on the probability of any false promotion over the agent's lifetime:
    the significance levels of all looks sum to at most this."""
    planned_looks: int = Field(default=20, ge=1, le=1000)
    """How many looks `lifetime_alpha` should last for: each uses enough sealed examples to cost about
    `lifetime_alpha / planned_looks`."""
    delta: dict[str, float] = Field(default_factory=lambda: {"avg_cost": 0.2, "avg_latency_ms": 0.2})
    """What must be ruled out: for `avg_cost` and `avg_latency_ms` an increase of this share, for a metric of
    `metrics` a loss of this much."""
    metrics: dict[str, str] = Field(default_factory=dict)
    """Further metrics by name, as `package.module:function`; each needs a `delta`."""
    slo: dict[Figure, float] = Field(default_factory=dict)
    """Bounds on the challenger's own figures: minimums for `quality_score` and `success_rate`, maximums for
    `avg_cost` (USD) and `avg_latency_ms`."""
    required_metrics: list[str] = Field(default_factory=list)
    """Metrics that the optimization's run must have in MLflow."""
    min_examples: int = Field(default=50, ge=6)
    """Minimum number of sealed examples for a look."""
    anchor_loss: float = Field(default=0.05, gt=0, le=1)
    """Loss against the first champion that must be ruled out: many small losses, each too small to prove,
    would otherwise add up."""
    repeats: int = Field(default=1, ge=1)
    """How often each program answers each example; the means are compared."""
    require_signature: bool = False
    """Whether the program must be signed with one of `AGENTCORE_TRUSTED_KEYS`."""

    @field_validator("delta")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        for name, share in value.items():
            if not 0 < share <= 10:
                raise ValueError(f"{name} = {share:g}: use a number above 0 and at most 10")
        return value

    def model_post_init(self, context: Any) -> None:
        """Check that `metrics` and `delta` fit together."""
        known = {"avg_cost", "avg_latency_ms", *self.metrics}
        unknown = sorted(self.delta.keys() - known)
        if unknown:
            raise ValueError(f"delta of {', '.join(unknown)}: use avg_cost, avg_latency_ms or one of metrics")
        without = sorted(self.metrics.keys() - self.delta.keys())
        if without:
            raise ValueError(f"metrics {', '.join(without)}: in delta, set the loss that must be ruled out")


def read_policy(source: "GatePolicy | Mapping[str, Any] | str | Path | None" = None) -> GatePolicy:
    """A policy, one from a dict, or from a TOML file; None looks for `gate.toml`, then `pyproject.toml`, in
    the working directory, and takes the defaults if neither has one.

    Raises:
        ConfigurationError: the file can't be read, or has an invalid value.
    """
    if isinstance(source, GatePolicy):
        return source
    if isinstance(source, Mapping):
        return _valid(source, "policy")
    if source is not None:
        return _parsed(Path(source))
    for name in (POLICY_FILE, "pyproject.toml"):
        if Path(name).is_file():
            return _parsed(Path(name))
    return GatePolicy()


def _parsed(path: Path) -> GatePolicy:
    content: Any = read_toml(path, f"gate policy {path}")
    if path.name != "pyproject.toml":
        return _valid(content, str(path))
    tables = content.get("tool", {}).get("agentcore", {})
    if not isinstance(tables, dict) or not isinstance(tables.get("gate", {}), dict):
        raise ConfigurationError(f"{path}: {_TABLE} must be a table")
    unknown = sorted(tables.keys() - {"gate"})
    if unknown:
        names = ", ".join(f"[tool.agentcore.{name}]" for name in unknown)
        raise ConfigurationError(f"{path}: {names} is unknown; there is only {_TABLE}")
    return _valid(tables.get("gate", {}), f"{path} {_TABLE}")


def _valid(content: Any, where: str) -> GatePolicy:
    try:
        return GatePolicy.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {explain(error, list(GatePolicy.model_fields))}") from None
