"""An agent on a real stack: PostgreSQL for runs and journal, S3, MLflow's server; with a weak and a strong
optimization."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.journal import close_journals
from agentcore.settings import MLflowConfig
from agentcore.tracking import stop_deliveries
from tests.support import colours, request
from tests.support.stack import Stack

AGENT = "colour"


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
    runs = []
    for k in (4, 16):
        pipeline = OptimizationPipeline(lm="offline/knn", mlflow_config=config, agent=AGENT, sealed=480)
        result = await pipeline.run_optimization(
            request(algorithms=["labeled_few_shot"], optimizer_settings={"labeled_few_shot": {"k": k}}),
            training_data=colours(600),
        )
        await pipeline.flush()
        runs.append(result.run_id)
    return runs
