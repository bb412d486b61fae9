"""An agent on a real stack: PostgreSQL for runs and journal, S3, MLflow's server; with a weak and a strong
optimization."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentcore.journal import close_journals
from agentcore.settings import MLflowConfig
from agentcore.tracking import stop_deliveries
from tests.registry.conftest import optimized
from tests.support.stack import Stack


@dataclass
class Made:
    """The agent's server and its runs."""

    stack: Stack
    config: MLflowConfig
    weak: str
    strong: str


@contextlib.contextmanager
def agent_on_stack() -> Iterator[Made]:
    """An agent whose journal is in the stack's PostgreSQL, set by AGENTCORE_JOURNAL_URL."""
    with tempfile.TemporaryDirectory() as name:
        stack = Stack(Path(name))
        os.environ["AGENTCORE_JOURNAL_URL"] = stack.journal_url
        try:
            config = MLflowConfig(tracking_uri=stack.uri)
            yield Made(stack, config, *asyncio.run(_optimized(config)))
        finally:
            stop_deliveries()
            close_journals()
            stack.stop()


async def _optimized(config: MLflowConfig) -> list[str]:
    return [await optimized(config, k) for k in (4, 16)]
