"""Writes an optimization to the journal: each event with what MLflow is to be told of it, in one commit."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from agentcore._threads import run_in_thread
from agentcore.dspy_optimization._history import History
from agentcore.dspy_optimization._prepare import Job
from agentcore.dspy_optimization.models import OptimizationResult
from agentcore.dspy_optimization.optimizers import Trial
from agentcore.errors import (
    AgentCoreError,
    JournalError,
    TrackingError,
    environment_secrets,
    first_line,
    looks_random,
)
from agentcore.evaluation import EvaluationReport
from agentcore.journal import (
    ArtifactLogged,
    Event,
    JobRecorded,
    Journal,
    Lease,
    RunEnded,
    RunReopened,
    TrackingEvent,
    TrialPoint,
    wait,
)
from agentcore.lm import is_offline, unmanaged
from agentcore.tracking import Delivery, Draft, MLflowTracker

_DATA = "training_data.json"


class Recorder:
    """One run in the journal, from where it is delivered; nowhere where `tracker` is None.

    `write` returns at once and keeps the order; `durable` waits until all of it is on disk. Both raise
    `JournalError` once something could not be written: a run that can't be kept stops, and can be resumed.
    """

    def __init__(
        self, tracker: MLflowTracker | None, job: Job, lease: Lease | None, warn: Callable[[str], None]
    ) -> None:
        self.tracker = tracker
        self.job = job
        self.warn = warn
        self._lease = lease
        # An ordinary word that happens to be someone's password must not be cut out of a prompt.
        self._hidden = {*job.secrets, *filter(looks_random, environment_secrets())}
        self._home: tuple[Journal, Delivery] | None = None
        self._last: Future[int] | None = None
        self._failed: BaseException | None = None
        self.ended = False
        """Whether the run's end is in the journal."""

    @property
    def local_id(self) -> str | None:
        return f"local-{self.job.optimization_id}" if self.tracker is not None else None

    async def run_id(self, seconds: float) -> str | None:
        """MLflow's run id where it is known within `seconds`, else the local one."""
        if self._home is None:
            return None
        _, delivery = self._home
        key = self.job.optimization_id
        try:
            return await run_in_thread(lambda: delivery.wait_for_run(key, seconds)) or self.local_id
        except (TrackingError, JournalError):
            return self.local_id  # the result says why

    async def start(self, started: Event, history: History) -> None:
        """Make the run, or go on with it.

        Raises:
            JournalError: it can't be written.
        """
        if self.tracker is None:
            return
        self.tracker.secrets.extend(self.job.secrets)
        journal, delivery = self._home = await self.tracker.opened()
        key = self.job.optimization_id
        if history.job is not None:
            reopened: list[TrackingEvent] = [RunReopened()] if history.ended else []
            await self._write(
                [started, *reopened, *self._entries({"optimization_status": "running", "error": ""})]
            )
            return
        created = self.tracker.entries.run_created(
            self.tracker.config, key, self.job.request, tags=self._tags()
        )
        drafts = [
            created,
            *self.tracker.entries.params(self.job.params()),
            *self.tracker.entries.training_data(self.job.data, self.job.splits),
        ]
        entries = await self.tracker.stored(drafts)
        (data,) = [
            entry.sha256 for entry in entries if isinstance(entry, ArtifactLogged) and entry.path == _DATA
        ]
        job = JobRecorded(optimization_id=key, spec=self.job.spec(), data=data)
        # One commit: a run without its first events could be neither delivered nor resumed.
        self._lease = await wait(
            journal.create(
                key,
                "optimization",
                created.name,
                delivery.destination,
                work=True,
                first=[job, started, *entries],
                secrets=self._hidden,
            )
        )
        delivery.notify(key)

    def write(self, event: Event, tell: Sequence[Event] = ()) -> None:
        """Append an event, and entries for MLflow, in one commit."""
        if self._home is None:
            return
        if self._failed is not None:
            raise self._failed
        journal, delivery = self._home
        self._last = journal.append(
            self.job.optimization_id, [event, *tell], lease=self._lease, secrets=self._hidden
        )
        self._last.add_done_callback(partial(self._written, delivery, bool(tell)))

    def _written(self, delivery: Delivery, tell: bool, done: "Future[int]") -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._failed = self._failed or error
        elif tell:
            delivery.notify(self.job.optimization_id)

    async def durable(self) -> None:
        """Wait for all that was written so far; raises `JournalError` where something was not."""
        if self._last is not None:
            await asyncio.wait([_quiet(asyncio.wrap_future(self._last))])
        if self._failed is not None:
            raise self._failed

    async def result(
        self,
        result: OptimizationResult,
        trials: Sequence[TrialPoint],
        baseline: EvaluationReport,
        optimized: EvaluationReport,
        events: Sequence[Event],
    ) -> None:
        """Everything that a finished run leaves, in one commit with its last events."""
        tracker = self.tracker
        if tracker is None:
            return
        comparison, test, entries = result.comparison, self.job.splits.test, tracker.entries
        drafts = await self._part(lambda: entries.result(result))
        drafts += await self._part(lambda: entries.evaluation(test, baseline, optimized, comparison))
        drafts += entries.plots(trials, baseline.mean_score, optimized.mean_score, comparison)
        drafts += await self._model(
            result.program,
            "optimized_model",
            {
                "optimization_id": result.optimization_id,
                "status": result.status,
                "improvement_percentage": result.improvement_percentage,
                "statistical_significance": result.statistical_significance,
                "lm": self.job.lm.model,
                "test_digest": test.digest,
            },
        )
        tags: dict[str, Any] = {
            "optimization_status": result.status,
            "meets_min_improvement": result.meets_threshold,
        }
        if result.warnings:
            tags["warnings"] = "; ".join(result.warnings)
        await self._finish([*await self.stored(drafts), *self._end("FINISHED", tags), *events])

    async def failed(self, message: str, events: Sequence[Event]) -> None:
        await self._last_words(
            [*self._end("FAILED", {"optimization_status": "failed", "error": message}), *events]
        )

    async def cancelled(self, best: Trial | None, events: Sequence[Event]) -> None:
        """Say KILLED, and keep the best candidate so far."""
        words = self._end("KILLED", {"optimization_status": "cancelled"})
        drafts: list[Draft] = []
        if best is not None and self.tracker is not None and not self.ended:
            drafts = await self._model(
                unmanaged(best.program.deepcopy()),
                "best_so_far",
                {"validation_score": best.score, "trial": best.number},
                as_logged_model=False,
            )
        await self._last_words([*words, *events], drafts)

    async def stored(self, drafts: Sequence[Draft]) -> list[TrackingEvent]:
        return await self.tracker.stored(drafts) if self.tracker is not None else []

    def abandon(self) -> None:
        """Give the run up: it can be resumed."""
        if self._home is not None and self._lease is not None:
            self._home[0].abandon(self._lease)

    def problem(self) -> str | None:
        """Why MLflow doesn't take this run at present."""
        return self._home[1].problem(self.job.optimization_id) if self._home else None

    async def _last_words(self, events: Sequence[Event], drafts: Sequence[Draft] = ()) -> None:
        """What is told of a run that ends otherwise; its own error stays the one that is raised."""
        if self._home is None or self._lease is None:
            return
        try:
            await self._finish([*events[:-1], *await self.stored(drafts), events[-1]])
        except JournalError as error:
            self.warn(f"the end of run {self.job.optimization_id} is not in the journal: {error}")
        finally:
            self._home[0].abandon(self._lease)

    async def _finish(self, events: Sequence[Event]) -> None:
        """Write the last events. After them nothing more is said of the run, whatever happens."""
        await self._write(events)
        self.ended = True
        if self._home is not None and self._lease is not None:
            self._home[0].release(self._lease)
        self._lease = None

    async def _write(self, events: Sequence[Event]) -> None:
        assert self._home is not None
        journal, delivery = self._home
        key = self.job.optimization_id
        await journal.write(key, events, lease=self._lease, secrets=self._hidden)
        delivery.notify(key)

    def _end(self, status: Any, tags: dict[str, Any]) -> list[Event]:
        return [RunEnded(status=status), *self._entries(tags)]

    def _entries(self, tags: dict[str, Any]) -> list[Any]:
        return [] if self.tracker is None else list(self.tracker.entries.tags(tags))

    async def _model(
        self, program: Any, name: str, metadata: dict[str, Any], *, as_logged_model: bool = True
    ) -> list[Draft]:
        assert self.tracker is not None
        try:
            return await self.tracker.model_drafts(
                program,
                name,
                metadata,
                program_path=self.job.program_path,
                default_lm=self.job.lm.model,
                as_logged_model=as_logged_model,
            )
        except Exception as error:  # noqa: BLE001 - a result that was paid for is never lost to its logging
            self._not_logged(error)
            return []

    async def _part(self, make: Callable[[], list[Draft]]) -> list[Draft]:
        try:
            return await run_in_thread(make)
        except Exception as error:  # noqa: BLE001 - as above
            self._not_logged(error)
            return []

    def _not_logged(self, error: Exception) -> None:
        told = str(error) if isinstance(error, AgentCoreError) else first_line(error)
        self.warn(f"a part of run {self.job.optimization_id} could not be logged: {told}")

    def _tags(self) -> dict[str, str]:
        tags = {"agentcore.optimization_id": self.job.optimization_id}
        if is_offline(self.job.lm) or is_offline(self.job.prompt_lm):
            tags["agentcore.offline_lm"] = "not a large language model: shows the mechanics"
        return tags


def _quiet(future: "asyncio.Future[int]") -> "asyncio.Future[int]":
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
