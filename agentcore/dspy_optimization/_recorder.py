"""Hands what happened to MLflow. A tracker that fails after the start costs figures there, never the run."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agentcore.dspy_optimization._prepare import Job
from agentcore.dspy_optimization.models import OptimizationResult
from agentcore.dspy_optimization.optimizers import Trial
from agentcore.errors import TrackingError
from agentcore.evaluation import EvaluationReport
from agentcore.lm import is_offline
from agentcore.tracking import MLflowTracker
from agentcore.tracking._plots import TrialPoint

_KILL_SECONDS = 1.5
"""What a cancelled run may still take to say so in MLflow."""


class Recorder:
    """One run in MLflow, or nowhere where `tracker` is None.

    Only `start` raises: a server that is missing from the beginning is the user's to mend before money is
    spent. Later failures are kept in `failure`, and nothing more is sent.
    """

    def __init__(self, tracker: MLflowTracker | None, job: Job, warn: Callable[[str], None]) -> None:
        self.tracker = tracker
        self.job = job
        self.warn = warn
        self.run_id: str | None = None
        self.trials: list[TrialPoint] = []
        self._queue: asyncio.Queue[TrialPoint | None] = asyncio.Queue()
        self._failed = False

    async def start(self) -> None:
        if self.tracker is None:
            return
        self.tracker.secrets.extend(self.job.secrets)
        self.run_id = await self.tracker.start_run(self.job.request, tags=self._tags())
        await self._send(lambda tracker: tracker.log_params(self.job.params()))
        await self._send(lambda tracker: tracker.log_training_data(self.job.data, self.job.splits))

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
            await self._send(lambda tracker: tracker.log_trial(trial, score, best))  # noqa: B023 - awaited here

    async def result(
        self, result: OptimizationResult, baseline: EvaluationReport, optimized: EvaluationReport
    ) -> None:
        comparison = result.comparison
        await self._send(lambda tracker: tracker.log_result(result))
        await self._send(
            lambda tracker: tracker.log_evaluation(self.job.splits.test, baseline, optimized, comparison)
        )
        await self._send(
            lambda tracker: tracker.log_plots(
                self.trials, baseline.mean_score, optimized.mean_score, comparison
            )
        )
        await self._send(
            lambda tracker: tracker.log_model_artifact(
                result.program,
                metadata={
                    "optimization_id": result.optimization_id,
                    "status": result.status,
                    "improvement_percentage": result.improvement_percentage,
                    "statistical_significance": result.statistical_significance,
                    "lm": self.job.lm.model,
                    "test_digest": self.job.splits.test.digest,
                },
                program_path=self.job.program_path,
                default_lm=self.job.lm.model,
            )
        )
        await self._send(
            lambda tracker: tracker.set_tags(
                {
                    "optimization_status": result.status,
                    "meets_min_improvement": result.meets_threshold,
                    **({"warnings": "; ".join(result.warnings)} if result.warnings else {}),
                }
            )
        )
        await self.end("FINISHED")

    async def failed(self, error: BaseException) -> None:
        await self._send(
            lambda tracker: tracker.set_tags({"optimization_status": "failed", "error": str(error)})
        )
        await self.end("FAILED")

    async def cancelled(self, best: Trial | None) -> None:
        """Say KILLED first, then keep the best candidate so far, within what a Ctrl-C may take."""
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                if best is not None:
                    await self._send(
                        lambda tracker: tracker.log_model_artifact(
                            best.program,
                            "best_so_far",
                            metadata={"validation_score": best.score, "trial": best.number},
                            program_path=self.job.program_path,
                            as_logged_model=False,
                        )
                    )
                await self._send(lambda tracker: tracker.set_tags({"optimization_status": "cancelled"}))
                await self.end("KILLED")
        except TimeoutError:
            self.warn(f"MLflow did not take the end of run {self.run_id} within {_KILL_SECONDS} s")

    async def end(self, status: str) -> None:
        await self._send(lambda tracker: tracker.end_run(status))

    def _tags(self) -> dict[str, str]:
        tags = {"agentcore.optimization_id": self.job.optimization_id}
        if is_offline(self.job.lm) or is_offline(self.job.prompt_lm):
            tags["agentcore.offline_lm"] = "not a large language model: shows the mechanics"
        return tags

    async def _send(self, work: Callable[[MLflowTracker], Awaitable[Any]]) -> None:
        if self.tracker is None or self._failed:
            return
        try:
            await work(self.tracker)
        except TrackingError as error:
            self._failed = True
            self.warn(f"tracking stopped, figures of run {self.run_id} are incomplete: {error}")
