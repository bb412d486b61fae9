"""Language models that the configurations of the tests name."""

import hashlib
import os
import threading
import time
from typing import Any

import dspy

from agentcore.lm import offline_lm

_lock = threading.Lock()
inputs: list[dict[str, Any]] = []


def slow() -> Any:
    """Takes 50 ms a call, and appends the digest of each prompt to the file API_CALLS."""
    lm = offline_lm(latency=0.05)
    real = lm.engine._finish

    def finish(call: Any, failing: bool) -> Any:
        if path := os.environ.get("API_CALLS"):
            told = repr([(message.role, message.text) for message in call.messages]).encode()
            with _lock, open(path, "a") as log:  # noqa: PTH123 - one atomic line
                log.write(hashlib.sha256(told).hexdigest()[:16] + "\n")
        return real(call, failing)

    lm.engine._finish = finish
    return lm


broken = offline_lm(error_rate=1.0, num_retries=0)


class Slow(dspy.Module):
    """Takes 5 seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("thing -> colour")

    def forward(self, thing: str) -> Any:
        time.sleep(5)
        return self.predict(thing=thing)


class Failing(dspy.Module):
    """Raises, with what it was given."""

    def forward(self, thing: str) -> Any:
        raise KeyError(f"no such thing: {thing}")


def kill_me(row: dict[str, Any]) -> dict[str, Any]:
    """Ends the process."""
    os._exit(9)


def shade(row: dict[str, Any]) -> dict[str, Any]:
    """A function instead of a program."""
    inputs.append(row)
    return {"colour": "green"}
