"""The base class of events, the registry of their kinds, and their serialization.

The journal defines no kinds of events itself. Each package defines its own as subclasses of `Event`, in a
module listed under the entry-point group `agentcore.events`, so that a process that has not imported the
package can still find them."""

import json
import logging
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError

from agentcore._naming import now_ms
from agentcore._redaction import Redactor, encodable_value, first_line
from agentcore.errors import DamagedEventError, UnknownEventError

GROUP = "agentcore.events"

_logger = logging.getLogger("agentcore")

_kinds: "dict[str, type[Event]]" = {}


class Event(BaseModel):
    """The base of every event. A subclass with a `kind` is registered under it.

    `schema_version` changes when the meaning of a field does; `timestamp_ms` is set when an event is created.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deliverable: ClassVar[bool] = False
    """Whether events of this class are delivered to the run's destination."""

    schema_version: Literal[1] = 1
    timestamp_ms: int = Field(default_factory=now_ms)
    """Unix time in milliseconds."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        field = cls.model_fields.get("kind")
        if field is None:
            return
        registered = _kinds.setdefault(str(field.default), cls)
        if registered is not cls and registered.__qualname__ != cls.__qualname__:
            raise TypeError(f"event kind {field.default!r} is taken by {registered.__module__}")

    def payloads(self) -> list[str]:
        """sha256 of the payloads that the event refers to."""
        return []

    def finishes(self) -> bool | None:
        """True if the event ends its run, False if it reopens it, None if it does neither."""
        return None


class UnknownEvent(Event):
    """An event of a kind that this version doesn't know, for display only."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: Any = 1
    timestamp_ms: int = 0


EventSink = Callable[[Event], None]
"""Called in the event loop, in order; must not block."""


@cache
def _load_rooms() -> None:
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # noqa: BLE001 - another package's; its events stay unknown and are held
            _logger.warning("the events of %s can't be loaded: %s", entry.value, first_line(error))


def event_class(kind: str) -> type[Event] | None:
    """The class of a kind; None if this version doesn't know it."""
    if kind not in _kinds:
        _load_rooms()
    return _kinds.get(kind)


def kind_of(event: Event) -> str:
    return str(event.kind)  # type: ignore[attr-defined]  # every registered class has one


def kinds_of(of: type[Event]) -> list[str]:
    """The kinds of a class and its subclasses."""
    if "kind" not in of.model_fields:
        _load_rooms()
    return [kind for kind, found in _kinds.items() if issubclass(found, of)]


def encode(event: Event, redactor: Redactor | None = None) -> str:
    """The event as JSON, with secrets redacted and lone surrogates (a model may produce them) escaped."""
    if redactor is None or redactor.empty:
        try:
            return event.model_dump_json()
        except PydanticSerializationError:
            pass  # a surrogate
    plain = event.model_dump(mode="python")
    cleaned = plain
    if redactor is not None:  # field names and the kind aren't user text
        cleaned = {name: value if name == "kind" else redactor.value(value) for name, value in plain.items()}
    return json.dumps(encodable_value(cleaned), ensure_ascii=False, separators=(",", ":"), default=str)


def decode(kind: str, text: str) -> Event:
    """The event of a row.

    Raises:
        UnknownEventError: a newer version wrote it.
        DamagedEventError: it isn't JSON: the disk or the file is damaged.
    """
    try:
        json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise DamagedEventError(
            f"an entry of kind {kind!r} can't be read: its content is no longer valid JSON"
        ) from None
    found = event_class(kind)
    if found is not None:
        try:
            return found.model_validate_json(text)
        except ValidationError as error:
            (first, *_) = error.errors(include_input=False, include_url=False)
            reason = f"can't read this event of kind {kind!r} ({first['msg'][:120]})"
    else:
        reason = f"doesn't know events of kind {kind!r}"
    raise UnknownEventError(
        f"a newer agentcore wrote to this journal, and this version {reason}: upgrade agentcore"
    )


def decode_leniently(kind: str, text: str) -> Event:
    """The event of a row, for display: an `UnknownEvent` if this version doesn't know it."""
    try:
        return decode(kind, text)
    except DamagedEventError as error:
        return UnknownEvent.model_validate({"kind": "damaged", "was": kind, "reason": str(error)})
    except UnknownEventError:
        return UnknownEvent.model_validate({**json.loads(text), "kind": kind})
