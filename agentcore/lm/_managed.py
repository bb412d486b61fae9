"""A language model under a run's control, of the same class to all appearances."""

import copy
from typing import TYPE_CHECKING, Any

from dspy.utils.callback import with_callbacks

from agentcore.lm._call import Call, asking
from agentcore.lm._meter import call_record

if TYPE_CHECKING:
    from agentcore.lm._control import Control


class Managed:
    """Mixed into an LM's class by `Control.manage`."""

    plain: type
    _control: "Control"

    @property
    def num_retries(self) -> int:
        """0 where DSPy would retry: retries are made here, after the limit was lowered."""
        return 0 if hasattr(self, "_engine_spec") else int(self.__dict__.get("num_retries", 0))

    @num_retries.setter
    def num_retries(self, value: int) -> None:
        self.__dict__["num_retries"] = value

    def dump_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().dump_state()  # type: ignore[misc]
        return {**state, "num_retries": self.__dict__.get("num_retries", 0)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._control.manage(copy.deepcopy(_plain(self), memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Another process gets the model without this run's control."""
        return _itself, (_plain(self),)

    def update_history(self, entry: dict[str, Any]) -> None:
        call = asking.get(None)
        if call is not None:
            call.record = call_record(entry)
        super().update_history(entry)  # type: ignore[misc]

    @with_callbacks  # type: ignore[untyped-decorator]
    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        inner = _bare(super().__call__)  # type: ignore[misc]
        return Call(self, prompt, messages, kwargs).run(
            lambda: inner(self, prompt, messages=messages, **kwargs)
        )

    @with_callbacks  # type: ignore[untyped-decorator]
    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        inner = _bare(super().acall)  # type: ignore[misc]
        return await Call(self, prompt, messages, kwargs).arun(
            lambda: inner(self, prompt, messages=messages, **kwargs)
        )


def _bare(method: Any) -> Any:
    """A method without its callbacks, which are called once for all attempts."""
    function = method.__func__
    return getattr(function, "__wrapped__", function)


_classes: dict[type, type] = {}


def _managed_class(plain: type) -> type:
    if plain not in _classes:
        made = type(plain.__name__, (Managed, plain), {"plain": plain})
        # What is saved of the LM names its class: the one that can be imported.
        made.__module__, made.__qualname__ = plain.__module__, plain.__qualname__
        _classes[plain] = made
    return _classes[plain]


def managed_copy(lm: Any, control: "Control") -> Any:
    managed = copy.copy(lm)
    managed.__class__ = _managed_class(type(lm))
    managed._control = control
    return managed


def unmanaged(program: Any) -> Any:
    """The program with its models as they were."""
    for predictor in program.predictors():
        if isinstance(predictor.lm, Managed):
            predictor.lm = _plain(predictor.lm)
    return program


def _plain(managed: Any) -> Any:
    plain = copy.copy(managed)
    plain.__class__ = type(managed).plain
    del plain._control
    return plain


def _itself(value: Any) -> Any:
    return value
