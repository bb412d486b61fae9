"""An agent's gate and registry, rebuilt from the journal."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agentcore.journal import Entry, Event
from agentcore.registry._events import (
    AliasAdopted,
    DecisionEnded,
    DecisionMade,
    LookDebited,
    LookDecided,
    LookDropped,
    LookLogged,
    LookMeasured,
    RegistryOpened,
    Release,
    SetExposed,
    StepDone,
)


@dataclass
class LookState:
    """One look at a sealed set."""

    debited: LookDebited
    measured: list[LookMeasured] = field(default_factory=list)
    decided: LookDecided | None = None
    dropped: LookDropped | None = None
    logged: LookLogged | None = None

    @property
    def open(self) -> bool:
        return self.decided is None and self.dropped is None


@dataclass
class DecisionState:
    """One move of an alias."""

    made: DecisionMade
    steps: dict[str, StepDone] = field(default_factory=dict)
    ended: DecisionEnded | None = None

    @property
    def version(self) -> str | None:
        """The version that the alias moves to, once it is known."""
        if self.made.version is not None:
            return self.made.version
        return self.steps["version"].value if "version" in self.steps else None


@dataclass
class RegistryState:
    """All of an agent's stream.

    Attributes:
        timeline: the events that people want to see, in order.
    """

    token: str | None = None
    looks: dict[str, LookState] = field(default_factory=dict)
    decisions: dict[str, DecisionState] = field(default_factory=dict)
    exposed: list[SetExposed] = field(default_factory=list)
    timeline: list[Event] = field(default_factory=list)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "RegistryState":
        state = cls()
        for entry in entries:
            state.add(entry.event)
        return state

    def add(self, event: Event) -> None:
        if isinstance(event, RegistryOpened):
            self.token = event.token
        elif isinstance(event, LookDebited):
            self.looks[event.look] = LookState(event)
        elif isinstance(event, LookMeasured):
            self.looks[event.look].measured.append(event)
            return
        elif isinstance(event, LookDecided):
            self.looks[event.look].decided = event
        elif isinstance(event, LookLogged):
            self.looks[event.look].logged = event
            return
        elif isinstance(event, LookDropped):
            self.looks[event.look].dropped = event
        elif isinstance(event, SetExposed):
            self.exposed.append(event)
        elif isinstance(event, DecisionMade):
            self.decisions[event.decision] = DecisionState(event)
        elif isinstance(event, StepDone):
            self.decisions[event.decision].steps[event.step] = event
            return
        elif isinstance(event, DecisionEnded):
            self.decisions[event.decision].ended = event
        self.timeline.append(event)

    @property
    def spent(self) -> float:
        """The sum of the significance levels of all looks."""
        return sum(look.debited.alpha for look in self.looks.values())

    @property
    def open_look(self) -> LookState | None:
        """A look that was paid for and not decided."""
        return next((look for look in self.looks.values() if look.open), None)

    @property
    def open_decision(self) -> DecisionState | None:
        """A decision whose steps are not all done."""
        return next((item for item in self.decisions.values() if item.ended is None), None)

    def done(self) -> list[DecisionState]:
        """The decisions that were carried out, oldest first."""
        return [
            item
            for item in self.decisions.values()
            if item.ended is not None and item.ended.outcome == "done"
        ]

    def alias(self, name: str) -> str | None:
        """The version that an alias should point to."""
        found: str | None = None
        for event in self.timeline:
            if isinstance(event, AliasAdopted) and event.alias == name:
                found = event.version
            elif isinstance(event, DecisionEnded) and event.outcome == "done":
                decision = self.decisions[event.decision]
                if decision.made.alias == name:
                    found = decision.version
                elif name == PREVIOUS and decision.made.alias == CHAMPION:
                    found = decision.made.previous or found
        return found

    def release_of(self, version: str) -> DecisionState | None:
        """The promotion that made a version."""
        return next(
            (item for item in self.done() if item.made.release is not None and item.version == version),
            None,
        )

    def release(self, version: str) -> Release | None:
        """What was recorded when a version was promoted."""
        made = self.release_of(version)
        return None if made is None else made.made.release

    def champions(self) -> list[str]:
        """Every version that has been champion, in the order of their promotion."""
        return list(
            dict.fromkeys(
                item.version for item in self.done() if item.made.alias == CHAMPION and item.version
            )
        )

    def adopted(self) -> set[str]:
        """The versions that somebody accepted without a promotion."""
        return {event.version for event in self.timeline if isinstance(event, AliasAdopted) and event.version}

    def former_champion(self) -> str | None:
        """The champion before the current one."""
        held = [
            version for event in self.timeline if (version := _champion_by(event, self.decisions)) is not None
        ]
        current = self.alias(CHAMPION)
        return next((version for version in reversed(held) if version != current), None)

    def retired(self) -> dict[str, str]:
        """The keys of sealed examples that may not be used again, and why."""
        found: dict[str, str] = {}
        for look in self.looks.values():
            if look.decided is not None and look.decided.verdict == "promote":
                found |= dict.fromkeys(look.debited.members, "a promotion was decided on them")
        for event in self.exposed:
            found |= dict.fromkeys(event.members, f"{event.by} has seen them ({event.how})")
        return found


def _champion_by(event: Event, decisions: Mapping[str, DecisionState]) -> str | None:
    """The version that an event made champion."""
    if isinstance(event, AliasAdopted):
        return event.version if event.alias == CHAMPION else None
    if isinstance(event, DecisionEnded) and event.outcome == "done":
        decision = decisions[event.decision]
        return decision.version if decision.made.alias == CHAMPION else None
    return None


CHAMPION, PREVIOUS, STAGING = "champion", "previous", "staging"
