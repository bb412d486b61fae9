"""One promotion: integrity, a look at sealed examples, the decision."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from agentcore._threads import run_in_thread
from agentcore.data import Dataset
from agentcore.dspy_optimization import Candidate
from agentcore.errors import ConfigurationError
from agentcore.registry._checks import GateCheck, GateContext, integrity
from agentcore.registry._criteria import Criterion, GateVerdict, judge, verdict_of
from agentcore.registry._criteria import Look as MeasuredLook
from agentcore.registry._events import (
    DecisionMade,
    LookDecided,
    LookDropped,
    Release,
    Side,
)
from agentcore.registry._fetch import load_release, new_files
from agentcore.registry._gate import LookPlan, debit, evidence_digest, interrupted_look, plan_look
from agentcore.registry._measure import Measurement
from agentcore.registry._models import source_of
from agentcore.registry._policy import GatePolicy
from agentcore.registry._promotion import Promotion
from agentcore.registry._release import (
    check_tags,
    current_versions,
    instructions,
    interface_digest,
    next_version,
    prompt_digest,
)
from agentcore.registry._state import CHAMPION, LookState
from agentcore.registry._steps import Steps
from agentcore.registry._store import Held

if TYPE_CHECKING:
    import dspy


class Promoting:
    """One call of `promote`, under the agent's lease."""

    max_concurrency = 8
    on_progress: Callable[[int, int], None] | None = None
    by = ""
    """Who decides."""

    def __init__(
        self,
        steps: Steps,
        held: Held,
        candidate: Candidate,
        policy: GatePolicy,
        alias: str,
        checks: Sequence[GateCheck],
        program: "dspy.Module" = None,
    ) -> None:
        self.steps = steps
        self.agent = steps.agent
        self.gateway = steps.gateway
        self.held = held
        self.candidate = candidate
        self.policy = policy
        self.alias = alias
        self.checks = checks
        self.program = program

    async def run(self, data: Dataset | None, force: str | None, *, dry_run: bool) -> Promotion:
        owner = self.candidate.run.data.tags.get("agent_name", self.agent)
        if owner != self.agent:
            raise ConfigurationError(
                f"run {self.candidate.short_id} is of the agent {owner!r}, not of {self.agent!r}: promote it "
                f"with agent {owner!r} (--agent {owner})"
            )
        files = await new_files(self.gateway, self.candidate)
        sound = integrity(self.candidate, self.policy)
        current = self.held.state.alias(self.alias)
        if current is not None and self._is(current):
            raise ConfigurationError(
                f"{self.agent}@{self.alias} is already this run's program (version {current})"
            )
        if any(item.outcome == "failed" for item in sound):
            return self._outcome("reject", sound)
        if self.alias != CHAMPION or force is not None:
            verdict: Literal["forced", "staged"] = "staged" if force is None else "forced"
            if dry_run:
                return self._outcome(verdict, sound, planned=True)
            await self.steps.own(self.held)
            return await self._promoted(sound, files, verdict, forced=force)
        champion, anchor = self._references()
        if not dry_run:
            await self.steps.own(self.held)
        planned = interrupted_look(
            self.held.state, self.candidate, champion, anchor, self.policy, data
        ) or plan_look(self.agent, self.held.state, self.candidate, self.policy, data)
        if isinstance(planned, Criterion):
            return self._outcome("inconclusive", [*sound, planned])
        if dry_run:
            paid = ("the look is already paid for: promoting the run goes on with it",)
            warnings = () if planned.look is None else paid
            return self._outcome("promote", sound, planned, planned=True, warnings=warnings)
        return await self._measured(sound, files, planned)

    def _outcome(
        self,
        verdict: GateVerdict | Literal["forced", "staged"],
        criteria: Sequence[Criterion],
        plan: LookPlan | None = None,
        **more: Any,
    ) -> Promotion:
        """What the call came to; `plan` is the look that was paid for, or in a dry run would be."""
        of_look: dict[str, Any] = {}
        if plan is not None:
            unpaid = plan.alpha if more.get("planned") and plan.look is None else 0.0
            of_look = {
                "examples": len(plan.examples),
                "alpha": plan.alpha,
                "looks_left": plan.left,
                "budget_left": max(0.0, self.policy.lifetime_alpha - self.held.state.spent - unpaid),
                "sealed_left": plan.unused,
            }
        return Promotion(
            agent=self.agent,
            run_id=self.candidate.run_id,
            run=self.candidate.short_id,
            verdict=verdict,
            criteria=tuple(criteria),
            **of_look,
            **more,
        )

    def _is(self, version: str) -> bool:
        release = self.held.state.release(version)
        return release is not None and release.run_id == self.candidate.run_id

    async def _measured(
        self, sound: Sequence[Criterion], files: Mapping[str, str], plan: LookPlan
    ) -> Promotion:
        """Pay for the look, measure, decide."""
        champion, anchor = self._references()
        first = self.held.state.alias(CHAMPION) is None
        programs: dict[Side, Any] = {
            "challenger": self.candidate.program,
            "champion": self._original() if first else await self._program_of(champion),
        }
        if anchor is not None:
            programs["anchor"] = await self._program_of(anchor)
        look = await self._paid(plan, champion, anchor)
        total, done = len(plan.examples) * len(programs), len(look.measured)

        def tell(event: Any) -> None:
            nonlocal done
            done += 1
            self.held.post([event])
            if self.on_progress is not None:
                self.on_progress(done, total)

        measurement = Measurement(
            programs,
            list(plan.examples),
            self.candidate.metric,
            self.policy,
            self.candidate.lm,
            look.debited.look,
            self.max_concurrency,
            list(look.measured),
            tell,
        )
        sides = await measurement.run()
        clusters = plan.examples.clusters
        measured = MeasuredLook(
            sides["challenger"],
            sides["champion"],
            sides.get("anchor"),
            None if clusters is None else tuple(clusters),
            look.debited.alpha,
            first=first,
        )
        own = await self._own_checks(measured)
        full = [*sound, *judge(measured, self.policy), *own]
        shown = [*sound, *judge(measured, self.policy, coarse=True), *own]
        verdict = verdict_of(full)
        content = [item.as_dict() for item in full]
        decided = LookDecided(
            look=look.debited.look,
            verdict=verdict,
            criteria=content,
            shown=[item.as_dict() for item in shown],
            evidence=evidence_digest(look.debited, content, verdict),
        )
        if verdict == "promote":
            return await self._promoted(full, files, "promote", decided, plan)
        await self.held.write(decided)
        evaluation = await self.steps.log_look(self.held, self.held.state.looks[decided.look])
        return self._outcome(verdict, shown, plan, look=decided.look, evaluation_run=evaluation)

    async def _own_checks(self, measured: MeasuredLook) -> list[Criterion]:
        context = GateContext(self.agent, self.candidate, measured, self.policy)
        return [await check(context) for check in self.checks]

    def _references(self) -> tuple[str, str | None]:
        """What the challenger is compared with: the champion, or its own run's original program before the
        first promotion; and the first champion if that is another."""
        current = self.held.state.alias(CHAMPION)
        if current is None:
            return self.candidate.run_id, None
        champions = self.held.state.champions()
        if not champions or self.held.state.release(current) is None:
            raise ConfigurationError(
                f"version {current} of {self.agent}, the champion, was not promoted by AgentCore, so there "
                "is nothing to compare with: promote with a reason as force= (--force)"
            )
        return current, None if champions[0] == current else champions[0]

    def _original(self) -> Any:
        if self.candidate.original is None:
            raise ConfigurationError(
                f"run {self.candidate.short_id} has no copy of its original program, with which the first "
                "challenger is compared: optimize again with this version of AgentCore, or promote it with "
                "a reason as force= (--force)"
            )
        return self.candidate.original

    async def _program_of(self, version: str) -> Any:
        release = self.held.state.release(version)
        if release is None:
            raise ConfigurationError(
                f"version {version} of {self.agent} was not promoted by AgentCore, so there is "
                "nothing to compare with: roll back to a version that was"
            )
        found = await self.gateway.call(lambda client: client.get_model_version(self.agent, version))
        check_tags(found, release)
        return await load_release(self.gateway, release, self.program)

    async def _paid(self, plan: LookPlan, champion: str, anchor: str | None) -> LookState:
        """The look, paid for: an interrupted one is not paid for twice."""
        found = self.held.state.open_look
        if found is not None:
            if plan.look == found.debited.look:
                return found
            await self.held.write(
                LookDropped(look=found.debited.look, reason="another look began before it was finished")
            )
        entry = debit(plan, self.candidate, champion, anchor, self.policy, self.by)
        await self.held.write(entry)
        return self.held.state.looks[entry.look]

    async def _promoted(
        self,
        criteria: Sequence[Criterion],
        files: Mapping[str, str],
        verdict: Literal["promote", "forced", "staged"],
        decided: LookDecided | None = None,
        plan: LookPlan | None = None,
        forced: str | None = None,
    ) -> Promotion:
        held, candidate = self.held, self.candidate
        decision = uuid.uuid4().hex
        earlier = [item.made.release for item in held.state.done() if item.made.release is not None]
        model_id = str(candidate.model_id)
        local = self.gateway.connection.local
        source = await self.gateway.call(lambda client: source_of(client, model_id, local=local))
        interface, prompt = await run_in_thread(
            lambda: (interface_digest(candidate.program), prompt_digest(candidate.program))
        )
        release = Release(
            agent=self.agent,
            run_id=candidate.run_id,
            run=candidate.short_id,
            model_id=model_id,
            source=source,
            files=dict(files),
            semantic_version=next_version(earlier, files, interface, prompt),
            verdict=verdict,
            evidence=decided.evidence if decided is not None else None,
            test_digest=plan.examples.digest if plan is not None else None,
            lm=candidate.lm.model,
            interface=interface,
            prompt=prompt,
            versions=await run_in_thread(current_versions),
            decision=decision,
        )
        made = DecisionMade(
            decision=decision,
            action="promote",
            alias=self.alias,
            release=release,
            previous=held.state.alias(self.alias),
            look=decided.look if decided is not None else None,
            forced=forced,
            by=self.by,
        )
        # In one commit, so that a verdict to promote always has its decision.
        await held.write(*([decided] if decided is not None else []), made)
        evaluation = None
        if decided is not None:
            evaluation = await self.steps.log_look(held, held.state.looks[decided.look])
        version = await self.steps.carry_out(
            held, held.state.decisions[decision], instructions(candidate.program)
        )
        return self._outcome(
            verdict,
            criteria,
            plan,
            promoted=True,
            alias=self.alias,
            version=version,
            semantic_version=release.semantic_version,
            previous=made.previous,
            look=made.look,
            evaluation_run=evaluation,
            deployment_run=held.state.decisions[decision].steps["deployment"].value,
        )
