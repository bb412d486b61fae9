"""The `agentcore` command. Nothing here imports DSPy or MLflow before a command needs it."""

import signal
import sys
from pathlib import Path
from typing import NoReturn

from agentcore.cli._interrupt import remember_interrupts

__all__ = ["main"]

_INTERRUPTED, _TERMINATED = 130, 143


def main() -> None:
    """Entry point. Exit codes: 0 success, 1 negative result, 2 wrong usage, 3 external failure.

    SIGTERM stops a command like Ctrl-C does; a container's PID 1 would otherwise ignore it. If a shell makes
    its background jobs ignore Ctrl-C, SIGTERM keeps its default and ends them at once."""
    stopped = _INTERRUPTED

    def terminate(*_: object) -> None:
        nonlocal stopped
        stopped = _TERMINATED
        signal.raise_signal(signal.SIGINT)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, terminate)
        remember_interrupts()
    try:
        _run()
    except KeyboardInterrupt:
        _leave_at_once(stopped)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _leave_at_once(stopped)
        raise


def _run() -> None:
    from agentcore.cli._app import app
    from agentcore.cli._console import fail
    from agentcore.errors import AgentCoreError

    # `python -m` imports from the working directory, which may hold anything; see `import_from_here`.
    if sys.path and sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]
    try:
        app()
    except AgentCoreError as error:
        fail(str(error), error.exit_code)


def _leave_at_once(code: int) -> NoReturn:
    """End the process without Python's finalization, which aborts while a thread is printing."""
    import atexit
    import os

    from agentcore._process import exiting

    exiting.set()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if tracking := sys.modules.get("agentcore.tracking"):
        # Again, as the last step: MLflow recreates a store's directory if it is gone.
        tracking.remove_unfinished()
    os._exit(code)
