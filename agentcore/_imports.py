"""Look up objects by `package.module:name`, and the reverse."""

import contextlib
import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from agentcore._forks import not_forked
from agentcore._redaction import first_line
from agentcore.errors import ConfigurationError

_importing = threading.RLock()
_MANY = 100
"""Modules that make an import a large one."""


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import a large library alone. Threads that first import MLflow or litellm at the same time can find
    half a module: their packages import each other."""
    with not_forked(), _importing, _without_collections():
        yield


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Keep the garbage collector away from a large import. Going through hundreds of thousands of new classes
    and functions, it stops every thread, the event loop's too, for 70 to 170 ms each time. They live as long
    as the process, so it need not look at them again."""
    modules, enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - modules > _MANY:
            gc.freeze()
        if enabled:
            gc.enable()


def lazy(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names load on first use.

    Args:
        modules: the module of each name, within the package.
    """

    def load(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load


def import_litellm() -> Any:
    """litellm, imported alone and set up as DSPy does."""
    with importing():
        from dspy.clients import get_litellm

        return get_litellm(feature="prices")


def import_object(path: str, what: str, known: Iterable[str] = ()) -> Any:
    """Import the object at `package.module:name`.

    Raises:
        ConfigurationError: the path is malformed, or the module can't be imported or has no such name.
    """
    module_name, separator, name = path.partition(":")
    if not (module_name and separator and name):
        listed = f" or one of {', '.join(known)}" if known else ""
        raise ConfigurationError(f"{what} {path!r}: use package.module:name{listed}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{what} {path!r}: no module named {error.name!r}. Install it, or add its directory to PYTHONPATH"
        ) from None
    except Exception as error:
        raise ConfigurationError(
            f"{what} {path!r}: importing {module_name} raised {first_line(error)}"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"{what} {path!r}: {module_name} has no {part!r}")
        found = getattr(found, part)
    return found


def importable(value: Any) -> str | None:
    """The `package.module:name` from which another process can import this object, or None."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str)) or module == "__main__":
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is value else None
