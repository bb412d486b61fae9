"""Carries out decisions: each step is idempotent and recorded, so that a crash between two loses nothing."""

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from agentcore.errors import AliasMovedError, ArtifactError, ConfigurationError
from agentcore.registry._events import DecisionEnded, DecisionMade, LookLogged, StepDone
from agentcore.registry._models import aliases, ensure_model, ensure_prompts, ensure_version
from agentcore.registry._release import version_tags
from agentcore.registry._state import CHAMPION, PREVIOUS, STAGING, DecisionState, LookState
from agentcore.registry._store import Held
from agentcore.tracking import Experiments, Rejected, StageRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

_logger = logging.getLogger("agentcore")

TARGETS: Mapping[str, str] = {CHAMPION: "production", STAGING: "staging"}


def key_of(identifier: str) -> str:
    """The key of the run that belongs to a look or a decision."""
    return uuid.uuid5(uuid.NAMESPACE_OID, identifier).hex


class Steps:
    """Moves aliases, makes versions and logs runs for one agent."""

    def __init__(self, experiments: Experiments) -> None:
        self.experiments = experiments
        self.agent = experiments.agent
        self.gateway = experiments.gateway

    async def carry_out(self, held: Held, decision: DecisionState, prompts: Mapping[str, str]) -> str:
        """Carry out the remaining steps of a decision; returns the version.

        Args:
            prompts: the instruction of each predictor, for the prompt registry; empty to leave it alone.

        Raises:
            AliasMovedError: the alias points to a version that AgentCore did not set; the decision is given
                up.
            TrackingError: MLflow can't be reached; the decision can be carried out later.
        """
        made = decision.made

        async def once(name: str, work: Callable[[], Awaitable[str]]) -> str:
            if name not in decision.steps:
                await held.write(StepDone(decision=made.decision, step=name, value=await work()))
            return decision.steps[name].value

        try:
            version = made.version
            if version is None:
                version = await once("version", lambda: self._version(held, made))
            if prompts:
                await once("prompts", lambda: self._prompts(made, prompts))
            await once(
                "alias", lambda: self.gateway.call(lambda client: _move(client, self.agent, made, version))
            )
        except (AliasMovedError, ConfigurationError, ArtifactError, Rejected) as error:
            # Repeating it would fail again, and nothing else could be decided meanwhile.
            await held.write(DecisionEnded(decision=made.decision, outcome="given_up", reason=str(error)))
            raise
        await once("deployment", lambda: self._deployment(held, made, version))
        await held.write(DecisionEnded(decision=made.decision, outcome="done"))
        return version

    async def own(self, held: Held) -> None:
        """Mark the agent's registered model as this journal's, so that no other journal begins a second
        history and a second ledger.

        Raises:
            ConfigurationError: it is another journal's.
        """
        token = held.state.token
        assert token is not None
        await self.gateway.call(lambda client: ensure_model(client, self.agent, token))

    async def _version(self, held: Held, made: DecisionMade) -> str:
        release = made.release
        assert release is not None

        tags = version_tags(release)
        return await self.gateway.call(lambda client: ensure_version(client, self.agent, release, tags))

    async def _prompts(self, made: DecisionMade, prompts: Mapping[str, str]) -> str:
        release = made.release
        assert release is not None
        try:
            found = await self.gateway.call(
                lambda client: ensure_prompts(
                    client, self.agent, prompts, made.decision, release.run_id, release.model_id
                )
            )
        except Rejected as error:
            _logger.warning(
                "the instructions of %s are not in MLflow's prompt registry: %s", self.agent, error
            )
            return ""  # the program holds them, too
        return ", ".join(f"{name}/{version}" for name, version in found.items())

    async def _deployment(self, held: Held, made: DecisionMade, version: str) -> str:
        """The deployment run; its id."""
        tracker, promoted = self.experiments.tracker("deployment"), held.state.release_of(version)
        if made.release is not None:
            promoted = held.state.decisions[made.decision]
        of_run = self.experiments.deployment_tags(
            version, TARGETS.get(made.alias), deployment_status="success"
        )
        name = self.experiments.deployment_run_name(made.timestamp_ms)
        tags = self.experiments.tags("deployment", **of_run)
        run_id = await tracker.start_run(run_name=name, tags=tags, key=key_of(made.decision))
        run = StageRun(run_id, tracker)
        await run.log_params(
            {
                "model_version": version,
                "promotion_target": TARGETS.get(made.alias),
                "evaluation_passed": promoted is not None and promoted.made.look is not None,
                "semantic_version": promoted.made.release.semantic_version
                if promoted is not None and promoted.made.release is not None
                else None,
                "previous_version": made.previous,
                "action": made.action,
                "decision": made.decision,
                "decided_by": made.by,
                "forced": made.forced,
            }
        )
        await tracker.end_run("FINISHED", run_id=run_id)
        return run_id

    async def log_look(self, held: Held, look: LookState, dataset: Any = None) -> str:
        """The evaluation run of a decided look; its id. Score figures are as they were shown."""
        decided, debited = look.decided, look.debited
        assert decided is not None
        if look.logged is not None:
            return look.logged.run_id
        shown = decided.criteria if decided.verdict == "promote" else decided.shown
        tracker = self.experiments.tracker("evaluation")
        tags = self.experiments.tags(
            "evaluation",
            dataset_type="evaluation",
            evaluation_type="pre_deploy_validation",
            deployment_candidate=True,
            gate_verdict=decided.verdict,
            evidence_sha256=decided.evidence,
            candidate_run_id=debited.challenger,
        )
        name = self.experiments.evaluation_run_name(debited.timestamp_ms)
        run_id = await tracker.start_run(run_name=name, tags=tags, key=key_of(debited.look))
        run = StageRun(run_id, tracker)
        await tracker.log_dataset(
            f"{self.agent}-gate", debited.test_digest, debited.examples, "evaluation", run_id=run_id
        )
        await run.log_params(
            {
                "candidate": debited.challenger,
                "champion": debited.champion,
                "anchor": debited.anchor,
                "alpha": debited.alpha,
                "examples": debited.examples,
                "test_digest": debited.test_digest,
            }
        )
        await run.log_metrics(
            {
                f"gate/{item['name'].replace(' ', '_')}/{name}": value
                for item in shown
                for name, value in item["figures"].items()
            }
        )
        await run.log_json("gate.json", {"verdict": decided.verdict, "criteria": shown})
        await tracker.end_run("FINISHED", run_id=run_id)
        await held.write(LookLogged(look=debited.look, run_id=run_id))
        return run_id


def _move(client: "MlflowClient", agent: str, made: DecisionMade, version: str) -> str:
    """Move the alias if it is where it should be; `previous` keeps the former champion."""
    found = aliases(client, agent)
    current = found.get(made.alias)
    if current not in (version, made.previous):
        raise _moved(agent, made.alias, current, made.previous)
    if made.alias == CHAMPION and made.previous not in (None, version, found.get(PREVIOUS)):
        client.set_registered_model_alias(agent, PREVIOUS, str(made.previous))
    if current != version:
        client.set_registered_model_alias(agent, made.alias, version)
        now = aliases(client, agent).get(made.alias)
        if now != version:
            raise _moved(agent, made.alias, now, version)
    return version


def _moved(agent: str, alias: str, current: str | None, expected: str | None) -> AliasMovedError:
    def shown(version: str | None) -> str:
        return "no version" if version is None else f"version {version}"

    return AliasMovedError(
        f"{agent}@{alias} points to {shown(current)}, but the journal says {shown(expected)}: somebody moved "
        f"it without AgentCore. See: agentcore history {agent}. To accept it: agentcore history {agent} "
        f"--adopt --alias {alias}"
    )


def check_alias(agent: str, alias: str, found: Mapping[str, str], expected: str | None) -> None:
    """Raise `AliasMovedError` if an alias is not where the journal says."""
    if found.get(alias) != expected:
        raise _moved(agent, alias, found.get(alias), expected)
