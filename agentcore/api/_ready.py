"""Whether everything that the API depends on can be reached."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agentcore._threads import run_in_thread
from agentcore.api._models import Check, ReadyReply
from agentcore.errors import JournalError, TrackingError
from agentcore.journal import Journal
from agentcore.settings import MLflowConfig, shown_uri
from agentcore.tracking import Gateway, is_alive

_SECONDS = 5.0
"""How long one check may take."""
_KEPT = 5.0
"""How long an answer is good for: probes of many clients must not burden what they check."""


class Readiness:
    """Checks the tracking server, its database, its artifact store and the journal, at most one at a time."""

    def __init__(self, config: MLflowConfig, journal: Journal) -> None:
        self._config = config
        self._journal = journal
        self._gateway = Gateway(config)
        self._lock = asyncio.Lock()
        self._known: tuple[float, ReadyReply] | None = None

    async def __call__(self) -> ReadyReply:
        """The state, at most 5 seconds old."""
        async with self._lock:
            if self._known is None or time.monotonic() > self._known[0] + _KEPT:
                async with asyncio.TaskGroup() as group:
                    checks = [
                        group.create_task(_checked(name, check))
                        for name, check in (
                            ("tracking server", self._server),
                            ("database", self._database),
                            ("artifact store", self._artifacts),
                            ("journal", self._writable),
                        )
                    ]
                found = [task.result() for task in checks]
                reply = ReadyReply(ready=all(item.status != "failed" for item in found), checks=found)
                self._known = time.monotonic(), reply
            return self._known[1]

    async def _server(self) -> str | None:
        uri = self._config.tracking_uri
        if not uri.startswith("http"):
            return None
        if not await is_alive(self._config, _SECONDS / 2):
            raise TrackingError(f"{shown_uri(uri)} doesn't answer")
        return f"{shown_uri(uri)} answers"

    async def _database(self) -> str:
        await self._gateway.call(lambda client: client.search_experiments(max_results=1))
        return "MLflow answers from its database"

    async def _artifacts(self) -> str | None:
        location = await self._gateway.call(
            lambda client: self._config.artifact_location or client.get_experiment("0").artifact_location
        )
        if not location.startswith("mlflow-artifacts:"):
            if "://" in location and not location.startswith("file://"):
                return None
            return await run_in_thread(lambda: _directory(Path(location.removeprefix("file://"))))

        def listed(client: Any) -> None:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            place = f"{location.rstrip('/')}/agentcore-ready"
            get_artifact_repository(place, tracking_uri=self._config.tracking_uri).list_artifacts()

        await self._gateway.call(listed)
        return "MLflow lists its artifacts"

    async def _writable(self) -> str:
        await run_in_thread(self._journal.check_writable)
        return f"{self._journal.location} is writable"


async def _checked(name: str, check: Callable[[], Awaitable[str | None]]) -> Check:
    try:
        async with asyncio.timeout(_SECONDS):
            message = await check()
    except TimeoutError:
        return Check(name=name, status="failed", message=f"no answer within {_SECONDS:g} s")
    except (TrackingError, JournalError) as error:
        return Check(name=name, status="failed", message=str(error))
    if message is None:
        return Check(name=name, status="skipped", message="not used, or can't be checked from here")
    return Check(name=name, status="ok", message=message)


def _directory(path: Path) -> str:
    existing = next(item for item in (path, *path.absolute().parents) if item.exists())
    if not existing.is_dir():
        raise TrackingError(f"{existing} is not a directory")
    return f"{existing} is here"
