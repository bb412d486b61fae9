"""Events as text and back."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

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
    """JSON whose texts hold none of `secrets`, and no lone surrogate, which a model may answer with."""
    hidden = [secret for secret in secrets if secret]
    if not hidden:
        try:
            return event.model_dump_json()
        except PydanticSerializationError:
            pass  # a surrogate
    plain = event.model_dump(mode="python")
    cleaned = {name: value if name == "kind" else _clean(value, hidden) for name, value in plain.items()}
    return json.dumps(cleaned, ensure_ascii=False, separators=(",", ":"), default=str)


def _clean(value: Any, hidden: list[str]) -> Any:
    """Texts only: a secret of digits must not be cut out of a number."""
    if isinstance(value, str):
        return replace_secrets(value, hidden).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_clean(key, hidden): _clean(item, hidden) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item, hidden) for item in value]
    return value


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
