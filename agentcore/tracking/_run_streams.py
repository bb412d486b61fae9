"""Maps any id of a run to its journal stream and to its MLflow id."""

import os
import uuid
from typing import NamedTuple

from agentcore._naming import LOCAL_PREFIX
from agentcore._threads import run_in_thread
from agentcore.errors import ConfigurationError, TrackingError
from agentcore.journal import ADOPTED, Journal, Stream, open_journal, wait
from agentcore.settings import MLflowConfig
from agentcore.tracking._delivery import Delivery, delivery_for
from agentcore.tracking._writer import RunWriter

READ_SECONDS = 60.0
"""How long a read waits for what was logged before it."""


class _Opened(NamedTuple):
    pid: int
    journal: Journal
    delivery: Delivery


class RunStreams:
    """The journal's streams for the runs of one MLflow server or store."""

    def __init__(self, config: MLflowConfig) -> None:
        self.config = config
        self._opened: _Opened | None = None
        self._ids: dict[str, str] = {}
        """Stream by run id."""

    async def opened(self) -> tuple[Journal, Delivery]:
        """The journal, and the delivery from it to MLflow. A forked process opens its own."""
        known = self._opened
        if known is None or known.pid != os.getpid() or known.delivery.stopped:
            journal, delivery = await run_in_thread(self._open)
            known = self._opened = _Opened(os.getpid(), journal, delivery)
        return known.journal, known.delivery

    def _open(self) -> tuple[Journal, Delivery]:
        journal = open_journal()
        return journal, delivery_for(journal, self.config)

    def remember(self, stream: str, *run_ids: str) -> None:
        self._ids.update(dict.fromkeys(run_ids, stream))

    def forget(self, run_id: str) -> bool:
        """Forget an id; returns whether it was known."""
        return self._ids.pop(run_id, None) is not None

    async def find(self, run_id: str) -> Stream | None:
        """The stream of a run, found by any of its full ids."""
        journal, delivery = await self.opened()
        known = self._ids.get(run_id)
        if known is not None:
            return await run_in_thread(lambda: journal.stream(known))
        return await run_in_thread(
            lambda: journal.resolve(run_id, destination=delivery.destination, exact=True)
        )

    async def writer(self, run_id: str) -> RunWriter:
        """A writer for the run's stream, which is created if another client started the run."""
        journal, delivery = await self.opened()
        return RunWriter(journal, delivery, await self.id(run_id))

    async def id(self, run_id: str) -> str:
        """The id of the run's stream, which is created if another client started the run."""
        known = self._ids.get(run_id)
        if known is None:
            journal, delivery = await self.opened()
            stream = await self.find(run_id)
            if stream is not None:
                known = stream.id
            else:
                self._check_not_local(run_id, journal)
                known = uuid.uuid5(uuid.NAMESPACE_URL, f"{delivery.destination}/{run_id}").hex
                await wait(journal.create(known, ADOPTED, run_id, delivery.destination, tracking_id=run_id))
            self._ids[run_id] = known
        return known

    async def delivered(self, run_id: str) -> str:
        """Deliver everything waiting for the run, and return its MLflow id.

        Raises:
            TrackingError: MLflow can't be reached, or doesn't have the run.
        """
        journal, delivery = await self.opened()
        stream = await self.find(run_id)
        if stream is None:
            self._check_not_local(run_id, journal)
            return run_id
        key = stream.id
        await run_in_thread(lambda: delivery.flush([key], timeout=READ_SECONDS))
        found = await run_in_thread(lambda: journal.stream(key))
        if found is None or found.tracking_id is None:
            refused = await run_in_thread(lambda: journal.rejected(key))
            raise TrackingError(
                f"MLflow has no run {run_id}: {refused[0][1] if refused else 'it was removed'}"
            )
        return found.tracking_id

    async def tracking_id(self, run_id: str) -> str | None:
        """MLflow's id of the run; None while MLflow doesn't have it."""
        stream = await self.find(run_id)
        if stream is None:
            return None if run_id.startswith(LOCAL_PREFIX) else run_id
        return stream.tracking_id

    def _check_not_local(self, run_id: str, journal: Journal) -> None:
        if run_id.startswith(LOCAL_PREFIX):
            raise ConfigurationError(f"the journal at {journal.location} has no run {run_id}")
