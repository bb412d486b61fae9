"""Consoles, errors and running coroutines. Imports nothing heavy, to keep `--help` fast."""

import shutil
import sys
from collections.abc import Coroutine
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from agentcore.cli._interrupt import asyncio_takes_over

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


class _LazyConsole:
    """Rich's console, created on first use."""

    def __init__(self, *, stderr: bool) -> None:
        self._stderr = stderr

    @cached_property
    def _console(self) -> "Console":
        from agentcore.cli._terminal import SafeConsole

        return SafeConsole(stderr=self._stderr, highlight=False)

    def print(self, *objects: Any, **style: Any) -> None:
        self._console.print(*objects, **style)

    @property
    def width(self) -> int:
        """Of the terminal, in columns; 80 elsewhere."""
        return self._console.width


out = _LazyConsole(stderr=False)
err = _LazyConsole(stderr=True)


def this_command() -> str:
    """The command as it has to be typed here: `agentcore` if the shell would find this one."""
    program = Path(sys.argv[0])
    found = shutil.which("agentcore")
    if program.name != "agentcore" or (found is not None and Path(found).resolve() == program.resolve()):
        return "agentcore"
    try:
        return str(program.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(program)


def import_from_here() -> None:
    """Import from the working directory too, for commands that run the user's own program."""
    sys.path.insert(0, "")


def fail(message: str, code: int) -> NoReturn:
    """Print one line on stderr, then exit."""
    from rich.markup import escape

    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


def note(message: str) -> None:
    """Print a note on stderr."""
    from rich.markup import escape

    err.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that others will notice; without a terminal, `--yes` is required."""
    if yes:
        return
    if not sys.stdin.isatty():
        fail(f"{question} There is no terminal to ask on: pass --yes", 2)
    try:
        agreed = typer.confirm(question)
    except typer.Abort:
        raise typer.Exit(130) from None
    if not agreed:
        raise typer.Exit(1)


def counted(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def quiet_libraries() -> None:
    """Silence DSPy, MLflow and Alembic, which log every step; users get our own errors."""
    import logging

    for name in ("dspy", "LiteLLM"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("mlflow", "alembic", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C cancels it and exits 130."""
    import asyncio

    quiet_libraries()
    try:
        asyncio_takes_over()
        return asyncio.run(work)
    except KeyboardInterrupt:
        work.close()
        raise typer.Exit(130) from None
