"""The `agentcore` command. Nothing here imports DSPy or MLflow before a command needs it."""

import signal
import sys
from typing import NoReturn

__all__ = ["main"]

_INTERRUPTED, _TERMINATED = 130, 143


def main() -> None:
    """Entry point. Exit codes: 0 good, 1 the answer is no, 2 wrong usage, 3 something outside failed.

    SIGTERM stops a command as Ctrl-C does: by itself it would not end the first process of a container. Where
    a shell has its background jobs ignore Ctrl-C it ends them at once, as it always does.
    """
    stopped = _INTERRUPTED

    def terminate(*_: object) -> None:
        nonlocal stopped
        stopped = _TERMINATED
        signal.raise_signal(signal.SIGINT)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, terminate)
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

    # A console script doesn't look for the user's modules where it is run.
    sys.path.insert(0, "")
    try:
        app()
    except AgentCoreError as error:
        fail(str(error), error.exit_code)


def _leave_at_once(code: int) -> NoReturn:
    """End the process without its finalization, which aborts where a thread is just printing."""
    import atexit
    import os

    from agentcore._threads import exiting

    exiting.set()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if client := sys.modules.get("agentcore.tracking._client"):
        # Again, as the last thing: MLflow makes the directory of a store anew if it is gone.
        client.remove_unfinished()
    os._exit(code)
