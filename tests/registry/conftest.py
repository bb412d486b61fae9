"""An agent with two optimizations, made once: a weak program and a strong one."""

import asyncio
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.registry import GatePolicy, Registry
from agentcore.registry._models import aliases
from agentcore.settings import MLflowConfig
from tests.support import colours, request

AGENT = "colour"
#: Without guards: the strong program's longer prompt costs more. The wide margin needs few examples.
QUALITY = GatePolicy(delta={}, margin=0.3, min_examples=30)


@dataclass
class Agent:
    """A store of the test's own, with the runs in it."""

    config: MLflowConfig
    weak: str
    strong: str
    directory: Path

    def registry(self, **options) -> Registry:
        return Registry(AGENT, self.config, **options)

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.config.tracking_uri)


def found_aliases(agent: Agent) -> dict[str, str]:
    """The version of each alias, in MLflow."""
    return aliases(agent.client(), AGENT)


def config_in(directory: Path) -> MLflowConfig:
    return MLflowConfig(
        tracking_uri=f"sqlite:///{directory / 'mlflow.db'}", artifact_location=str(directory / "artifacts")
    )


async def optimized(config: MLflowConfig, k: int, seed: int = 0, *, agent: str = AGENT, **options) -> str:
    """The id of an optimization with `k` demonstrations."""
    pipeline = OptimizationPipeline(
        lm="offline/knn", mlflow_config=config, agent=agent, sealed=480, seed=seed, **options
    )
    result = await pipeline.run_optimization(
        request(algorithms=["labeled_few_shot"], optimizer_settings={"labeled_few_shot": {"k": k}}),
        training_data=colours(600),
    )
    await pipeline.flush()
    return result.run_id


@pytest.fixture(scope="session")
def made_agent(migrated_store, tmp_path_factory):
    """The directory and the runs' ids."""
    directory = tmp_path_factory.mktemp("agent")
    shutil.copy(migrated_store, directory / "mlflow.db")
    patch = pytest.MonkeyPatch()
    patch.setenv("AGENTCORE_STATE_DIR", str(directory / "state"))

    async def make():
        config = config_in(directory)
        return await optimized(config, 4), await optimized(config, 16)

    try:
        runs = asyncio.run(make())
        from agentcore.journal import close_journals
        from agentcore.tracking import stop_deliveries

        stop_deliveries()
        close_journals()
    finally:
        patch.undo()
    return directory, *runs


@pytest.fixture
def agent(made_agent, tmp_path):
    source, weak, strong = made_agent
    shutil.copy(source / "mlflow.db", tmp_path / "mlflow.db")
    shutil.copytree(source / "artifacts", tmp_path / "artifacts")
    moved = [
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
    ]
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        for table, column in moved:
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(source), str(tmp_path))
            )
    connection.close()
    return Agent(config_in(tmp_path), weak, strong, tmp_path)
