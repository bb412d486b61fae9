"""What an earlier process of the same run has done and paid for, as the journal tells it."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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


def trial_key(number: int) -> str:
    return f"trial-{number}"


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
    has_candidates: bool = False
    ended: bool = False
    """Whether MLflow was told that the run ended."""
    finished: RunFinished | None = None
    _measured: dict[str, dict[int, ExampleMeasured]] = field(default_factory=lambda: defaultdict(dict))

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
            case SpendCounted():
                self.spend = {name: Spend(**values) for name, values in event.by_stage.items()}
                self.seconds, self.search_seconds = event.seconds, event.search_seconds
            case ExampleMeasured():
                self._measured[event.evaluation][event.record["index"]] = event
                stage = event.evaluation if event.evaluation in (BASELINE, WINNER) else "search"
                self.spend[stage] = _plus(self.spend.get(stage, Spend()), event.record)
            case WarningRaised():
                self.warnings.add(event.message)
            case BaselineMeasured():
                self.has_baseline = True
            case CandidateProposed():
                self.has_candidates = True
            case RunEnded():
                self.ended = True
            case RunReopened():
                self.ended, self.finished = False, None
            case RunFinished():
                self.finished = event

    def records(
        self, evaluation: str, candidate: str, examples: Sequence[Example]
    ) -> dict[int, ExampleRecord]:
        """What was measured of an evaluation, by index; nothing where it was of another candidate.

        Failed examples of an evaluation that didn't finish are left out: they are tried again.
        """
        finished = self.has_baseline if evaluation == BASELINE else evaluation in map(trial_key, self.trials)
        found = {}
        for index, event in self._measured.get(evaluation, {}).items():
            record = ExampleRecord(**event.record)
            same = index < len(examples) and examples[index].digest == record.digest
            if event.candidate == candidate and same and (finished or record.failed is None):
                found[index] = record
        return found

    def calls(self, stage: str) -> int:
        """LM calls that a stage made, cache hits among them."""
        spend = self.spend.get(stage, Spend())
        return spend.calls + spend.cache_hits


def _plus(spend: Spend, record: Mapping[str, Any]) -> Spend:
    unpriced = record["cost_usd"] is None
    return replace(
        spend,
        calls=spend.calls + record["lm_calls"],
        cache_hits=spend.cache_hits + record["cache_hits"],
        input_tokens=spend.input_tokens + record["input_tokens"],
        output_tokens=spend.output_tokens + record["output_tokens"],
        known_cost_usd=spend.known_cost_usd + (record["cost_usd"] or 0.0),
        unpriced_calls=spend.unpriced_calls + (record["lm_calls"] if unpriced else 0),
    )
