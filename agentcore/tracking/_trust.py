"""What a manifest may name. It comes from MLflow, where others may write: it must not choose what runs."""

import importlib
import sys
from typing import Any

import dspy

from agentcore._imports import import_object
from agentcore.errors import ArtifactError
from agentcore.settings import Settings

_SETTINGS = frozenset(
    {
        "cache",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "n",
        "presence_penalty",
        "reasoning_effort",
        "rollout_id",
        "seed",
        "stop",
        "temperature",
        "top_k",
        "top_logprobs",
        "top_p",
    }
)
"""Generation settings that a stored program may bring; never an endpoint, key, header or callback."""
_STATE = frozenset({"signature", "demos", "traces", "train", "fields", "lm"})
"""What DSPy's `Predict` stores. Its `load_state` sets any other name as an attribute."""


def stored_class(path: str) -> type[dspy.Module]:
    """The class of a stored program, which is imported but not called.

    Raises:
        ArtifactError: its module may not be imported, or it is not a subclass of `dspy.Module`.
        ConfigurationError: it can't be imported.
    """
    found = _imported(path)
    if not (isinstance(found, type) and issubclass(found, dspy.Module)):
        raise ArtifactError(f"{path} is not a subclass of dspy.Module: somebody changed the manifest")
    return found


def stored_program(path: str) -> dspy.Module:
    """The program at a stored import path, for `stored_class`'s reasons to refuse it: a copy of the instance,
    or a new one of the class."""
    found = _imported(path)
    if isinstance(found, dspy.Module):
        return found.deepcopy()
    return stored_class(path)()


def stored_type(path: str, program: str) -> type:
    """The class of a field's type, from the program's own package or from a module that is already imported.

    Raises:
        ValueError: another module would have to be imported, or it is not a class.
    """
    module, _, name = path.partition(":")
    package = program.partition(":")[0].partition(".")[0]
    if module not in sys.modules and module.partition(".")[0] != package and not _trusted(module):
        raise ValueError(f"module {module} is not of the program's package. {_advice(module)}")
    _check_module(module)
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, type):
        raise ValueError(f"{path} is not a class")
    return found


def stored_settings(config: Any) -> tuple[dict[str, Any], list[str]]:
    """The generation settings of a stored predictor, and the names of those that were left out."""
    values = config if isinstance(config, dict) else {}
    kept = {name: value for name, value in values.items() if name in _SETTINGS}
    return kept, sorted(values.keys() - kept.keys())


def stored_state(program: dspy.Module, state: dict[str, Any]) -> list[str]:
    """Remove from a program's stored state whatever isn't DSPy's, and LMs; return what was removed."""
    if isinstance(program, dspy.Predict):
        return _clean(state)
    removed = []
    for name, parameter in program.named_parameters():
        if isinstance(parameter, dspy.Predict) and isinstance(state.get(name), dict):
            removed += [f"{name}.{key}" for key in _clean(state[name])]
    return removed


def _clean(state: dict[str, Any]) -> list[str]:
    removed = sorted(state.keys() - _STATE)
    for key in removed:
        del state[key]
    if state.get("lm") is not None:
        removed.append("lm")
    state["lm"] = None
    return removed


def _imported(path: str) -> Any:
    _check_module(path.partition(":")[0])
    return import_object(path, "program")


def _check_module(module: str) -> None:
    """Without `AGENTCORE_TRUSTED_MODULES`, any module but the standard library's may hold a program."""
    if _trusted(module) or module.partition(".")[0] == "dspy":
        return
    if Settings().trusted_modules and module not in sys.modules:
        raise ArtifactError(f"module {module} is not trusted. {_advice(module)}")
    if module.partition(".")[0] in sys.stdlib_module_names and module not in sys.modules:
        raise ArtifactError(f"module {module} can't hold a program. {_advice(module)}")


def _trusted(module: str) -> bool:
    names = (name.strip() for name in Settings().trusted_modules.split(","))
    return any(name and (module == name or module.startswith(f"{name}.")) for name in names)


def _advice(module: str) -> str:
    return f"If you trust it: AGENTCORE_TRUSTED_MODULES={module.partition('.')[0]}, or pass program="
