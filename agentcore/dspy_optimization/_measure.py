"""Measures the original program and the winner on the test split."""

import asyncio
from collections.abc import Mapping

import dspy

from agentcore._redaction import first_line
from agentcore.dspy_optimization._budget import Budget
from agentcore.dspy_optimization._evaluator import Evaluator
from agentcore.dspy_optimization._history import BASELINE, BASELINE_AGAIN, WINNER, state_digest
from agentcore.dspy_optimization._job import Job
from agentcore.dspy_optimization._log import RunLog
from agentcore.errors import AgentCoreError, LMUnavailableError
from agentcore.evaluation import EvaluationReport, ExampleRecord, first_error
from agentcore.lm import Guard, SearchStopped, described, uncached

_NOBODY_THERE = (dspy.LMTransportError, dspy.LMAuthError, dspy.LMBillingError, dspy.LMUnsupportedModelError)
"""Failures, after all retries, that every other call would share."""


class TestMeasurement:
    """The test split of one run, measured with the original program and with the winner.

    If cost or latency is an objective, both are measured at the end, at the same time and without a cache:
    figures taken at different times differ by the provider's load.
    """

    __test__ = False  # not a test, whatever its name

    def __init__(self, job: Job, evaluator: Evaluator, budget: Budget, log: RunLog) -> None:
        self.job = job
        self.evaluator = evaluator
        self.budget = budget
        self.log = log
        self._asked_before = self._asked()

    async def baseline(self) -> EvaluationReport:
        """Measure the original program.

        Raises:
            ConfigurationError: the caps don't cover it.
        """
        self.log.stage(BASELINE, len(self.job.splits.test))
        await self._warm_up(BASELINE, self.job.program)
        report, stopped = await self._measure(BASELINE, self.job.program)
        if stopped is not None:
            raise self.budget.too_little(
                f"the baseline alone needs more, on {len(self.job.splits.test)} examples"
            )
        return report

    async def winner(
        self, program: "dspy.Module", baseline: EvaluationReport
    ) -> tuple[EvaluationReport, EvaluationReport, bool]:
        """Measure the winner on as much of the split as the caps allow.

        Returns:
            Both reports over the same examples, empty if there are none, and whether that is all of them.
        """
        sides = 2 if self.job.interleaved else 1
        self.log.stage(WINNER, sides * len(self.job.splits.test))
        await self._warm_up(WINNER, program)
        if not self.job.interleaved:
            optimized, stopped = await self._measure(WINNER, program)
        else:
            (baseline, first), (optimized, second) = await self._both(program)
            stopped = first or second
        if stopped is None:
            return baseline, optimized, True
        common = {record.index for record in baseline.records} & {
            record.index for record in optimized.records
        }
        total = len(self.job.splits.test)
        scope = "the figures cover only these" if common else "kept the original program"
        self.log.warn(
            f"{self.budget.limit(stopped.reason)} was reached while measuring the winner, after "
            f"{len(common)} of {total} test examples: {scope}"
        )
        return _over(baseline, common), _over(optimized, common), False

    async def _both(self, program: "dspy.Module") -> list[tuple[EvaluationReport, SearchStopped | None]]:
        """Both programs at once, sharing the concurrency limit, which admits them in turn."""
        failed: BaseException | None = None
        with uncached():
            try:
                async with asyncio.TaskGroup() as group:
                    sides = [
                        group.create_task(self._measure(BASELINE_AGAIN, self.job.program)),
                        group.create_task(self._measure(WINNER, program)),
                    ]
            except BaseExceptionGroup as errors:
                failed = first_error(errors)
        if failed is not None:
            raise failed
        return [side.result() for side in sides]

    async def _measure(
        self, evaluation: str, program: "dspy.Module"
    ) -> tuple[EvaluationReport, SearchStopped | None]:
        """Evaluate a program; if a cap stops that, what was measured, and why it stopped."""
        test, measured = self.job.splits.test, dict[int, ExampleRecord]()
        # The guard stops the threads of synchronous programs, which cancellation can't reach.
        guard = Guard(outage_after=None)
        candidate = state_digest(program)
        known = self.log.history.records(evaluation, candidate, test.examples)
        stage = BASELINE if evaluation == BASELINE_AGAIN else evaluation
        try:
            with self.job.context(), self.log.progress.meter.stage(stage), guard.watching():
                report = await self.evaluator.measure(
                    evaluation,
                    program,
                    test,
                    known,
                    candidate=candidate,
                    measured=measured,
                    repeats=self.job.repeats,
                )
                return report, None
        except SearchStopped as stopped:
            if isinstance(stopped.error, AgentCoreError):
                raise stopped.error from None
            return self._part({**known, **measured}), stopped
        finally:
            guard.stop("cancelled")

    def _part(self, measured: Mapping[int, ExampleRecord]) -> EvaluationReport:
        records = sorted(measured.values(), key=lambda record: record.index)
        return EvaluationReport(tuple(records), self.job.metric.success_threshold)

    def _asked(self) -> int:
        spend = self.log.progress.meter.total
        return spend.calls + spend.cache_hits

    async def _warm_up(self, evaluation: str, program: "dspy.Module") -> None:
        """Run the program once, unrecorded, before the first measurement in this process: it pays for
        imports, connections and a model that has to be loaded, which aren't the program's latency."""
        test, candidate = self.job.splits.test, state_digest(program)
        known = self.log.history.records(evaluation, candidate, test.examples)
        warm = self._asked() > self._asked_before
        if warm or len(known) == len(test) or not self.budget.affords_warm_up():
            return
        guard = Guard(outage_after=None)
        example = self.job.splits.train.examples[0]
        try:
            with self.job.context(), self.log.progress.meter.stage("warmup"), guard.watching():
                runner = await self.evaluator.place.prepare(program)
                await runner(example.inputs)
        except AgentCoreError:
            raise
        except SearchStopped as stopped:
            if isinstance(stopped.error, AgentCoreError):
                raise stopped.error from None
        except _NOBODY_THERE as error:
            raise LMUnavailableError(
                f"the language model failed ({described(self.job.lm)}): "
                f"{first_line(error, secrets=self.job.secrets)}. Check its address, key and name"
            ) from None
        except Exception:  # noqa: BLE001, S110 - the measurement reports what fails
            pass
        finally:
            guard.stop("cancelled")


def _over(report: EvaluationReport, indices: set[int]) -> EvaluationReport:
    return EvaluationReport(
        tuple(record for record in report.records if record.index in indices), report.success_threshold
    )
