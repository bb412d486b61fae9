"""The history of an agent, from the journal and from MLflow."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agentcore._naming import now_ms, utc
from agentcore.registry._events import (
    AliasAdopted,
    DecisionEnded,
    DecisionMade,
    LookDebited,
    LookDecided,
    LookDropped,
    SetExposed,
)
from agentcore.registry._state import CHAMPION, PREVIOUS, STAGING, RegistryState


@dataclass(frozen=True)
class HistoryEntry:
    """One thing that happened.

    Attributes:
        at: UTC, ISO 8601.
        what: promote, rollback, refused, look (unfinished), exposed, adopted, or moved by hand.
        by: the user name; empty if unknown.
        version: that an alias moved to.
        run: the run's id as commands print it; `run_id` is MLflow's.
        evidence: sha256 of the gate's evidence.
        look: its id, whose examples `agentcore gate show` lists.
    """

    at: str
    what: str
    by: str
    text: str
    alias: str | None = None
    version: str | None = None
    semantic_version: str | None = None
    run_id: str | None = None
    run: str | None = None
    evidence: str | None = None
    look: str | None = None
    alpha: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def entries_of(state: RegistryState, found: Mapping[str, str]) -> list[HistoryEntry]:
    """The history, oldest first.

    Args:
        found: the aliases as MLflow has them.
    """
    entries = [entry for event in state.timeline if (entry := _entry(event, state)) is not None]
    for alias in (CHAMPION, STAGING, PREVIOUS):
        expected, now = state.alias(alias), found.get(alias)
        if expected != now and state.open_decision is None:
            entries.append(
                HistoryEntry(
                    _time(now_ms()),
                    "moved by hand",
                    "",
                    f"{alias} points to {_shown(now)}, but AgentCore set it to {_shown(expected)}",
                    alias,
                    now,
                )
            )
    return entries


def _entry(event: Any, state: RegistryState) -> HistoryEntry | None:
    at = _time(event.timestamp_ms)
    if isinstance(event, DecisionMade):
        return _decision(event, state, at)
    if isinstance(event, LookDecided) and event.verdict != "promote":
        debited = state.looks[event.look].debited
        failed = [item["text"] for item in event.shown if item["outcome"] != "passed"]
        return HistoryEntry(
            at,
            "refused",
            debited.by,
            f"{event.verdict}: {'; '.join(failed)}",
            run_id=debited.challenger,
            run=debited.run,
            evidence=event.evidence,
            look=event.look,
            alpha=debited.alpha,
        )
    if isinstance(event, LookDebited) and state.looks[event.look].open:
        return HistoryEntry(
            at,
            "look",
            event.by,
            f"a look at {event.examples} examples was paid for and is not finished: promote the same run "
            "again to finish it",
            run_id=event.challenger,
            run=event.run,
            look=event.look,
            alpha=event.alpha,
        )
    if isinstance(event, LookDropped):
        debited = state.looks[event.look].debited
        return HistoryEntry(
            at,
            "look",
            debited.by,
            event.reason,
            run_id=debited.challenger,
            run=debited.run,
            look=event.look,
            alpha=debited.alpha,
        )
    if isinstance(event, SetExposed):
        seen = state.looks[event.look].debited.examples if event.look in state.looks else len(event.members)
        text = f"{seen} sealed examples were seen ({event.how}): they are retired"
        return HistoryEntry(at, "exposed", event.by, text, look=event.look)
    if isinstance(event, AliasAdopted):
        text = (
            f"{event.alias} at {_shown(event.version)} was accepted (AgentCore had {_shown(event.expected)})"
        )
        if event.reason is not None:
            text = f"{event.alias} moved to {_shown(event.version)} {event.reason}"
        return HistoryEntry(at, "adopted", event.by, text, event.alias, event.version)
    return None


def _decision(event: DecisionMade, state: RegistryState, at: str) -> HistoryEntry:
    decision = state.decisions[event.decision]
    version, release = decision.version, event.release
    if release is None and version is not None and (made := state.release_of(version)) is not None:
        release = made.made.release
    ended: DecisionEnded | None = decision.ended
    text = f"{event.alias}: {_shown(event.previous)} → {_shown(version)}"
    if event.forced is not None:
        text += f", bypassing the gate: {event.forced}"
    elif event.look is not None:
        text += ", by the gate"
    if ended is None:
        text += " (not finished: the next call finishes it)"
    elif ended.outcome == "given_up":
        text += f" (given up: {ended.reason})"
    debited = state.looks[event.look].debited if event.look in state.looks else None
    return HistoryEntry(
        at,
        event.action,
        event.by,
        text,
        event.alias,
        version,
        release.semantic_version if release is not None else None,
        release.run_id if release is not None else None,
        release.run if release is not None else None,
        release.evidence if event.release is not None and release is not None else None,
        event.look,
        debited.alpha if debited is not None else None,
    )


def _time(milliseconds: int) -> str:
    return f"{utc(milliseconds):%Y-%m-%dT%H:%M:%SZ}"


def _shown(version: str | None) -> str:
    return "none" if version is None else f"version {version}"
