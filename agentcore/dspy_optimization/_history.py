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
    StepFinished,
    TrialFinished,
    WarningRaised,
)
from agentcore.evaluation import ExampleRecord
from agentcore.journal import Event
from agentcore.lm import Spend
from agentcore.tracking import RunEnded, RunReopened, program_state

if TYPE_CHECKING:
    import dspy

BASELINE, WINNER = "baseline", "winner"


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
    seconds: float = 0.0
    search_seconds: float = 0.0
    warnings: set[str] = field(default_factory=set)
    has_baseline: bool = False
    judged_baseline: Spend | None = None
    """Spend of the metric's own LM calls on the baseline."""
    has_candidates: bool = False
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
            case SpendCounted():
                self.spend = {name: Spend(**values) for name, values in event.by_stage.items()}
                self.seconds, self.search_seconds = event.seconds, event.search_seconds
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
            case RunEnded():
                self.ended = True
            case RunReopened():
                self.ended = False

    def _settle(self, candidate: str) -> None:
        self._settled.update(key for key in self._measured if key[1] == candidate)

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
            again = record.failed if evaluation in (BASELINE, WINNER) else record.failed == "lm"
            if not again or key in self._settled:
                found[index] = replace(record, index=index)
        return found


def _place(evaluation: str, index: int, digest: str) -> str:
    """An example's key among an evaluation's records: a test split may contain the same example twice."""
    return str(index) if evaluation in (BASELINE, WINNER) else digest
