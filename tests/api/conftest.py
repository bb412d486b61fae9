"""An agent with a version in production, and the API for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from agentcore.api import create_app
from agentcore.data import DatasetManager
from agentcore.settings import ApiSettings, MLflowConfig
from tests.registry.conftest import AGENT, Agent, agent, made_agent
from tests.support import colours

__all__ = ["agent", "made_agent"]

READ, RUN, PROMOTE = "read-token-0123456789", "run-token-0123456789ab", "promote-token-01234567"
TOKENS = f"eye:read:{READ}, ci:run:{RUN} boss:promote:{PROMOTE}"


def entry(**changes: Any) -> dict[str, Any]:
    """An agent of the allow-list."""
    return {
        "program": "tests.support:AsyncClassifier",
        "lm": "offline/knn",
        "datasets": ["colours*"],
        "target_field": "colour",
        **changes,
    }


@asynccontextmanager
async def running(
    config: MLflowConfig, agents: dict[str, Any] | None = None, token: str | None = RUN, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API, which runs in this event loop."""
    app = create_app(
        {"agents": agents or {AGENT: entry()}},
        config=config,
        settings=ApiSettings(**{"tokens": SecretStr(TOKENS), "rate": 1_000_000, **settings}),
    )
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1", headers=headers, timeout=60
        ) as client,
    ):
        client.service = app.state.service  # type: ignore[attr-defined]
        yield client


def by(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def ended(client: httpx.AsyncClient, operation: str, seconds: float = 60) -> dict[str, Any]:
    """An operation once it has ended."""
    async with asyncio.timeout(seconds):
        while True:
            found = (await client.get(f"/api/v1/operations/{operation}")).json()
            if found["status"] in ("completed", "failed", "cancelled"):
                return found
            await asyncio.sleep(0.05)


async def started(client: httpx.AsyncClient, operation: str, seconds: float = 60) -> dict[str, Any]:
    """An optimization once it has scored a candidate."""
    async with asyncio.timeout(seconds):
        while True:
            found = (await client.get(f"/api/v1/operations/{operation}")).json()
            assert found["status"] in ("queued", "running"), found
            if found["progress"] and found["progress"]["trials"]:
                return found
            await asyncio.sleep(0.05)


@pytest.fixture
def data(tmp_path):
    """Data sets where the commands keep them."""
    manager = DatasetManager(tmp_path / "data" / "evaluation")
    rows = colours(60).rows()
    manager.save_dataset(rows, "colours")
    manager.save_dataset(rows[:40], "colours_now")
    manager.save_dataset(rows, "secret_rows")
    return manager


@pytest.fixture
async def served(agent: Agent, data: DatasetManager) -> Agent:
    """The strong version is in production, the weak one is staged."""
    registry = agent.registry()
    await registry.promote(agent.strong, "production", lm="offline/knn", force="for the tests")
    await registry.promote(agent.weak, "staging", lm="offline/knn")
    return agent
