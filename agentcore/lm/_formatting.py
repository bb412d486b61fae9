"""Prompts written once: a candidate's system message and demonstrations are the same for every example.

DSPy writes them anew for each call, which is about half of the CPU that a call takes.
"""

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import dspy

_KEPT = 512
"""Predictors of all candidates under way, twice over."""
_SCALARS = (str, int, float, bool, type(None))


class Remembering:
    """Mixed into an adapter's class by `remembering`."""

    plain: type
    _written: dict[Hashable, Any]

    def format_system_message(self, signature: Any) -> Any:
        write = super().format_system_message  # type: ignore[misc]
        return self._once((signature, signature.instructions), lambda: write(signature))

    def format_demos(self, signature: Any, demos: Sequence[Any]) -> Any:
        write, content = super().format_demos, _content(demos)  # type: ignore[misc]
        if content is None:
            return write(signature, demos)
        messages = self._once((signature, signature.instructions, content), lambda: write(signature, demos))
        return [dict(message) for message in messages]

    def _once(self, key: Hashable, write: Callable[[], Any]) -> Any:
        found = self._written.get(key)
        if found is None:
            if len(self._written) >= _KEPT:
                self._written.clear()
            found = self._written[key] = write()
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        return remembering, (_plain(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return remembering(copy.deepcopy(_plain(self), memo))


def remembering(adapter: Any = None) -> Any:
    """An adapter that writes the same once, of the same class to all appearances: DSPy's default for None,
    and others than DSPy's own as they are."""
    adapter = adapter or dspy.ChatAdapter()
    if type(adapter) not in _CLASSES:
        return adapter
    made = copy.copy(adapter)
    made.__class__ = _CLASSES[type(adapter)]
    made._written = {}
    return made


def _plain(adapter: Any) -> Any:
    plain = copy.copy(adapter.__dict__)
    plain.pop("_written")
    made = object.__new__(type(adapter).plain)
    made.__dict__.update(plain)
    return made


def _content(demos: Sequence[Any]) -> Hashable | None:
    """What demonstrations say, told apart by type too; None where a value is no scalar."""
    found: list[Hashable] = []
    for demo in demos:
        for name, value in demo.items():
            if not isinstance(value, _SCALARS):
                return None
            found.append((name, type(value), value))
        found.append(None)
    return tuple(found)


def _class(plain: type) -> type:
    made = type(plain.__name__, (Remembering, plain), {"plain": plain})
    # DSPy wraps them in callbacks for each new class: they would be told everything twice.
    made.format, made.parse = plain.format, plain.parse  # type: ignore[attr-defined]
    made.__module__, made.__qualname__ = plain.__module__, plain.__qualname__
    return made


_CLASSES = {plain: _class(plain) for plain in (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter)}
