"""`agents.toml`: what requests may use. They name agents and data sets listed there, and nothing else."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agentcore.errors import ConfigurationError, NotFoundError
from agentcore.lm import given_lm
from agentcore.settings import explain, read_toml
from agentcore.tracking import check_agent

RESERVED = frozenset({"evaluations", "operations", "optimizations"})
"""Names that are parts of the API's paths."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Strict):
    """The most that one optimization may take, whatever a request says."""

    max_optimization_time: float = Field(default=7200, gt=0)
    """Seconds of the search."""
    max_lm_calls: int | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, gt=0)
    max_cost_usd: float | None = Field(default=None, gt=0)


class Traffic(_Strict):
    """Which share of the requests a second version answers."""

    challenger: str = "staging"
    """The alias of the second version."""
    share: float = Field(default=0.0, ge=0, le=1)
    """The challenger's share of the keys, 0–1."""


class AgentEntry(_Strict):
    """One agent: what it is made of, and what requests about it may use."""

    program: str | None = None
    """What is optimized: `package.module:object`, or a signature; None: built from the data's fields."""
    metric: str | None = None
    """`exact_match` or `package.module:function`."""
    lm: str | None = None
    """The language model: `provider/model`, or `package.module:object` for one with an address or arguments
    of its own; default: `AGENTCORE_LM`."""
    func: str | None = None
    """What is evaluated: `package.module:object`; default: the agent's champion."""
    datasets: list[str] = Field(default_factory=list)
    """Names of data sets, or patterns such as `loan_*`."""
    target_field: str | None = None
    """The field of the expected answer; default: the only one that is named like a label."""
    personal: list[str] = Field(default_factory=list)
    """Fields of requests and answers that are kept out of traces."""
    max_concurrency: int = Field(default=16, ge=1)
    """Calls of the program at once: predictions of one replica, and examples of one operation."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds for one prediction, waiting included."""
    limits: Limits = Limits()
    traffic: Traffic = Traffic()

    @field_validator("traffic")
    @classmethod
    def _no_champion(cls, value: Traffic) -> Traffic:
        if value.challenger == "champion":
            raise ValueError("challenger: name another alias than champion")
        return value

    def model(self) -> Any:
        """The language model, as everything that takes an `lm` accepts it.

        Raises:
            ConfigurationError: it can't be imported.
        """
        return given_lm(self.lm)

    def allows(self, dataset: str) -> bool:
        """Whether requests may use a data set (`name`, or `name/version`)."""
        name = dataset.partition("/")[0]
        return any(fnmatchcase(name, pattern) for pattern in self.datasets)


class Agents(_Strict):
    """The agents of the file, by name."""

    agents: dict[str, AgentEntry]

    @field_validator("agents")
    @classmethod
    def _usable(cls, value: dict[str, AgentEntry]) -> dict[str, AgentEntry]:
        if not value:
            raise ValueError("name at least one agent: [agents.my_agent]")
        for name in value:
            try:
                check_agent(name)
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
            if name in RESERVED:
                raise ValueError(f"an agent can't be named {name}, which is a part of the API's paths")
        return value

    def get(self, name: str) -> AgentEntry:
        """The entry of an agent.

        Raises:
            NotFoundError: there is none.
        """
        if name not in self.agents:
            raise NotFoundError(f"there is no agent {name!r} here; there are: {', '.join(self.agents)}")
        return self.agents[name]


def read_agents(source: str | Path | Mapping[str, Any] | Agents) -> Agents:
    """The agents of a TOML file, or of a mapping with the same content.

    Raises:
        ConfigurationError: the file can't be read, or has an invalid value.
    """
    if isinstance(source, Agents):
        return source
    if isinstance(source, Mapping):
        return _valid(source, "agents")
    path = Path(source)
    if not path.exists():
        raise ConfigurationError(
            f"there is no {path}, which says what requests may use. Write one (docs/api.md), or name another "
            "file with --agents (AGENTCORE_API_AGENTS)"
        )
    return _valid(read_toml(path, str(path)), str(path))


def _valid(content: Any, where: str) -> Agents:
    try:
        return Agents.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {explain(error, list(AgentEntry.model_fields))}") from None
