"""What the journal records of an agent's gate and registry. None of it is delivered to MLflow."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentcore.journal import Event

STREAM_KIND = "registry"
Action = Literal["promote", "rollback"]
Side = Literal["challenger", "champion", "anchor"]


class RegistryOpened(Event):
    """The first event of an agent's stream."""

    kind: Literal["registry_opened"] = "registry_opened"
    agent: str
    token: str
    """Also a tag of the registered model, so that a second journal for the same agent is noticed."""


class LookDebited(Event):
    """A look at sealed examples is paid for; nothing has been measured yet."""

    kind: Literal["look_debited"] = "look_debited"
    look: str
    challenger: str
    """The MLflow id of the challenger's run."""
    run: str
    """Its id as commands print it."""
    files: dict[str, str]
    """sha256 of the challenger's files."""
    champion: str
    """The champion's version, or the challenger's run before the first promotion."""
    anchor: str | None
    test_digest: str
    members: list[str]
    """Keys of the examples, and of their clusters."""
    examples: int
    alpha: float
    metric: str
    lm: str
    broken: float
    """Expected share of examples that get worse."""
    policy: dict[str, Any]
    by: str


class LookMeasured(Event):
    """One program's answer to one example of a look, so that an interrupted look is not paid for twice."""

    kind: Literal["look_measured"] = "look_measured"
    look: str
    side: Side
    record: dict[str, Any]
    extra: dict[str, float | None] = Field(default_factory=dict)


class LookDecided(Event):
    """The gate's decision."""

    kind: Literal["look_decided"] = "look_decided"
    look: str
    verdict: Literal["promote", "reject", "inconclusive"]
    criteria: list[dict[str, Any]]
    shown: list[dict[str, Any]]
    """The criteria as a refusal shows them, with rounded score figures."""
    evidence: str
    """sha256 of the evidence."""


class LookLogged(Event):
    """The decision is in an evaluation run."""

    kind: Literal["look_logged"] = "look_logged"
    look: str
    run_id: str


class LookDropped(Event):
    """An interrupted look that nobody will finish. Its price is not refunded."""

    kind: Literal["look_dropped"] = "look_dropped"
    look: str
    reason: str


class SetExposed(Event):
    """Somebody saw individual examples of a sealed set, which retires them."""

    kind: Literal["set_exposed"] = "set_exposed"
    look: str | None
    members: list[str]
    how: str
    by: str


class Release(BaseModel):
    """What a version consists of, recorded when it was promoted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str
    run_id: str
    run: str
    """The run's id as commands print it."""
    model_id: str
    source: str
    """Of the version in MLflow: the LoggedModel, or where its files are."""
    artifact: str = "optimized_model"
    files: dict[str, str]
    """sha256 of the program's files by name."""
    semantic_version: str
    verdict: str
    """promote (by the gate), forced, or staged."""
    evidence: str | None = None
    """sha256 of the gate's evidence."""
    test_digest: str | None = None
    lm: str | None = None
    interface: str
    """Digest of the predictors' fields and types."""
    prompt: str
    """Digest of the instructions and demonstrations."""
    versions: dict[str, str] = Field(default_factory=dict)
    decision: str


class DecisionMade(Event):
    """An alias is about to move. The steps that follow can be repeated."""

    kind: Literal["decision_made"] = "decision_made"
    decision: str
    action: Action
    alias: str
    release: Release | None = None
    """Of a promotion."""
    version: str | None = None
    """The version to go back to, of a rollback."""
    previous: str | None
    """The version that the alias pointed to."""
    look: str | None = None
    forced: str | None = None
    """Why the gate was bypassed."""
    by: str


class StepDone(Event):
    """One step of a decision is done."""

    kind: Literal["step_done"] = "step_done"
    decision: str
    step: str
    value: str = ""


class DecisionEnded(Event):
    """All steps are done, or the decision was given up."""

    kind: Literal["decision_ended"] = "decision_ended"
    decision: str
    outcome: Literal["done", "given_up"]
    reason: str = ""


class AliasAdopted(Event):
    """Somebody moved an alias without AgentCore, and somebody accepted that."""

    kind: Literal["alias_adopted"] = "alias_adopted"
    alias: str
    version: str | None
    expected: str | None
    by: str
    reason: str | None = None
    """Why AgentCore itself moved it without the gate; None if it was moved by hand."""
