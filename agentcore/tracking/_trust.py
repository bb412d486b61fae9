"""What a manifest may name. It comes from MLflow, where others may write: it must not choose what runs."""

import importlib
import sys
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

import dspy
from pydantic import BaseModel, ImportString

from agentcore._imports import import_object
from agentcore.errors import ArtifactError
from agentcore.lm import GENERATION_SETTINGS
from agentcore.settings import Settings, is_trusted

_STATE = frozenset({"signature", "demos", "traces", "train", "fields", "lm"})
"""What DSPy's `Predict` stores. Its `load_state` sets any other name as an attribute."""


_TYPES = ("datetime", "decimal", "dspy", "enum", "fractions", "pathlib", "uuid")
"""Modules, apart from the program's package, whose classes may be types of fields."""


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
    """The class of a field's type, from the program's own package, DSPy, or a few modules of plain types; and
    models, enums and dataclasses of the user's modules that are already imported.

    Raises:
        ValueError: another module would have to be imported, or it is not a class.
    """
    module, _, name = path.partition(":")
    top, package = module.partition(".")[0], program.partition(":")[0].partition(".")[0]
    foreign = top not in (*_TYPES, package) and not is_trusted(module)
    if foreign and (module not in sys.modules or top in sys.stdlib_module_names or top == "pydantic"):
        raise ValueError(f"module {module} is not of the program's package. {_advice(module)}")
    if top not in _TYPES:
        _check_module(module)
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, type) or found is ImportString:
        raise ValueError(f"{path} is not a class of values")
    if foreign and not (issubclass(found, (BaseModel, Enum)) or is_dataclass(found)):
        raise ValueError(f"{path} is not a model, an enum or a dataclass. {_advice(module)}")
    return found


def stored_settings(config: Any) -> tuple[dict[str, Any], list[str]]:
    """The generation settings of a stored predictor, and the names of those that were left out."""
    values = config if isinstance(config, dict) else {}
    kept = {name: value for name, value in values.items() if name in GENERATION_SETTINGS}
    return kept, sorted(values.keys() - kept.keys())


def stored_state(program: dspy.Module, state: dict[str, Any]) -> list[str]:
    """Remove from a program's stored state whatever isn't DSPy's, and LMs; return what was removed."""
    if isinstance(program, dspy.Predict):
        return _clean(state)
    removed = []
    for name, parameter in program.named_parameters():
        if isinstance(parameter, dspy.Predict):
            if isinstance(state.get(name), dict):
                removed += [f"{name}.{key}" for key in _clean(state[name])]
        elif name in state:
            # Others set whatever their state names, such as a retriever's address; no optimizer changes them.
            own = parameter.dump_state()
            if state[name] != own:
                removed.append(name)
                state[name] = own
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
    if is_trusted(module) or module.partition(".")[0] == "dspy":
        return
    if Settings().trusted_modules and module not in sys.modules:
        raise ArtifactError(f"module {module} is not trusted. {_advice(module)}")
    if module.partition(".")[0] in sys.stdlib_module_names and module not in sys.modules:
        raise ArtifactError(f"module {module} can't hold a program. {_advice(module)}")


def _advice(module: str) -> str:
    return f"If you trust it: AGENTCORE_TRUSTED_MODULES={module.partition('.')[0]}, or pass program="
