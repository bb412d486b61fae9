"""`ManagedLM`: a user's model under a run's control, by delegation."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, SupportsIndex

import dspy
from dspy.clients import _deprecation
from dspy.utils.callback import with_callbacks

from agentcore._threads import run_in_thread, run_to_its_end
from agentcore.lm._call import Call, TaskWaiting, ThreadWaiting, run_in_one_step
from agentcore.lm._control import Control
from agentcore.lm._resolve import completed

_OWN = frozenset({"_control", "_model", "_retries"})


class ManagedLM(dspy.BaseLM):
    """Wraps a user's model, applying a run's caps and limits; everything else is delegated to the model.

    The model is a copy of the user's and may be any `dspy.BaseLM`. If DSPy would retry its calls, they are
    retried here instead, after the rate limit has been lowered.
    """

    def __init__(self, control: Control, lm: dspy.BaseLM) -> None:
        # Doesn't call `BaseLM.__init__`: its attributes are read from the model, see `__getattr__`.
        self._control = control
        self._model = completed(copy.copy(lm))
        self._retries = 0
        if _retried_by_dspy(lm):
            self._retries = int(getattr(lm, "num_retries", 0) or 0)
            self._model.num_retries = 0

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # while an instance is being copied
            raise AttributeError(name)
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN or name == "num_retries":
            object.__setattr__(self, name, value)
        else:
            setattr(self._model, name, value)

    @property
    def num_retries(self) -> int:
        return self._retries if _retried_by_dspy(self._model) else int(self._model.num_retries)

    @num_retries.setter
    def num_retries(self, value: int) -> None:
        if _retried_by_dspy(self._model):
            self._retries = value
        else:
            self._model.num_retries = value

    def plain(self) -> dspy.BaseLM:
        """A copy of the model without this run's control."""
        model = copy.copy(self._model)
        if _retried_by_dspy(model):
            model.num_retries = self._retries
        return model

    # Defined by BaseLM, so `__getattr__` doesn't apply, but the model may override them

    @property
    def supports_function_calling(self) -> bool:
        return bool(self._model.supports_function_calling)

    @property
    def supports_reasoning(self) -> bool:
        return bool(self._model.supports_reasoning)

    @property
    def supports_response_schema(self) -> bool:
        return bool(self._model.supports_response_schema)

    @property
    def supports_decision_requests(self) -> bool:
        return bool(self._model.supports_decision_requests)

    @property
    def supported_params(self) -> set[str]:
        return set(self._model.supported_params)

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return self._model.forward(prompt=prompt, messages=messages, **kwargs)

    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return await self._model.aforward(prompt=prompt, messages=messages, **kwargs)

    def update_history(self, entry: dict[str, Any]) -> None:
        self._model.update_history(entry)

    def inspect_history(self, *args: Any, **kwargs: Any) -> None:
        self._model.inspect_history(*args, **kwargs)

    def dump_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.plain().dump_state()
        return state

    def copy(self, **kwargs: Any) -> "ManagedLM":
        return ManagedLM(self._control, self.plain().copy(**kwargs))

    def __copy__(self) -> "ManagedLM":
        return ManagedLM(self._control, self.plain())

    def __deepcopy__(self, memo: dict[int, Any]) -> "ManagedLM":
        return ManagedLM(self._control, copy.deepcopy(self.plain(), memo))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickle the model without this run's control."""
        return _itself, (self.plain(),)

    # Calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (_told_call if _is_told(_kind(self._model), "__call__") else _call)(self, *args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        method = "__call__" if _only_synchronous(self._model) else "acall"
        told = _is_told(_kind(self._model), method)
        return await (_told_acall if told else _acall)(self, *args, **kwargs)

    def _prepared(self, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> Call:
        cached = _retried_by_dspy(self._model) and getattr(self._model, "_cache_responses", True)
        return Call(self._control, self._model, self._retries, cached, prompt, messages, kwargs)


@contextmanager
def uncached() -> Iterator[None]:
    """Within the block, managed models neither read nor fill DSPy's cache."""
    with dspy.context(agentcore_uncached=True):
        yield


def _fresh(self: ManagedLM, kwargs: dict[str, Any]) -> dict[str, Any]:
    if dspy.settings.get("agentcore_uncached") and _retried_by_dspy(self._model):
        return {**kwargs, "cache": False}
    return kwargs


def _call(self: ManagedLM, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
    kwargs = _fresh(self, kwargs)
    asynchronous = _overrides_only(_kind(self._model), _ASYNCHRONOUS)
    ask = _bare(_kind(self._model), "acall" if asynchronous else "__call__")

    def answer() -> Any:
        return ask(self._model, *_positional(prompt), **_with(messages, kwargs))

    with _adapters_messages(self, messages):
        waiting = ThreadWaiting((lambda: run_to_its_end(answer)) if asynchronous else answer)
        return run_in_one_step(self._prepared(prompt, messages, kwargs).run(waiting))


async def _acall(self: ManagedLM, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
    kwargs = _fresh(self, kwargs)
    synchronous = _only_synchronous(self._model)
    ask = _bare(_kind(self._model), "__call__" if synchronous else "acall")

    def answer() -> Any:
        return ask(self._model, *_positional(prompt), **_with(messages, kwargs))

    with _adapters_messages(self, messages):
        # Only the question goes to a thread: a task that waits for its turn can be cancelled.
        waiting = TaskWaiting((lambda: run_in_thread(answer)) if synchronous else answer)
        return await self._prepared(prompt, messages, kwargs).run(waiting)


# DSPy picks the callback handler by the function's name.
_call.__name__, _acall.__name__ = "__call__", "acall"
_told_call, _told_acall = with_callbacks(_call), with_callbacks(_acall)


def _positional(prompt: Any) -> tuple[Any, ...]:
    return () if prompt is None else (prompt,)


def _with(messages: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs if messages is None else {"messages": messages, **kwargs}


def _adapters_messages(managed: ManagedLM, messages: Any) -> Any:
    """DSPy warns about messages that don't come from an adapter, and recognizes an adapter's call by its
    model. Remove once DSPy drops this warning, in 3.5."""
    origin = _deprecation._adapter_call.get()
    written = origin is not None and origin[0] is managed and origin[1] is messages
    return _deprecation.adapter_message_call(managed._model if written else None, messages)


def _kind(lm: dspy.BaseLM) -> Any:
    return type(lm)


@cache
def _is_told(kind: Any, method: str) -> bool:
    """Whether DSPy's callbacks are notified around the method. If so, they are notified once for all attempts
    instead. Other decorators of the user's are part of the model."""
    code = getattr(getattr(kind, method), "__code__", None)
    return code is not None and code.co_filename == with_callbacks.__code__.co_filename


@cache
def _bare(kind: Any, method: str) -> Any:
    """A method without DSPy's callbacks."""
    function = getattr(kind, method)
    return function.__wrapped__ if _is_told(kind, method) else function


def _retried_by_dspy(lm: dspy.BaseLM) -> bool:
    """Whether DSPy retries and caches the model's calls, as it does for models with an engine."""
    return hasattr(lm, "_engine_spec")


def _only_synchronous(lm: dspy.BaseLM) -> bool:
    """Whether the class overrides only the synchronous methods: DSPy's inherited asynchronous methods would
    bypass them, or fail."""
    return "forward" in vars(lm) or _overrides_only(_kind(lm), _SYNCHRONOUS)


_SYNCHRONOUS, _ASYNCHRONOUS = ("__call__", "forward"), ("acall", "aforward")


@cache
def _overrides_only(kind: Any, half: tuple[str, str]) -> bool:
    """Whether the most derived class with either half of the methods has only this one, and for the
    asynchronous half, that no class of the user's has the other."""
    other = _ASYNCHRONOUS if half is _SYNCHRONOUS else _SYNCHRONOUS
    parts = [vars(part) for part in kind.__mro__ if part.__module__.partition(".")[0] != "dspy"]
    if half is _ASYNCHRONOUS:
        return any(name in part for part in parts for name in half) and not any(
            name in part for part in parts for name in other
        )
    for part in [vars(part) for part in kind.__mro__]:
        if any(name in part for name in other):
            return False
        if any(name in part for name in half):
            return True
    return False


def manage(control: Control, lm: dspy.BaseLM) -> dspy.BaseLM:
    """A model under a run's control; None stays None."""
    return lm if lm is None or isinstance(lm, ManagedLM) else ManagedLM(control, lm)


def manage_program(control: Control, program: dspy.Module) -> dspy.Module:
    """The program, with its own models under control."""
    for predictor in program.predictors():
        predictor.lm = manage(control, predictor.lm)
    return program


def unmanaged(program: dspy.Module) -> dspy.Module:
    """The program, with its models as they were."""
    for predictor in program.predictors():
        if isinstance(predictor.lm, ManagedLM):
            predictor.lm = predictor.lm.plain()
    return program


def _itself(value: Any) -> Any:
    return value
