"""`Service`: everything that lives as long as the server does."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentcore._redaction import first_line
from agentcore._threads import run_in_thread
from agentcore.api._agents import Agents
from agentcore.api._carry_out import Carrier, Surroundings
from agentcore.api._operations import Operations
from agentcore.api._overview import Overview
from agentcore.api._ready import Readiness
from agentcore.api._serving import Serving
from agentcore.api._worker import Worker
from agentcore.errors import AgentCoreError, JournalError, TrackingError
from agentcore.journal import open_journal
from agentcore.settings import ApiSettings, MLflowConfig
from agentcore.tracking import RunTracker

_logger = logging.getLogger("agentcore")

_FLUSH_SECONDS = 15.0
_DELIVER_SECONDS = 60.0


class Service:
    """The parts of the server, between `running` and its end.

    Attributes:
        stopping: set when the server is told to stop, so that event streams end.
        failed: whether the background work has ended by an error.
    """

    def __init__(self, agents: Agents, config: MLflowConfig, settings: ApiSettings) -> None:
        self.agents = agents
        self.config = config
        self.settings = settings
        self.stopping = asyncio.Event()
        self.failed = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Service"]:
        """Open the journal, and work in the background.

        Raises:
            JournalError: it can't be opened.
        """
        self.journal = await run_in_thread(open_journal)
        self.operations = Operations(self.journal, self.config, self.agents.agents)
        self.where = Surroundings(self.agents, self.config)
        self.readiness = Readiness(self.config, self.journal)
        self.overview = Overview(list(self.agents.agents), self.config)
        self.serving = {
            name: Serving(name, entry, self.config, self.journal)
            for name, entry in self.agents.agents.items()
        }
        self.worker = Worker(self.operations, Carrier(self.where), self.settings.jobs)
        background = asyncio.create_task(self._background())
        background.add_done_callback(self._ended)
        try:
            yield self
        finally:
            self.stopping.set()
            background.cancel()
            await asyncio.wait([background])
            for serving in self.serving.values():
                await serving.close()

    async def _background(self) -> None:
        async with asyncio.TaskGroup() as group:
            for work in (self._warm(), self.overview.run(), self._flush(), self._deliver()):
                group.create_task(work)
            if self.settings.jobs:
                group.create_task(self.worker.run())

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """After an unhandled error, /health fails: a broken server must not look healthy."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed = True
            _logger.critical("the server's background work has ended", exc_info=error)

    def serving_of(self, agent: str) -> Serving:
        """What answers an agent's requests.

        Raises:
            NotFoundError: there is no such agent.
        """
        self.agents.get(agent)
        return self.serving[agent]

    async def _warm(self) -> None:
        """Load what the first requests would wait for. If that fails, those requests report it."""
        for serving in self.serving.values():
            try:
                await serving.warm()
            except Exception as error:  # noqa: BLE001 - shown and logged; the requests raise it again
                known = isinstance(error, AgentCoreError)
                serving.problem = str(error) if known else first_line(error)
                _logger.warning("agent %s is not ready: %s", serving.agent, serving.problem)

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            for serving in self.serving.values():
                try:
                    await serving.flush()
                except JournalError as error:
                    _logger.warning("figures of %s wait: %s", serving.agent, error)

    async def _deliver(self) -> None:
        """Deliver what replicas that are gone left in the journal."""
        tracker = RunTracker(self.config)
        while True:
            with contextlib.suppress(TrackingError, JournalError):  # retried next time; /ready reports it
                await tracker.deliver_backlog(_DELIVER_SECONDS)
            await asyncio.sleep(_DELIVER_SECONDS)
