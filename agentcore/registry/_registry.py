"""`Registry`: which version of an agent runs in production, why, and how to go back."""

import contextlib
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from agentcore._sync import SyncTwin, blocking
from agentcore._threads import run_in_thread
from agentcore.data import Dataset, load_dataset
from agentcore.dspy_optimization import Candidate, MLflowTracker, candidate_of, sealed_rows
from agentcore.errors import AgentCoreError, ArtifactError, ConfigurationError, TrackingError
from agentcore.evaluation import Metric, resolve_metric
from agentcore.registry._change import Change, compare_change
from agentcore.registry._checks import GateCheck, installed_checks
from agentcore.registry._events import (
    AliasAdopted,
    DecisionMade,
    LookDropped,
    Release,
    SetExposed,
)
from agentcore.registry._fetch import load_release
from agentcore.registry._gate import evidence_digest
from agentcore.registry._history import HistoryEntry, entries_of
from agentcore.registry._models import aliases, find_version
from agentcore.registry._policy import GatePolicy, read_policy
from agentcore.registry._promoting import Promoting
from agentcore.registry._promotion import Difference, Promotion, Rollback, Verification
from agentcore.registry._release import (
    check_tags,
    current_versions,
    instructions,
    recorded_release,
)
from agentcore.registry._state import CHAMPION, PREVIOUS, STAGING, RegistryState
from agentcore.registry._steps import TARGETS, Steps, check_alias
from agentcore.registry._store import Held, RegistryStore
from agentcore.settings import MLflowConfig, shown_uri
from agentcore.tracking import Experiments, model_names, user_name

if TYPE_CHECKING:
    import dspy
    from mlflow.entities import Run

Target = Literal["staging", "production"]
_ALIASES: Mapping[str, str] = {
    "staging": STAGING,
    "production": CHAMPION,
    # MLflow's former stages
    "Staging": STAGING,
    "Production": CHAMPION,
}
_PATIENCE = 60.0
_BACKLOG_SECONDS = 5.0
_logger = logging.getLogger("agentcore")


class Registry:
    """The versions of one agent: promotion through the gate, rollback, history and verification.

    Every decision is in the journal before it is carried out, and every alias is moved under a lease in the
    journal and read back. If a process dies in between, the next call finishes what it began.

    Args:
        agent: the name of the agent and of its registered model.
        config: the MLflow server; default: from the environment.
        experiments: where its runs go; default: `Experiments(agent, config)`.
        wait: seconds to wait while another process promotes or rolls back the same agent.
        max_concurrency: most LM calls in flight.
        on_progress: called with the number of answers measured and their total.
        program: an instance of the agent's program, for a class that can't be imported or needs arguments.
        by: whom the history names; default: the user's name.
    """

    def __init__(
        self,
        agent: str,
        config: MLflowConfig | None = None,
        *,
        experiments: Experiments | None = None,
        wait: float = _PATIENCE,
        max_concurrency: int = 8,
        on_progress: Callable[[int, int], None] | None = None,
        program: "dspy.Module" = None,
        by: str | None = None,
    ) -> None:
        self.config = config or MLflowConfig()
        self.experiments = experiments or Experiments(agent, self.config)
        self.agent = self.experiments.agent
        self.wait = wait
        self.max_concurrency = max_concurrency
        self.on_progress = on_progress
        self.program = program
        self.by = by or user_name()
        self.gateway = self.experiments.gateway
        self._store = RegistryStore(self.agent, self.config)
        self._steps = Steps(self.experiments)
        self._told: set[str] = set()

    def __repr__(self) -> str:
        return f"Registry({self.agent!r}, {shown_uri(self.config.tracking_uri)!r})"

    @cached_property
    def sync(self) -> "SyncRegistry":
        """The blocking version."""
        return SyncRegistry(self)

    # Promotion

    async def promote(
        self,
        run: str = "best",
        to: str = "production",
        *,
        policy: GatePolicy | Mapping[str, Any] | str | None = None,
        data: Any = None,
        metric: Metric | str | None = None,
        lm: "dspy.BaseLM | str | None" = None,
        checks: Sequence[GateCheck] = (),
        force: str | None = None,
        dry_run: bool = False,
    ) -> Promotion:
        """Move an alias to a run's optimized program if it passes the gate.

        For `production`, the program, the champion and the first champion answer sealed examples, and the
        gate decides by `policy`; see docs/gate.md. For `staging`, only the integrity of the run is checked.

        Args:
            run: an optimization's id, a prefix of it, or `best` for the best run of the agent's development
                experiment.
            to: production (alias `champion`) or staging; MLflow's stage names are accepted.
            policy: default: `gate.toml`, or the table in `pyproject.toml`.
            data: sealed examples from elsewhere, as `load_dataset` accepts; default: those that the run kept
                sealed.
            metric: default: the run's.
            lm: default: AGENTCORE_LM, then the run's.
            checks: further checks, in addition to those installed as entry points `agentcore.gates`.
            force: the reason for bypassing the gate, which is recorded. Integrity is still required.
            dry_run: only say what a look would cost.

        Raises:
            ConfigurationError: no such run, wrong settings, or another process is promoting or rolling back.
            ArtifactError: a file or a tag was changed after it was logged.
            AliasMovedError: somebody moved the alias without AgentCore.
            LMUnavailableError: the model failed too often; the look is paid for and can be resumed.
            TrackingError, JournalError: MLflow or the journal can't be reached.
        """
        alias = alias_of(to)
        rules = await run_in_thread(lambda: read_policy(policy))
        if force is not None and not force.strip():
            raise ConfigurationError("force= (--force) needs a reason: the history shows it")
        found = await self._run(run)
        tracker = MLflowTracker(self.experiments.stage_config("development"))
        candidate = await candidate_of(tracker, found, program=self.program, metric=metric, lm=lm)
        await run_in_thread(lambda: [resolve_metric(path) for path in rules.metrics.values()])
        sealed = None
        if data is not None:
            sealed = await run_in_thread(lambda: candidate.test_set(_loaded(data, candidate)))
        async with self._store.alone(self.wait) as held:
            if not dry_run:
                await self._finish(held)
            await self._check_alias(held.state, alias)
            job = Promoting(
                self._steps, held, candidate, rules, alias, [*installed_checks(), *checks], self.program
            )
            job.max_concurrency, job.on_progress = self.max_concurrency, self.on_progress
            job.by = self.by
            return await job.run(sealed, force, dry_run=dry_run)

    async def promote_version(
        self, version: str, to: str = "production", *, force: str | None = None, **options: Any
    ) -> Promotion | HistoryEntry:
        """Move an alias to a registered version.

        A version of an optimization goes through `promote`. Any other has nothing that the gate could
        examine: with `force` the alias is moved, and the history shows it as adopted.

        Args:
            version: a version's number, or an optimization's id.
            force: the reason for bypassing the gate.
            options: of `promote`.

        Raises:
            ConfigurationError: there is no such version, or it needs `force`.
        """
        if not version.isdigit():
            return await self.promote(version, to, force=force, **options)
        found = await self.gateway.call(lambda client: find_version(client, self.agent, version))
        run = None if not found.run_id else await self.gateway.get_run(found.run_id)
        if run is not None and "optimized_model" in model_names(run):
            return await self.promote(str(found.run_id), to, force=force, **options)
        if force is None or not force.strip():
            raise ConfigurationError(
                f"version {version} of {self.agent} was made by no optimization, so that the gate has "
                "nothing to examine: optimize it first (agentcore optimize … --agent "
                f"{self.agent}), or give a reason to go without (force=)"
            )
        alias = alias_of(to)
        told = AliasAdopted(
            alias=alias,
            version=version,
            expected=None,
            by=self.by,
            reason=f"without the gate: {force.strip()}",
        )

        def move(client: Any) -> None:
            client.set_model_version_tag(self.agent, version, "agentcore.forced", f"{told.by}: {told.reason}")
            client.set_registered_model_alias(self.agent, alias, version)

        async with self._store.alone(self.wait) as held:
            await self._finish(held)
            found_aliases = await self.gateway.call(lambda client: aliases(client, self.agent))
            if held.state.alias(alias) == version == found_aliases.get(alias):
                return entries_of(held.state, found_aliases)[-1]
            told = told.model_copy(update={"expected": found_aliases.get(alias)})
            await held.write(told)
            await self.gateway.call(move)
            return entries_of(held.state, {**found_aliases, alias: version})[-1]

    async def rollback(
        self, to: str | int | None = None, *, alias: str = CHAMPION, accept_changes: bool = False
    ) -> Rollback:
        """Move the alias `champion` back to a version that has been champion.

        Args:
            to: the version; default: the one before.
            accept_changes: go back even if DSPy, AgentCore or the adapter differs from when the version was
                promoted.

        Raises:
            ConfigurationError: there is no such version, or versions differ.
            ArtifactError: a file or a tag of the version was changed.
            AliasMovedError, TrackingError, JournalError: see `promote`.
        """
        async with self._store.alone(self.wait) as held:
            await self._finish(held)
            state = held.state
            current = await self._check_alias(state, alias)
            version = str(to) if to is not None else state.former_champion()
            if current is None or version is None:
                raise ConfigurationError(
                    f"{self.agent} has no earlier champion to go back to. See: agentcore history {self.agent}"
                )
            if version == current:
                raise ConfigurationError(f"{self.agent}@{alias} is already version {version}")
            if version not in state.champions():
                raise ConfigurationError(
                    f"version {version} of {self.agent} has never been champion: roll back to one of "
                    f"{', '.join(state.champions())}, or promote its run"
                )
            checked = await self._verified(state, version)
            if not checked.sound:
                raise ArtifactError(str(checked))
            if checked.notes and not accept_changes:
                raise ConfigurationError(
                    f"{checked}\nWhat was measured may no longer hold. To go back anyway: "
                    "accept_changes=True (--accept-changes)"
                )
            decision = uuid.uuid4().hex
            await held.write(
                DecisionMade(
                    decision=decision,
                    action="rollback",
                    alias=alias,
                    version=version,
                    previous=current,
                    by=self.by,
                )
            )
            await self._steps.carry_out(held, held.state.decisions[decision], {})
            done = held.state.decisions[decision]
            return Rollback(
                self.agent,
                alias,
                version,
                checked.semantic_version,
                current,
                done.steps["deployment"].value,
                tuple(f"{item.what}: {item.text}" for item in checked.notes),
            )

    async def resume(self) -> list[str]:
        """Finish what interrupted calls began; returns a line on each thing done.

        A look that was paid for and not fully measured is finished by the next `promote` of the same run.
        """
        async with self._store.alone(self.wait) as held:
            done = await self._finish(held)
            if (look := held.state.open_look) is not None:
                done.append(
                    f"a look at run {look.debited.run} is paid for and not finished: promote that run "
                    "again to finish it"
                )
            return done

    # Reading

    async def history(self) -> list[HistoryEntry]:
        """Who decided what, when, and on what evidence, oldest first; with aliases that somebody moved
        without AgentCore."""
        state = await self._store.state()
        found = await self.gateway.call(lambda client: aliases(client, self.agent))
        return entries_of(state, found)

    async def adopt(self, alias: str = CHAMPION) -> HistoryEntry:
        """Accept that somebody moved an alias without AgentCore; the history records who accepted it."""
        async with self._store.alone(self.wait) as held:
            found = await self.gateway.call(lambda client: aliases(client, self.agent))
            expected, now = held.state.alias(alias), found.get(alias)
            if alias not in (CHAMPION, STAGING, PREVIOUS):
                raise ConfigurationError(f"alias {alias!r}: use {CHAMPION}, {STAGING} or {PREVIOUS}")
            if expected == now:
                raise ConfigurationError(f"{self.agent}@{alias} is as the journal says: nothing to adopt")
            await held.write(AliasAdopted(alias=alias, version=now, expected=expected, by=self.by))
            return entries_of(held.state, found)[-1]

    async def verify(self, which: str | int = CHAMPION) -> Verification:
        """Recompute a version's digests, tags and evidence, and say what changed after its promotion.

        Args:
            which: a version or an alias.

        Raises:
            ConfigurationError: there is no such version.
        """
        state = await self._store.state()
        version = which = str(which)
        moved = None
        if not which.isdigit():
            found = await self.gateway.call(lambda client: aliases(client, self.agent))
            if which not in found:
                raise ConfigurationError(f"{self.agent} has no alias {which!r}. It has: {_named(found)}")
            version = found[which]
            moved = _moved_by_hand(self.agent, state, which, version)
        checked = await self._verified(state, version)
        if moved is None:
            return checked
        return replace(checked, notes=(*checked.notes, Difference("alias", moved)))

    async def reveal(self, look: str) -> list[dict[str, Any]]:
        """Every example of a look with each program's answer and score. That retires these examples: once
        somebody has seen them, they are no fair test of what that person changes.

        Args:
            look: its id, or the start of it.

        Raises:
            ConfigurationError: there is no such look.
        """
        async with self._store.alone(self.wait) as held:
            found = held.state.looks[self._look(held.state, look)]
            rows = await sealed_rows(
                MLflowTracker(self.experiments.stage_config("development")), found.debited.challenger
            )
            exposed = SetExposed(
                look=found.debited.look,
                members=found.debited.members,
                how="agentcore gate show",
                by=self.by,
            )
            dropped = LookDropped(
                look=found.debited.look, reason="its examples were seen before it was finished"
            )
            await held.write(exposed, *([dropped] if found.open else []))
            return [
                {
                    "side": item.side,
                    "example": rows.get(item.record["digest"]),
                    **item.record,
                    **({"extra": item.extra} if item.extra else {}),
                }
                for item in found.measured
            ]

    async def find_look(self, look: str) -> str:
        """The id of the look whose id starts like this.

        Raises:
            ConfigurationError: there is none, or several.
        """
        return self._look(await self._store.state(), look)

    def _look(self, state: RegistryState, look: str) -> str:
        ids = [name for name in state.looks if name.startswith(look)]
        if len(ids) != 1:
            raise ConfigurationError(
                f"{len(ids)} looks of {self.agent} start with {look!r}. Their ids: agentcore history "
                f"{self.agent} --json"
            )
        return ids[0]

    async def compare(
        self,
        program: "dspy.Module | str",
        data: Any,
        *,
        metric: Metric | str | None = None,
        lm: "dspy.BaseLM | str | None" = None,
        policy: GatePolicy | Mapping[str, Any] | str | None = None,
    ) -> Change:
        """Compare a changed program with the champion, in CI: nothing is promoted, no look is paid for.

        Args:
            program: a `dspy.Module` or `"package.module:object"`.
            data: labelled examples, as `load_dataset` accepts; they need not be sealed.
            lm: default: AGENTCORE_LM, then `dspy.settings.lm`.
            policy: see `promote`.

        Raises:
            ConfigurationError: there is no champion.
            ArtifactError, LMUnavailableError, TrackingError, JournalError: see `promote`.
        """
        rules = await run_in_thread(lambda: read_policy(policy))
        version, release = await self.current()
        champion = await load_release(self.gateway, release, self.program)
        return await compare_change(
            self.agent,
            version,
            champion,
            program,
            data,
            metric=metric,
            lm=lm,
            policy=rules,
            max_concurrency=self.max_concurrency,
        )

    async def current(self, which: str = CHAMPION) -> tuple[str, Release]:
        """The version behind an alias (or a version's number) and its release, as the version's tags record
        it, and as the journal does if it has it.

        Raises:
            ConfigurationError: there is no such alias or version.
            ArtifactError: the tags were changed.
        """
        found = await self.gateway.call(lambda client: find_version(client, self.agent, which))
        release, version = recorded_release(found), str(found.version)
        state = await self._store.state()
        if (journalled := state.release(version)) is not None:
            check_tags(found, journalled)
        elif state.done() and version not in state.adopted():
            raise ArtifactError(
                f"version {version} of {self.agent} was not promoted by AgentCore: the journal, which has "
                f"the agent's history, doesn't know it. See: agentcore history {self.agent}"
            )
        moved = _moved_by_hand(self.agent, state, which, version)
        if moved is not None and moved not in self._told:
            self._told.add(moved)
            _logger.warning("%s", moved)
        return version, release

    # How

    async def _run(self, wanted: str) -> "Run":
        tracker = MLflowTracker(self.experiments.stage_config("development"))
        if wanted == "best":
            best = await tracker.get_best_run()
            if best is None:
                raise ConfigurationError(
                    f"no run in {self.experiments.development!r} has a proven gain in quality: optimize "
                    f"with agent={self.agent!r}, or name a run. See: agentcore runs --agent {self.agent}"
                )
            return best
        try:
            return await tracker.find_run(wanted)
        except ConfigurationError:
            # It may be older than the agent's own experiments.
            with contextlib.suppress(ConfigurationError):
                return await MLflowTracker(self.config).find_run(wanted)
            raise

    async def _check_alias(self, state: RegistryState, alias: str) -> str | None:
        expected = state.alias(alias)
        found = await self.gateway.call(lambda client: aliases(client, self.agent))
        check_alias(self.agent, alias, found, expected)
        return expected

    async def _finish(self, held: Held) -> list[str]:
        """Carry out a decision that an interrupted call left, log looks that it did not log, and deliver what
        it logged."""
        with contextlib.suppress(TrackingError):  # then it stays in the journal
            await self.experiments.tracker("deployment").deliver_backlog(_BACKLOG_SECONDS)
        done = []
        while (decision := held.state.open_decision) is not None:
            made = decision.made
            action = "promotion" if made.action == "promote" else "rollback"
            prompts = await self._prompts_of(made.release) if made.release is not None else {}
            try:
                version = await self._steps.carry_out(held, decision, prompts)
            except AgentCoreError:
                if held.state.decisions[made.decision].ended is None:
                    raise
                done.append(f"gave up the {action} by {made.by}: somebody moved the alias {made.alias}")
                continue
            done.append(f"finished the {action}: {self.agent}@{made.alias} is version {version}")
        for look in list(held.state.looks.values()):
            if look.decided is not None and look.logged is None:
                await self._steps.log_look(held, look)
                done.append(f"logged the evaluation of run {look.debited.run}")
        return done

    async def _prompts_of(self, release: Release) -> dict[str, str]:
        try:
            return instructions(await load_release(self.gateway, release, self.program))
        except ArtifactError:
            return {}  # its class needs an instance; the prompts can be read from the artifact

    async def _verified(self, state: RegistryState, version: str) -> Verification:
        made = state.release_of(version)
        if made is None or made.made.release is None:
            raise ConfigurationError(
                f"the journal has no promotion of version {version} of {self.agent}: nothing to verify it "
                "against"
            )
        release, problems = made.made.release, []
        found = await self.gateway.call(lambda client: client.get_model_version(self.agent, version))
        try:
            check_tags(found, release)
        except ArtifactError as error:
            problems.append(Difference("tags", str(error)))
        try:
            await load_release(self.gateway, release, self.program)
        except ArtifactError as error:
            problems.append(Difference("program", str(error)))
        problems += self._evidence(state, made.made.look, release)
        now = await run_in_thread(current_versions)
        notes = [
            Difference(name, f"{was} when it was promoted, {now.get(name)} here")
            for name, was in release.versions.items()
            if now.get(name) != was
        ]
        return Verification(self.agent, version, release.semantic_version, tuple(problems), tuple(notes))

    def _evidence(self, state: RegistryState, look: str | None, release: Release) -> list[Difference]:
        """Whether the recorded evidence still has its digest."""
        if look is None:
            return []
        found = state.looks.get(look)
        if found is None or found.decided is None:
            return [Difference("evidence", f"the journal no longer has the look {look[:8]}")]
        decided = found.decided
        if evidence_digest(found.debited, decided.criteria, decided.verdict) != release.evidence:
            return [Difference("evidence", "the journal's evidence was changed after the promotion")]
        return []


def _loaded(data: Any, candidate: Candidate) -> Dataset:
    splits = candidate.splits
    if isinstance(data, Dataset):
        return data
    return load_dataset(data, input_fields=list(splits.test.input_fields), cluster=splits.test.cluster_field)


def _moved_by_hand(agent: str, state: RegistryState, alias: str, version: str) -> str | None:
    """That an alias points elsewhere than the journal says; None if it doesn't, or nothing is known of it."""
    expected = state.alias(alias)
    if alias.isdigit() or expected in (None, version) or state.open_decision is not None:
        return None
    return (
        f"{agent}@{alias} points to version {version}, but AgentCore set it to version {expected}: somebody "
        f"moved it. See: agentcore history {agent}"
    )


def alias_of(target: str) -> str:
    """The alias of a target or a former stage.

    Raises:
        ConfigurationError: there is no such target.
    """
    if target not in _ALIASES:
        advice = (
            " Archived versions keep no alias: roll back, or promote another" if target == "Archived" else ""
        )
        raise ConfigurationError(f"to={target!r}: use {' or '.join(TARGETS.values())}.{advice}")
    return _ALIASES[target]


def _named(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} (version {version})" for name, version in sorted(found.items())) or "none"


class SyncRegistry(SyncTwin):
    """`Registry`, blocking."""

    promote = blocking(Registry.promote)
    promote_version = blocking(Registry.promote_version)  # type: ignore[arg-type]  # mypy and **options
    rollback = blocking(Registry.rollback)
    resume = blocking(Registry.resume)
    history = blocking(Registry.history)
    adopt = blocking(Registry.adopt)
    verify = blocking(Registry.verify)
    compare = blocking(Registry.compare)
    current = blocking(Registry.current)
    reveal = blocking(Registry.reveal)
    find_look = blocking(Registry.find_look)
