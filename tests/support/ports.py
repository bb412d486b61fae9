"""Ports, and waiting for what listens on them."""

import itertools
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

_FIRST, _COUNT = 20_000, 5_000
"""Below the ports that the system gives to outgoing connections; each test process has a range of its own."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
_numbers = itertools.count(random.randrange(_COUNT))


def free_port() -> int:
    for number in _numbers:
        port = _FIRST + _worker * _COUNT + number % _COUNT
        with socket.socket() as listening:
            try:
                listening.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable")


def wait_for(ready: Callable[[], bool], what: str, log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what} is not ready: {log.read_text()[-2000:]}"
        time.sleep(0.1)
