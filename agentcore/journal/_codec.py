"""Events as text and back."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from agentcore.errors import JournalError, replace_secrets
from agentcore.journal import _events, _outbox
from agentcore.journal._events import Event

_KINDS: tuple[type[Event], ...] = tuple(
    value
    for module in (_events, _outbox)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Event) and "kind" in value.model_fields
)
_union: Any = _KINDS[0]
for _kind in _KINDS[1:]:
    _union = _union | _kind
_adapter: TypeAdapter[Event] = TypeAdapter(Annotated[_union, Field(discriminator="kind")])


def encode(event: Event, secrets: Iterable[str] = ()) -> str:
    """JSON without any of `secrets`, as they stand or as JSON escapes them."""
    text = event.model_dump_json()
    hidden = list(secrets)
    if not hidden:
        return text
    return replace_secrets(text, {*hidden, *map(_escaped, hidden)})


def _escaped(secret: str) -> str:
    return TypeAdapter(str).dump_json(secret).decode()[1:-1]


def decode(text: str) -> Event:
    """Raises `JournalError` where the text is of a kind or version that this AgentCore doesn't know."""
    try:
        return _adapter.validate_json(text)
    except ValidationError as error:
        (first, *_) = error.errors(include_input=False, include_url=False)
        raise JournalError(
            f"the journal holds an event that this version can't read ({first['msg'][:120]}): "
            "a newer AgentCore wrote it. Update this one"
        ) from None


def kind_of(event: Event) -> str:
    return str(event.kind)  # type: ignore[attr-defined]  # every leaf has one


def kinds(of: type[Event]) -> list[str]:
    return [str(item.model_fields["kind"].default) for item in _KINDS if issubclass(item, of)]
