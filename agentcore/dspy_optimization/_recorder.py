"""Hands what happened to MLflow. A tracker that fails after the start costs figures there, never the run."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agentcore.dspy_optimization._prepare import Job
from agentcore.dspy_optimization.models import OptimizationResult
from agentcore.dspy_optimization.optimizers import Trial
from agentcore.errors import TrackingError, first_line
from agentcore.evaluation import EvaluationReport
from agentcore.lm import is_offline
from agentcore.tracking import MLflowTracker, TrialPoint

_KILL_SECONDS = 1.0
"""What a cancelled run may still take to say so in MLflow."""


class Recorder:
    """One run in MLflow, or nowhere where `tracker` is None.

    Only `start` raises: a server that is missing from the beginning is the user's to mend before money is
    spent. A later failure of the tracker's becomes a warning, and nothing more is sent.
    """

    def __init__(self, tracker: MLflowTracker | None, job: Job, warn: Callable[[str], None]) -> None:
        self.tracker = tracker
        self.job = job
        self.warn = warn
        self.run_id: str | None = None
        self.trials: list[TrialPoint] = []
        self._queue: asyncio.Queue[TrialPoint | None] = asyncio.Queue()
        self._failed = False
        self._kill_by: float | None = None

    async def start(self) -> None:
        if self.tracker is None:
            return
        self.tracker.secrets.extend(self.job.secrets)
        starting = asyncio.ensure_future(self.tracker.start_run(self.job.request, tags=self._tags()))
        try:
            self.run_id = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The run may be made already: without its id it would stay RUNNING for ever.
            self._kill_by = asyncio.get_running_loop().time() + _KILL_SECONDS
            done, _ = await asyncio.wait({starting}, timeout=_KILL_SECONDS)
            self.run_id = starting.result() if done and not starting.exception() else None
            raise
        await self._send(lambda tracker, run: tracker.log_params(self.job.params(), run_id=run))
        await self._send(
            lambda tracker, run: tracker.log_training_data(self.job.data, self.job.splits, run_id=run)
        )

    def trial(self, trial: Trial, best: float) -> None:
        """Queue a trial; `follow_trials` sends it."""
        point = TrialPoint(trial.number, trial.score, best, trial.full)
        self.trials.append(point)
        self._queue.put_nowait(point)

    def no_more_trials(self) -> None:
        self._queue.put_nowait(None)

    async def follow_trials(self) -> None:
        """Send trials as they finish, until `no_more_trials`."""
        while (point := await self._queue.get()) is not None:
            trial, score, best, _ = point
            await self._send(lambda tracker, run: tracker.log_trial(trial, score, best, run_id=run))  # noqa: B023

    async def result(
        self, result: OptimizationResult, baseline: EvaluationReport, optimized: EvaluationReport
    ) -> None:
        comparison, test = result.comparison, self.job.splits.test
        means = baseline.mean_score, optimized.mean_score
        await self._send(lambda tracker, run: tracker.log_result(result, run_id=run))
        await self._send(
            lambda tracker, run: tracker.log_evaluation(test, baseline, optimized, comparison, run_id=run)
        )
        await self._send(lambda tracker, run: tracker.log_plots(self.trials, *means, comparison, run_id=run))
        await self._send(
            lambda tracker, run: tracker.log_model_artifact(
                result.program,
                metadata={
                    "optimization_id": result.optimization_id,
                    "status": result.status,
                    "improvement_percentage": result.improvement_percentage,
                    "statistical_significance": result.statistical_significance,
                    "lm": self.job.lm.model,
                    "test_digest": test.digest,
                },
                program_path=self.job.program_path,
                default_lm=self.job.lm.model,
                run_id=run,
            )
        )
        tags: dict[str, Any] = {
            "optimization_status": result.status,
            "meets_min_improvement": result.meets_threshold,
        }
        if result.warnings:
            tags["warnings"] = "; ".join(result.warnings)
        await self._end("FINISHED", tags)

    async def failed(self, message: str) -> None:
        await self._end("FAILED", {"optimization_status": "failed", "error": message})

    async def cancelled(self, best: Trial | None) -> None:
        """Say KILLED first, then keep trials and the best candidate, within what a Ctrl-C may take."""
        try:
            now = asyncio.get_running_loop().time()
            async with asyncio.timeout_at(self._kill_by or now + _KILL_SECONDS):
                await self._end("KILLED", {"optimization_status": "cancelled"})
                if best is not None:
                    await self._send(
                        lambda tracker, run: tracker.log_model_artifact(
                            best.program,
                            "best_so_far",
                            metadata={"validation_score": best.score, "trial": best.number},
                            program_path=self.job.program_path,
                            as_logged_model=False,
                            run_id=run,
                        )
                    )
                self.no_more_trials()
                await self.follow_trials()
        except TimeoutError:
            self.warn(f"MLflow did not take all of run {self.run_id} within {_KILL_SECONDS} s")

    async def _end(self, status: str, tags: dict[str, Any]) -> None:
        await self._send(lambda tracker, run: tracker.end_run(status, run_id=run))
        await self._send(lambda tracker, run: tracker.set_tags(tags, run_id=run))

    def _tags(self) -> dict[str, str]:
        tags = {"agentcore.optimization_id": self.job.optimization_id}
        if is_offline(self.job.lm) or is_offline(self.job.prompt_lm):
            tags["agentcore.offline_lm"] = "not a large language model: shows the mechanics"
        return tags

    async def _send(self, work: Callable[[MLflowTracker, str], Awaitable[Any]]) -> None:
        if self.tracker is None or self.run_id is None or self._failed:
            return
        try:
            await work(self.tracker, self.run_id)
        except TrackingError as error:
            self._failed = True
            self.warn(f"tracking stopped, figures of run {self.run_id} are incomplete: {error}")
        except Exception as error:  # noqa: BLE001 - a result that was paid for is never lost to its logging
            self.warn(f"a part of run {self.run_id} could not be logged: {first_line(error)}")
