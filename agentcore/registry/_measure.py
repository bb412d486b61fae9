"""Measures the programs of a look on its sealed examples: interleaved, in random order, without a cache."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import dspy

from agentcore.data import Example
from agentcore.errors import LMUnavailableError
from agentcore.evaluation import (
    EvaluationLimits,
    EvaluationReport,
    ExampleRecord,
    Local,
    ScoredMetric,
    evaluate,
    first_error,
    resolve_metric,
    tolerable,
)
from agentcore.lm import uncached
from agentcore.registry._criteria import Side
from agentcore.registry._events import LookMeasured
from agentcore.registry._events import Side as SideName

if TYPE_CHECKING:
    from agentcore.registry._policy import GatePolicy

_LM_FAILURES = 0.1
"""Share of the examples that the LM may fail on; with more, the look is interrupted and can be resumed."""


@dataclass
class Measurement:
    """One look's measurement.

    Args:
        programs: by side.
        order: decides the random order of the examples.
        known: results of an interrupted measurement.
        tell: called with each new result.
    """

    programs: Mapping[SideName, "dspy.Module"]
    examples: Sequence[Example]
    metric: ScoredMetric
    policy: "GatePolicy"
    lm: "dspy.BaseLM"
    look: str
    max_concurrency: int
    known: Sequence[LookMeasured] = ()
    tell: Callable[[LookMeasured], None] = lambda event: None
    _extra: dict[tuple[SideName, int], dict[str, list[float]]] = field(default_factory=dict)

    async def run(self) -> dict[SideName, Side]:
        """Measure all programs; examples are reported in their own order.

        Raises:
            LMUnavailableError: the LM failed on more than a tenth of the examples of a program.
            MetricError: a metric raised, or did not return a score in 0–1.
        """
        self.shuffled = sorted(
            self.examples, key=lambda item: hashlib.sha256(f"{self.look}:{item.digest}".encode()).digest()
        )
        self.gate = asyncio.Semaphore(self.max_concurrency)
        adapter = dspy.settings.adapter
        failed: BaseException | None = None
        with uncached(), dspy.context(lm=self.lm, adapter=adapter, allow_tool_async_sync_conversion=True):
            await self._warm_up()
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {side: group.create_task(self._side(side)) for side in self.programs}
            except BaseExceptionGroup as errors:
                failed = first_error(errors)
        if failed is not None:
            raise failed
        return {side: task.result() for side, task in tasks.items()}

    async def _warm_up(self) -> None:
        """Run each program once, unrecorded: the first call pays for connections and for loading a model."""
        if self.known:
            return
        for program in self.programs.values():
            with dspy.context(lm=self.lm):
                runner = await Local().prepare(program)
                try:
                    await runner(self.shuffled[0].inputs)
                except Exception:  # noqa: BLE001, S112 - the measurement reports what fails
                    continue

    async def _side(self, side: SideName) -> Side:
        mine = {event.record["index"]: event for event in self.known if event.side == side}
        digests = {item.digest: position for position, item in enumerate(self.shuffled)}
        known = {
            position: replace(ExampleRecord(**event.record), index=position)
            for event in mine.values()
            if (position := digests.get(event.record["digest"])) is not None
            and event.record["failed"] != "lm"
        }
        extras = {event.record["digest"]: event.extra for event in mine.values()}

        def told(record: ExampleRecord) -> None:
            extra = self._means(side, record)
            extras[record.digest] = extra
            self.tell(LookMeasured(look=self.look, side=side, record=record.as_dict(), extra=extra))

        limits = EvaluationLimits(
            self.max_concurrency,
            only_lm_failures=True,
            tolerated=tolerable(_LM_FAILURES, len(self.shuffled)),
            gate=self.gate,
        )
        report = await evaluate(
            self.programs[side],
            self.shuffled,
            self._scored(side),
            lm=self.lm,
            limits=limits,
            on_record=told,
            known=known,
            repeats=self.policy.repeats,
        )
        failed, runs = (
            sum(getattr(item, name) for item in report.records) for name in ("lm_failures", "draws")
        )
        if failed > tolerable(_LM_FAILURES, runs):
            raise LMUnavailableError(
                f"the language model failed {failed} of {runs} runs of the {side}: the look is paid for, and "
                "promoting the same run again goes on with it"
            )
        own_order = {item.digest: number for number, item in enumerate(self.examples)}
        records = sorted(
            (replace(record, index=own_order[record.digest]) for record in report.records),
            key=lambda record: record.index,
        )
        return Side(
            EvaluationReport(tuple(records), report.success_threshold),
            {
                name: [extras.get(record.digest, {}).get(name) for record in records]
                for name in self.policy.metrics
            },
        )

    def _scored(self, side: SideName) -> ScoredMetric:
        """The metric, which also computes the policy's further metrics."""
        further = {name: resolve_metric(path) for name, path in self.policy.metrics.items()}
        if not further:
            return self.metric
        positions = {id(item.dspy): position for position, item in enumerate(self.shuffled)}

        async def both(example: Any, prediction: Any) -> Any:
            for name, metric in further.items():
                score = await metric.score(example, prediction)
                draws = self._extra.setdefault((side, positions[id(example)]), {})
                draws.setdefault(name, []).append(score.value)
            return (await self.metric.score(example, prediction)).value

        return ScoredMetric(both, self.metric.success_threshold)

    def _means(self, side: SideName, record: ExampleRecord) -> dict[str, float | None]:
        found = self._extra.get((side, record.index), {})
        if record.failed == "lm":
            return dict.fromkeys(self.policy.metrics)
        # A program's failure scores 0 in every metric.
        return {name: sum(found.get(name, ())) / record.answered for name in self.policy.metrics}
