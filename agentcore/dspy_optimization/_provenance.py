"""Where a run comes from: the commit and the command line."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from agentcore._redaction import is_secret_name
from agentcore.lm import GENERATION_SETTINGS

_SECONDS = 2.0
"""How long to wait for git: a large repository may take longer to look for changes."""


def git_commit() -> str | None:
    """The commit of the working directory, with `-dirty` if tracked files have changed; None outside of a
    repository, or without git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments; the repository's own monitor is not started
            ["git", "-c", "core.fsmonitor=false", *arguments],  # noqa: S607 - the user's git
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command that started this process, without the values of options named like a secret."""
    if "ipykernel" in sys.modules:
        return "a notebook"
    program, *rest = list(sys.argv if arguments is None else arguments) or [""]
    shown, hide = [Path(program).name], False
    for item in rest:
        name, separator, _ = item.partition("=")
        plain = name.lstrip("-").replace("-", "_")
        secret = is_secret_name(plain) and plain not in GENERATION_SETTINGS
        if hide and not item.startswith("-"):
            shown.append("[redacted]")
        elif secret and separator:
            shown.append(f"{name}=[redacted]")
        else:
            shown.append(item)
        hide = secret and not separator and item.startswith("-")
    return shlex.join(shown)
