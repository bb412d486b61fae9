"""What an earlier process of the same run has done and paid for, as the journal tells it."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agentcore.data import Example
from agentcore.evaluation import ExampleRecord
from agentcore.journal import (
    BaselineMeasured,
    CandidateProposed,
    Event,
    ExampleMeasured,
    JobRecorded,
    RunEnded,
    RunFinished,
    RunReopened,
    SpendCounted,
    StepFinished,
    TrialFinished,
    WarningRaised,
)
from agentcore.lm import Spend
from agentcore.tracking import program_state

BASELINE, WINNER = "baseline", "winner"


def state_digest(program: Any) -> str:
    """Digest of what an optimizer changes of a program."""
    text = json.dumps(program_state(program), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


@dataclass
class History:
    """Empty for a run that begins."""

    job: JobRecorded | None = None
    steps: dict[str, Any] = field(default_factory=dict)
    trials: dict[int, TrialFinished] = field(default_factory=dict)
    spend: dict[str, Spend] = field(default_factory=dict)
    seconds: float = 0.0
    search_seconds: float = 0.0
    warnings: set[str] = field(default_factory=set)
    has_baseline: bool = False
    judged_baseline: Spend | None = None
    """What the metric's own LM calls took for the baseline."""
    has_candidates: bool = False
    ended: bool = False
    """Whether MLflow was told that the run ended."""
    finished: RunFinished | None = None
    _measured: dict[tuple[str, str], dict[str, ExampleRecord]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """Records by evaluation and candidate, then by example."""
    _settled: set[tuple[str, str]] = field(default_factory=set)
    """Evaluations and candidates that count as they are, with what the LM failed on."""

    @property
    def examples(self) -> int:
        """How many were measured, each as often as it was."""
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
                self.ended, self.finished = False, None
            case RunFinished():
                self.finished = event

    def _settle(self, candidate: str) -> None:
        self._settled.update(key for key in self._measured if key[1] == candidate)

    def records(
        self, evaluation: str, candidate: str, examples: Sequence[Example]
    ) -> dict[int, ExampleRecord]:
        """What was measured of a candidate in an evaluation, by index in `examples`.

        What failed is tried again unless the evaluation, or a trial with it, finished: of a candidate's
        evaluations what the LM failed on, of others all of it.
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
    """An example's name among an evaluation's records: a test split may hold the same example twice."""
    return str(index) if evaluation in (BASELINE, WINNER) else digest
