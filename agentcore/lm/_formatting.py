"""Caches formatted prompts: a candidate's system message and demonstrations are the same for every example.

DSPy formats them again for each call, which takes about half of a call's CPU time.
"""

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import dspy

_MAX_KEPT = 512
"""Maximum number of cached texts: twice the predictors of all candidates in flight."""
_SCALARS = (str, int, float, bool, type(None))
_ADAPTERS = (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter)


def remembering(adapter: Any = None) -> Any:
    """A copy of one of DSPy's own adapters (the default for None) that caches formatted text. Other adapters
    are returned unchanged."""
    adapter = adapter or dspy.ChatAdapter()
    if type(adapter) not in _ADAPTERS or isinstance(vars(adapter).get("format_demos"), _Remembered):
        return adapter
    made = copy.copy(adapter)
    # Adapters call these two methods through `self`, so instance attributes override them.
    made.format_system_message = _SystemMessage(adapter)
    made.format_demos = _Demos(adapter)
    return made


class _Remembered:
    """Replaces an adapter's method with a cached version."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self._written: dict[Hashable, Any] = {}

    def once(self, key: Hashable, write: Callable[[], Any]) -> Any:
        found = self._written.get(key)
        if found is None:
            if len(self._written) >= _MAX_KEPT:
                self._written.clear()
            found = self._written[key] = write()
        return found

    def __reduce__(self) -> Any:
        return type(self), (self.adapter,)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Remembered":
        return type(self)(copy.deepcopy(self.adapter, memo))


class _SystemMessage(_Remembered):
    def __call__(self, signature: Any) -> Any:
        key = (signature, signature.instructions)
        return self.once(key, lambda: self.adapter.format_system_message(signature))


class _Demos(_Remembered):
    def __call__(self, signature: Any, demos: Sequence[Any]) -> Any:
        content = _content(demos)
        if content is None:
            return self.adapter.format_demos(signature, demos)
        key = (signature, signature.instructions, content)
        messages = self.once(key, lambda: self.adapter.format_demos(signature, demos))
        return [dict(message) for message in messages]


def _content(demos: Sequence[Any]) -> Hashable | None:
    """A hashable key for demonstrations, distinguishing values by type; None if a value is not a scalar."""
    found: list[Hashable] = []
    for demo in demos:
        for name, value in demo.items():
            if not isinstance(value, _SCALARS):
                return None
            found.append((name, type(value), value))
        found.append(None)
    return tuple(found)
