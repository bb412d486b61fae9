"""Evaluates programs for one run: reuses known results and logs each new one immediately."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from agentcore._threads import run_in_thread
from agentcore.data import Example
from agentcore.dspy_optimization._budget import Budget
from agentcore.dspy_optimization._events import ExampleMeasured
from agentcore.dspy_optimization._history import TESTED, state_digest
from agentcore.dspy_optimization._log import RunLog
from agentcore.evaluation import (
    MAX_LM_FAILURES,
    EvaluationLimits,
    EvaluationReport,
    ExampleRecord,
    Local,
    Place,
    ScoredMetric,
    evaluate,
    tolerable,
)
from agentcore.lm import Guard

if TYPE_CHECKING:
    import dspy

SEARCH = "search"
"""The evaluation whose results are cached by (candidate, example)."""


class Evaluator:
    """Runs programs over examples under the run's limits.

    Attributes:
        gate: the run's concurrency limit, held while a program or a proposal runs.
        place: where programs run.
    """

    def __init__(
        self, metric: ScoredMetric, lm: "dspy.BaseLM", limits: EvaluationLimits, budget: Budget, log: RunLog
    ) -> None:
        self.metric = metric
        self.lm = lm
        self.gate = asyncio.Semaphore(limits.max_concurrency)
        self.limits = replace(limits, gate=self.gate)
        self.budget = budget
        self.log = log
        self.place: Place = Local()

    async def measure(
        self,
        evaluation: str,
        program: "dspy.Module",
        examples: Sequence[Example],
        known: Mapping[int, ExampleRecord],
        *,
        candidate: str,
        tolerated: int | None = None,
        measured: dict[int, ExampleRecord] | None = None,
        repeats: int = 1,
    ) -> EvaluationReport:
        """Evaluate the examples without a known result, writing each result to the journal as it arrives.

        Args:
            candidate: digest of the program's state.
            tolerated: for a candidate, how many examples the LM may fail on.
            measured: receives each record by index, even if the evaluation is stopped.
            repeats: see `evaluate`.
        """
        progress = self.log.progress
        progress.done += len(known)

        def count(record: ExampleRecord) -> None:
            progress.done += 1
            if measured is not None:
                measured[record.index] = record
            if evaluation not in TESTED:
                self.budget.learn(candidate, record)
            self.log.emit(
                ExampleMeasured,
                evaluation=evaluation,
                candidate=candidate,
                record=record.as_dict(),
                account=self.log.spend_by_stage(),
            )

        report = await evaluate(
            program,
            examples,
            self.metric,
            lm=self.lm,
            limits=replace(self.limits, only_lm_failures=tolerated is not None, tolerated=tolerated),
            on_record=count,
            known=known,
            judging=lambda: progress.meter.stage("judge"),
            place=self.place,
            repeats=repeats,
        )
        self.budget.control.check()
        await self.log.durable()
        return report


class Deadline:
    """Stops a search when its time is up. The clock starts at the first result not in the journal."""

    def __init__(self, guard: Guard, seconds: float) -> None:
        self._guard = guard
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._guard.stop, "time_limit")

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class CandidateEvaluator:
    """Evaluates the candidates of a search, caching results by candidate and example.

    Args:
        validation_size: the most examples a candidate is scored on; the LM may fail on `max_error_rate` of
            them, over all evaluations of the candidate.
    """

    def __init__(self, evaluator: Evaluator, deadline: Deadline, validation_size: int) -> None:
        self._evaluator = evaluator
        self._deadline = deadline
        share = min(evaluator.limits.max_error_rate, MAX_LM_FAILURES)
        self._allowed = tolerable(share, validation_size)
        self._results: defaultdict[tuple[str, str], dict[str, ExampleRecord]] = defaultdict(dict)
        """By evaluation and candidate, then by example."""

    @property
    def gate(self) -> asyncio.Semaphore:
        return self._evaluator.gate

    @property
    def place(self) -> Place:
        return self._evaluator.place

    @property
    def max_concurrency(self) -> int:
        return self._evaluator.limits.max_concurrency

    def results(self, candidate: str) -> dict[str, ExampleRecord]:
        """The known results of a candidate, by example."""
        known = self._evaluator.log.history.measured(SEARCH, candidate)
        return {**known, **self._results[SEARCH, candidate]}

    async def evaluate(
        self, program: "dspy.Module", examples: Sequence[Example], evaluation: str = SEARCH
    ) -> EvaluationReport:
        log = self._evaluator.log
        candidate = await run_in_thread(lambda: state_digest(program))
        known = log.history.records(evaluation, candidate, examples)
        results = self._results[evaluation, candidate]
        for index, item in enumerate(examples):
            record = results.get(item.digest)
            if record is not None:
                known[index] = replace(record, index=index)
        if len(known) < len(examples):
            self._deadline.start()
        progress = log.progress
        if progress.done >= progress.total:
            progress.done = progress.total = 0
        progress.total += len(examples)
        failed = sum(record.failed == "lm" for record in results.values())
        report = await self._evaluator.measure(
            evaluation,
            program,
            examples,
            known,
            candidate=candidate,
            tolerated=max(0, self._allowed - failed),
        )
        results.update((record.digest, record) for record in report.records)
        return report
