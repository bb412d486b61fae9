"""Works on operations that the journal holds, each by one replica at a time."""

import asyncio
import contextlib
import logging
import socket
import traceback
from collections.abc import Awaitable, Callable

from agentcore._redaction import Redactor, first_line
from agentcore.api._carry_out import Result
from agentcore.api._events import (
    OperationEnded,
    OperationReleased,
    OperationStarted,
    Outcome,
)
from agentcore.api._operations import Operation, Operations
from agentcore.errors import AgentCoreError, JournalError, LeaseLostError, NotFoundError
from agentcore.journal import Event, Lease

_logger = logging.getLogger("agentcore")

_POLL = 1.0
"""Seconds between looks at the journal: for requests to other replicas, and for cancellations."""
_PAUSE = 5.0
"""Seconds before the next look after the journal couldn't be reached."""
_DEATHS = 3
"""An operation fails once this many processes have died while working on it: it must not kill them all."""


class Worker:
    """Takes operations that nobody works on, and carries them out.

    Args:
        carry_out: carries out an operation or continues it.
        at_once: how many at the same time.
    """

    def __init__(
        self,
        operations: Operations,
        carry_out: Callable[[Operation], Awaitable[Result]],
        at_once: int,
    ) -> None:
        self.operations = operations
        self.journal = operations.journal
        self.carry_out = carry_out
        self.at_once = at_once
        self._working: set[str] = set()
        self._wake = asyncio.Event()
        self._redactor = Redactor(unmistakable=True)

    def wake(self) -> None:
        """Look now instead of at the next turn."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled. What is being worked on is then left to other replicas."""
        async with asyncio.TaskGroup() as group:
            while True:
                pause = _POLL
                try:
                    if len(self._working) < self.at_once:
                        await self._take(group)
                except Exception as error:  # noqa: BLE001 - logged; one look must not end all
                    self._tell("operations wait", error)
                    pause = _PAUSE
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                self._wake.clear()

    async def _take(self, group: asyncio.TaskGroup) -> None:
        for operation in await self.operations.pending():
            if len(self._working) >= self.at_once:
                return
            if operation.id in self._working:
                continue
            lease = await self.journal.take(operation.id)
            if lease is not None:
                self._working.add(operation.id)
                group.create_task(self._work(operation.id, lease))

    async def _work(self, wanted: str, lease: Lease) -> None:
        try:
            await self._carried_out(wanted, lease)
        except NotFoundError:
            _logger.warning("operation %s was removed from the journal", wanted)
        except Exception as error:  # noqa: BLE001 - logged; one operation must not end the others
            # It goes on once the journal can be written again, here or elsewhere.
            self._tell(f"operation {wanted} waits", error)
            await asyncio.sleep(_PAUSE)
        finally:
            self._working.discard(wanted)
            with contextlib.suppress(JournalError):  # the journal tries again by itself
                await asyncio.shield(asyncio.wrap_future(self.journal.abandon(lease)))
            self.wake()

    async def _carried_out(self, wanted: str, lease: Lease) -> None:
        operation = await self.operations.get(wanted)  # as it is now that nobody else can work on it
        if operation.ended is not None:
            return
        if operation.cancel is not None:
            return await self._end(lease, "cancelled")
        if operation.starts >= _DEATHS:
            return await self._end(
                lease,
                "failed",
                error=f"{operation.starts} processes died while working on it, perhaps because of it: "
                "check their logs and memory limits",
            )
        await self.journal.write(wanted, [OperationStarted(replica=socket.gethostname())], lease=lease)
        what = operation.requested
        _logger.info("operation %s: %s of %s, requested by %s", wanted, what.operation, what.agent, what.by)
        work = asyncio.ensure_future(self.carry_out(operation))
        watching = asyncio.create_task(self._cancelled_by_request(wanted, work))
        try:
            run_id, result = await work
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if own is not None and not own.cancelling():  # so it was the work, by request
                return await self._end(lease, "cancelled")
            await self._release(lease, "the replica is shut down")
            raise
        except LeaseLostError:
            raise
        except JournalError as error:
            await self._release(lease, str(error))
            raise
        except AgentCoreError as error:
            return await self._end(lease, "failed", error=str(error))
        except Exception as error:  # noqa: BLE001 - logged, and the operation has failed
            self._tell(f"operation {wanted} failed", error)
            return await self._end(lease, "failed", error=first_line(error))
        finally:
            watching.cancel()
        await self._end(lease, "completed", run_id, result)

    def _tell(self, what: str, error: Exception) -> None:
        """Log an error; one that nobody expected with its traceback, without secrets."""
        if isinstance(error, AgentCoreError):
            _logger.warning("%s: %s", what, error)
        else:
            told = "".join(traceback.format_exception(error))
            _logger.error("%s:\n%s", what, Redactor().text(told))

    async def _cancelled_by_request(self, wanted: str, work: "asyncio.Future[Result]") -> None:
        """Cancel the work once somebody has asked to stop the operation."""
        while True:
            await asyncio.sleep(_POLL)
            with contextlib.suppress(JournalError):
                if (await self.operations.get(wanted)).cancel is not None:
                    work.cancel()
                    return

    async def _end(
        self,
        lease: Lease,
        status: Outcome,
        run_id: str | None = None,
        result: dict[str, object] | None = None,
        *,
        error: str | None = None,
    ) -> None:
        await self._write(lease, OperationEnded(status=status, run_id=run_id, result=result, error=error))
        _logger.info("operation %s: %s", lease.stream, status)

    async def _release(self, lease: Lease, reason: str) -> None:
        with contextlib.suppress(JournalError):  # then this start counts as a death
            await asyncio.shield(self._write(lease, OperationReleased(reason=reason)))
            _logger.info("operation %s is left to another replica: %s", lease.stream, reason)

    async def _write(self, lease: Lease, event: Event) -> None:
        await self.journal.write(lease.stream, [event], lease=lease, redactor=self._redactor)
