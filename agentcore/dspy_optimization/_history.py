"""Results and spend of earlier processes of the same run, read from the journal."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agentcore.data import Example
from agentcore.dspy_optimization._events import (
    BaselineMeasured,
    CandidateProposed,
    ExampleMeasured,
    JobRecorded,
    SpendCounted,
    SpendReserved,
    StepFinished,
    TrialFinished,
    WarningRaised,
)
from agentcore.evaluation import ExampleRecord
from agentcore.journal import Event
from agentcore.lm import Amount, Spend
from agentcore.tracking import RunEnded, RunReopened, RunTaken, program_state

if TYPE_CHECKING:
    import dspy

BASELINE, BASELINE_AGAIN, WINNER = "baseline", "baseline-again", "winner"
TESTED = (BASELINE, BASELINE_AGAIN, WINNER)
"""Evaluations on the test split. `BASELINE_AGAIN` is measured together with the winner."""


def state_digest(program: "dspy.Module") -> str:
    """Digest of the parts of a program that an optimizer may change."""
    text = json.dumps(program_state(program), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


@dataclass
class History:
    """What the journal knows about a run; empty for a new one."""

    job: JobRecorded | None = None
    steps: dict[str, Any] = field(default_factory=dict)
    trials: dict[int, TrialFinished] = field(default_factory=dict)
    spend: dict[str, Spend] = field(default_factory=dict)
    reserved: Amount | None = None
    """What the last process may have spent at most, if that isn't settled."""
    seconds: float = 0.0
    search_seconds: float = 0.0
    warnings: set[str] = field(default_factory=set)
    has_baseline: bool = False
    judged_baseline: Spend | None = None
    """Spend of the metric's own LM calls on the baseline."""
    has_candidates: bool = False
    tokens: list[str] = field(default_factory=list)
    """Of the processes that have resumed the run, in order."""
    ended: bool = False
    """Whether the end of the run was logged to MLflow."""
    _measured: dict[tuple[str, str], dict[str, ExampleRecord]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """Records by evaluation and candidate, then by example."""
    _settled: set[tuple[str, str]] = field(default_factory=set)
    """Evaluations and candidates whose results are final, LM failures included."""

    @property
    def examples(self) -> int:
        """Number of measured examples."""
        return sum(map(len, self._measured.values()))

    @classmethod
    def of(cls, events: Iterable[Event]) -> "History":
        found = cls()
        for event in events:
            found._add(event)
        return found

    def _add(self, event: Event) -> None:
        match event:
            case JobRecorded():
                self.job = event
            case StepFinished():
                self.steps[event.step] = event.value
            case TrialFinished():
                self.trials[event.trial] = event
                self._settle(event.candidate)
            case SpendReserved() | SpendCounted():
                self._account(event)
            case ExampleMeasured():
                record = ExampleRecord(**event.record)
                key = event.evaluation, event.candidate
                self._measured[key][_place(event.evaluation, record.index, record.digest)] = record
                self._settled.discard(key)
                self.spend = {name: Spend(**values) for name, values in event.account.items()}
            case WarningRaised():
                self.warnings.add(event.message)
            case BaselineMeasured():
                self.has_baseline = True
                self.judged_baseline = self.spend.get("judge", Spend())
                self._settled.update(key for key in self._measured if key[0] == BASELINE)
            case CandidateProposed():
                self.has_candidates = True
            case RunTaken():
                self.tokens.append(event.token)
            case RunEnded():
                self.ended = True
            case RunReopened():
                self.ended = False

    def _account(self, event: SpendReserved | SpendCounted) -> None:
        if isinstance(event, SpendReserved):
            self.reserved = Amount(event.calls, event.tokens, event.usd)
            return
        self.spend = {name: Spend(**values) for name, values in event.by_stage.items()}
        self.seconds, self.search_seconds = event.seconds, event.search_seconds
        if event.settled:
            self.reserved = None

    def _settle(self, candidate: str) -> None:
        self._settled.update(key for key in self._measured if key[1] == candidate)

    def measured(self, evaluation: str, candidate: str) -> dict[str, ExampleRecord]:
        """A candidate's results in an evaluation, by example."""
        return dict(self._measured.get((evaluation, candidate), {}))

    def records(
        self, evaluation: str, candidate: str, examples: Sequence[Example]
    ) -> dict[int, ExampleRecord]:
        """A candidate's known results in an evaluation, by index in `examples`.

        Failed examples are retried unless the evaluation, or a trial that used it, has finished: for
        candidates, only LM failures; for the baseline and the winner, all failures.
        """
        key = evaluation, candidate
        found = {}
        for index, item in enumerate(examples):
            record = self._measured.get(key, {}).get(_place(evaluation, index, item.digest))
            if record is None or record.digest != item.digest:
                continue
            again = record.failed if evaluation in TESTED else record.failed == "lm"
            if not again or key in self._settled:
                found[index] = replace(record, index=index)
        return found


def _place(evaluation: str, index: int, digest: str) -> str:
    """An example's key among an evaluation's records: a test split may contain the same example twice."""
    return str(index) if evaluation in TESTED else digest
