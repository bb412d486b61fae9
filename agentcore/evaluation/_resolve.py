"""Resolves an executor by name. Separate from `_executor`, which the executors themselves import."""

from agentcore.errors import ConfigurationError
from agentcore.evaluation._executor import Executor, Local


def resolve_executor(executor: "Executor | str | None") -> Executor:
    """An executor from its name, `local` or `ray`; None means local.

    Raises:
        ConfigurationError: there is no such executor, or Ray is not installed.
    """
    if executor is None or executor == "local":
        return Local()
    if executor == "ray":
        from agentcore.evaluation.ray import RayExecutor

        return RayExecutor()
    if isinstance(executor, str) or not isinstance(executor, Executor):
        raise ConfigurationError(f"no executor {executor!r}: use 'local', 'ray' or a RayExecutor(…)")
    return executor
