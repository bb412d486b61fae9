"""Who holds a lease, and whether a holder on this machine is certainly dead."""

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
    """Whether the holder is a process that this one could see; never where there is no /proc to look into."""
    here = _namespace()
    return bool(here) and owner.split("|")[:2] == [socket.gethostname(), here]


def is_dead(owner: str) -> bool:
    """True only where the holder was a process of this machine that is gone; a lease of any other holder
    has to run out."""
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
    # Another user's process may not be looked into.
    return bool(now) and (now != started or _is_zombie(number))


def _namespace() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    try:
        # The command in parentheses may hold anything; what is wanted stands behind it.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> str:
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def _is_zombie(pid: int) -> bool:
    return _stat(pid)[:1] == ["Z"]
