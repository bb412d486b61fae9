"""`RunRecord`: writes the start and the end of a run to the journal, for delivery to MLflow."""

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from agentcore._naming import local_id
from agentcore._redaction import Redactor, first_line
from agentcore._threads import run_in_thread
from agentcore.dspy_optimization._entries import ORIGINAL_MODEL, TRAINING_DATA, OptimizationEntries
from agentcore.dspy_optimization._events import STREAM_KIND, JobRecorded, ResultRecorded, SpendReserved
from agentcore.dspy_optimization._history import state_digest
from agentcore.dspy_optimization._job import Job
from agentcore.dspy_optimization._log import RunLog
from agentcore.dspy_optimization._search import Search
from agentcore.dspy_optimization._summary import markdown
from agentcore.dspy_optimization.models import OptimizationResult
from agentcore.dspy_optimization.optimizers import Trial
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import AgentCoreError, JournalError, TrackingError
from agentcore.evaluation import EvaluationReport
from agentcore.journal import Event, Lease
from agentcore.lm import Amount, Announce, is_offline, unmanaged
from agentcore.tracking import (
    ArtifactLogged,
    Draft,
    RunEnded,
    RunReopened,
    RunStatus,
    RunTaken,
    RunWriter,
    TrackingEvent,
    model_drafts,
)

if TYPE_CHECKING:
    import dspy


class RunRecord:
    """One run in the journal; does nothing if `tracker` is None.

    Args:
        lease: of a resumed run.

    Attributes:
        ended: whether the run's end is in the journal.
    """

    def __init__(self, job: Job, tracker: MLflowTracker | None, log: RunLog, lease: Lease | None) -> None:
        self.job = job
        self.tracker = tracker
        self.log = log
        self.ended = False
        self._lease = lease
        self._writer: RunWriter | None = None

    @property
    def local_id(self) -> str | None:
        return local_id(self.job.optimization_id) if self.tracker is not None else None

    @property
    def patience(self) -> float:
        """Seconds after its start that a run waits for its MLflow id: a local database may still be made."""
        local = self.tracker is not None and self.tracker.config.tracking_uri.startswith("sqlite:")
        return 30.0 if local else 2.0

    async def run_id(self, seconds: float) -> str | None:
        """MLflow's run id if it is known within `seconds`, else the local one."""
        if self._writer is None:
            return None
        delivery, key = self._writer.delivery, self._writer.stream
        try:
            return await run_in_thread(lambda: delivery.wait_for_run(key, seconds)) or self.local_id
        except (TrackingError, JournalError):
            return self.local_id  # the result's warnings say why

    def problem(self) -> str | None:
        """Why this run is not reaching MLflow at the moment, if it isn't."""
        return self._writer.delivery.problem(self._writer.stream) if self._writer else None

    async def start(self, started: Event) -> None:
        """Create the run in the journal, or reopen it; raises `JournalError` if that fails."""
        if self.tracker is None:
            return
        self.tracker.redactor.add(self.job.secrets)
        journal, delivery = await self.tracker.opened()
        content = Redactor(self.job.secrets).for_content()
        self._writer = writer = RunWriter(
            journal, delivery, self.job.optimization_id, lease=self._lease, redactor=content
        )
        if self.log.history.job is not None:
            history = self.log.history
            taken = RunTaken(token=uuid.uuid4().hex, previous=history.tokens[-1] if history.tokens else None)
            reopened: list[TrackingEvent] = [RunReopened()] if history.ended else []
            await writer.write(
                [started, taken, *reopened, *self._tags({"optimization_status": "running", "error": ""})]
            )
        else:
            await self._create(self.tracker, writer, started)
        self.log.writer = writer

    async def _create(self, tracker: MLflowTracker, writer: RunWriter, started: Event) -> None:
        key, job, entries = self.job.optimization_id, self.job, tracker.entries
        request = job.request
        tags = {**job.tags, **request.run_tags(), **self._first_tags()}
        created = entries.run_created(tracker.config, key, request.run_name(), tags)
        drafts = await run_in_thread(
            lambda: [*entries.params(job.params()), *entries.training_data(job.data, job.splits)]
        )
        first = await writer.stored([created, *drafts])
        (data,) = [
            entry.sha256
            for entry in first
            if isinstance(entry, ArtifactLogged) and entry.path == TRAINING_DATA
        ]
        recorded = JobRecorded(optimization_id=key, spec=await run_in_thread(job.spec), data=data)
        # One commit: a run without its first events could be neither delivered nor resumed.
        await writer.create(STREAM_KIND, created.name, [recorded, started, *first], work=True)

    async def result(
        self,
        result: OptimizationResult,
        baseline: EvaluationReport,
        optimized: EvaluationReport,
        search: Search,
        events: Sequence[Event],
    ) -> None:
        """Write the results of a finished run and its last events, in one commit."""
        tracker, writer = self.tracker, self._writer
        if tracker is None or writer is None:
            return
        comparison, test, entries = result.comparison, self.job.splits.test, tracker.entries
        drafts = await self._part(lambda: entries.result(result))
        drafts += await self._part(lambda: entries.evaluation(test, baseline, optimized))
        drafts += await self._part(lambda: self._validation(entries, result, search))
        drafts += entries.plots(search.points, baseline.mean_score, optimized.mean_score, comparison)
        drafts += await self._model(
            tracker,
            result.program,
            "optimized_model",
            {
                "optimization_id": result.optimization_id,
                "status": result.status,
                "verdict": result.verdict,
                "improvement_percentage": result.improvement_percentage,
                "statistical_significance": result.statistical_significance,
                "lm": self.job.lm.model,
                "test_digest": test.digest,
            },
        )
        if result.winning_optimizer is not None:
            drafts += await self._model(
                tracker,
                self.job.program,
                ORIGINAL_MODEL,
                {"is": "the program before the optimization"},
                as_logged_model=False,
            )
        tags: dict[str, Any] = {
            "optimization_status": result.status,
            "verdict": result.verdict,
            "meets_min_improvement": result.meets_threshold,
            "winning_optimizer": result.winning_optimizer or "none: the original program was kept",
            "examples_fixed": len(result.comparison.fixed),
            "examples_broken": len(result.comparison.broken),
            "mlflow.note.content": markdown(result),
        }
        if result.spend.cost_usd is None:
            tags["cost_usd"] = "unknown: a model has no price"
        if result.warnings:
            tags["warnings"] = "; ".join(result.warnings)
        recorded = self.log.event(ResultRecorded, result=result.model_dump(mode="json"))
        await self._finish([*await writer.stored(drafts), recorded, *self._end("FINISHED", tags), *events])

    def _validation(
        self, entries: OptimizationEntries, result: OptimizationResult, search: Search
    ) -> list[Draft]:
        job = self.job
        before = search.results.get(state_digest(job.program), {})
        after = search.results.get(state_digest(result.program), {})
        return entries.validation(job.splits.validation, before, after, job.metric.success_threshold)

    async def failed(self, message: str, events: Sequence[Event]) -> None:
        end = self._end("FAILED", {"optimization_status": "failed", "error": message})
        await self._finish_anyway([*end, *events])

    async def cancelled(self, best: Trial | None, events: Sequence[Event]) -> None:
        """Mark the run KILLED, and keep the best candidate so far."""
        drafts: list[Draft] = []
        if best is not None and self.tracker is not None and not self.ended:
            drafts = await self._model(
                self.tracker,
                unmanaged(best.program.deepcopy()),
                "best_so_far",
                {"validation_score": best.score, "trial": best.number},
                as_logged_model=False,
            )
        end = self._end("KILLED", {"optimization_status": "cancelled"})
        await self._finish_anyway([*end, *events], drafts)

    def announcer(self) -> Announce | None:
        """Writes what may be spent next to the journal, from any thread; None without tracking."""
        writer = self._writer
        if writer is None:
            return None

        def announce(most: Amount) -> "Future[Any]":
            event = self.log.event(
                SpendReserved, calls=most.calls or 0, tokens=most.tokens or 0, usd=most.usd or 0
            )
            return writer.append([event])

        return announce

    def abandon(self) -> None:
        """Release an unfinished run, so that it can be resumed."""
        if self._writer is not None:
            self._writer.abandon()

    async def _finish_anyway(self, events: Sequence[Event], drafts: Sequence[Draft] = ()) -> None:
        """Write the last events of a failed or cancelled run, without masking its error."""
        writer = self._writer
        if writer is None or writer.lease is None:
            return
        try:
            await self._finish([*events[:-1], *await writer.stored(drafts), events[-1]])
        except JournalError as error:
            self.log.writer = None  # which would raise again, in place of the run's own error
            self.log.warn(f"the end of run {self.job.optimization_id} could not be written: {error}")
        finally:
            writer.abandon()

    async def _finish(self, events: Sequence[Event]) -> None:
        """Write the last events and release the run."""
        assert self._writer is not None
        await self._writer.write(events)
        self.ended = True
        self._writer.release()

    def _end(self, status: RunStatus, tags: dict[str, Any]) -> list[Event]:
        return [RunEnded(status=status), *self._tags(tags)]

    def _tags(self, tags: dict[str, Any]) -> list[Any]:
        return [] if self.tracker is None else list(self.tracker.entries.tags(tags))

    def _first_tags(self) -> dict[str, str]:
        tags = {}
        if self.job.commit is not None:
            tags["mlflow.source.git.commit"] = self.job.commit.removesuffix("-dirty")
        if is_offline(self.job.lm) or is_offline(self.job.prompt_lm):
            tags["agentcore.offline_lm"] = "not a large language model: shows the mechanics"
        return tags

    async def _model(
        self,
        tracker: MLflowTracker,
        program: "dspy.Module",
        name: str,
        metadata: dict[str, Any],
        *,
        as_logged_model: bool = True,
    ) -> list[Draft]:
        kind = type(program)
        if kind.__module__ == "__main__" and as_logged_model:
            self.log.warn(
                f"{kind.__qualname__} is defined in a script or notebook: its model loads only with "
                f"program={kind.__qualname__}(), and MLflow can't serve it unless you move the class to a "
                "module"
            )
        try:
            return await model_drafts(
                tracker.entries,
                program,
                name,
                metadata,
                program_path=self.job.program_path,
                default_lm=self.job.lm.model,
                as_logged_model=as_logged_model,
                attributes=self.job.attributes,
                example=self.job.splits.train.examples[0].inputs,
            )
        except Exception as error:  # noqa: BLE001 - logging must not lose a result that was paid for
            self._not_logged(error)
            return []

    async def _part(self, make: Callable[[], list[Draft]]) -> list[Draft]:
        try:
            return await run_in_thread(make)
        except Exception as error:  # noqa: BLE001 - as above
            self._not_logged(error)
            return []

    def _not_logged(self, error: Exception) -> None:
        message = str(error) if isinstance(error, AgentCoreError) else first_line(error)
        self.log.warn(f"part of run {self.job.optimization_id} could not be logged: {message}")
