"""The `agentcore` command. Nothing here imports DSPy or MLflow before a command needs it."""

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point. Exit codes: 0 good, 1 the answer is no, 2 wrong usage, 3 something outside failed."""
    from agentcore.cli._app import app
    from agentcore.cli._console import fail
    from agentcore.errors import AgentCoreError

    # A console script doesn't look for the user's modules where it is run.
    sys.path.insert(0, "")
    try:
        app()
    except AgentCoreError as error:
        fail(str(error), error.exit_code)
