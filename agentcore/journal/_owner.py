"""Identifies lease holders, and detects holders on this machine that have died."""

import os
import socket
import uuid
from pathlib import Path

_instance = uuid.uuid4().hex[:12]


def this_process() -> str:
    """`host|boot and pid namespace|pid|start time|instance`."""
    pid = os.getpid()
    return "|".join((socket.gethostname(), _namespace(), str(pid), _started(pid), f"{_instance}-{pid}"))


def is_here(owner: str) -> bool:
    """Whether the holder is in the same PID namespace on this machine. Always False without /proc."""
    here = _namespace()
    return bool(here) and owner.split("|")[:2] == [socket.gethostname(), here]


def is_dead(owner: str) -> bool:
    """Whether the holder was a process on this machine that no longer exists. False for any other holder,
    whose lease has to expire."""
    try:
        _, _, pid, started, _ = owner.split("|")
        number = int(pid)
    except ValueError:
        return False
    if not is_here(owner):
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    now = _started(number)
    # The start time of another user's process may be unreadable.
    return bool(now) and (now != started or _is_zombie(number))


def _namespace() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    try:
        # The command name in parentheses may contain anything, so skip past the last parenthesis.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> str:
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def _is_zombie(pid: int) -> bool:
    return _stat(pid)[:1] == ["Z"]
