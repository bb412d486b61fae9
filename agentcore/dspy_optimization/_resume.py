"""Resumes runs that failed, were stopped, or whose process died."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentcore._naming import local_id
from agentcore.data import Dataset, Example, Splits
from agentcore.dspy_optimization._events import STREAM_KIND, JobRecorded, RunFinished
from agentcore.dspy_optimization._history import History
from agentcore.dspy_optimization._job import Job
from agentcore.errors import ConfigurationError, DataError, RunFinishedError
from agentcore.journal import Journal, Lease, Stream, open_journal

_PAUSE = 0.1
"""Seconds between attempts to get a run's lease."""
PATIENCE = 1.0
"""Seconds to wait for the lease of a process that is marking the run as interrupted."""
LEASE_PATIENCE = 60.0
"""Seconds to wait for the lease of a process that died elsewhere (30), with a margin."""


@dataclass(frozen=True)
class Unfinished:
    """An unfinished run to resume, with its lease."""

    stream: Stream
    lease: Lease
    history: History
    spec: dict[str, Any]
    data: Dataset
    splits: Splits


def find_run(run_id: str) -> tuple[Journal, Stream, JobRecorded]:
    """Find an optimization by its own id, its MLflow id, its local id, or a unique prefix of one. Blocking.

    Raises:
        ConfigurationError: no run or several runs match, or it is not an optimization.
    """
    journal = open_journal()
    stream = journal.resolve(run_id)
    if stream is None:
        raise ConfigurationError(
            f"the journal at {journal.location} has no run {run_id!r}. List its runs with: "
            "agentcore journal ls"
        )
    job = journal.last(stream.id, JobRecorded)
    if stream.kind != STREAM_KIND or not isinstance(job, JobRecorded):
        raise ConfigurationError(f"run {run_id} is not an optimization: there is nothing to resume")
    return journal, stream, job


def find_unfinished(run_id: str) -> tuple[Journal, Stream, JobRecorded]:
    """Like `find_run`, but only for runs that have not finished.

    Raises:
        ConfigurationError: see `find_run`.
        RunFinishedError: the run has finished.
    """
    journal, stream, job = find_run(run_id)
    end = journal.last(stream.id, RunFinished) if stream.finished else None
    if isinstance(end, RunFinished) and end.status in ("completed", "budget_exhausted"):
        raise RunFinishedError(
            f"run {run_id} has already finished. See it with: agentcore show {run_id[:8]}",
            run_id=stream.tracking_id or local_id(stream.id),
        )
    return journal, stream, job


def take_over(run_id: str, patience: float) -> Unfinished:
    """Find an unfinished run and take its lease, waiting at most `patience` seconds. Blocking.

    Raises:
        ConfigurationError: see `find_unfinished`; or another process is working on it.
    """
    journal, stream, job = find_unfinished(run_id)
    deadline = time.monotonic() + patience
    while (lease := journal.acquire(stream.id, "work").result()) is None and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    if lease is None:
        raise ConfigurationError(
            f"another process is working on run {run_id}. If it died on another machine, wait for its lease "
            "to expire (30 s) and try again"
        )
    try:
        # Read after taking the lease, to include everything its last owner wrote.
        history = History.of(entry.event for entry in journal.read(stream.id))
        content = json.loads(journal.payloads.get(job.data))
        data, splits = _data(content, run_id)
    except BaseException:
        journal.abandon(lease)
        raise
    return Unfinished(stream, lease, history, job.spec, data, splits)


def _data(content: Mapping[str, Any], run_id: str) -> tuple[Dataset, Splits]:
    data = Dataset.from_rows(
        content["examples"],
        input_fields=content["input_fields"],
        name=content["name"],
        description=content["description"],
    )
    if data.digest != content["digest"]:
        raise DataError(
            f"run {run_id} can't be resumed: its examples in the journal are incomplete, because a secret "
            "was redacted from them. Start a new run"
        )
    by_digest: dict[str, list[Example]] = {}
    for item in data:
        by_digest.setdefault(item.digest, []).append(item)
    parts = [
        data.part(name, [by_digest[digest][0] for digest in content["splits"][name]["examples"]])
        for name in Splits._fields
    ]
    return data, Splits(*parts)


_NAMES = {
    "program": "the program",
    "metric": "the metric",
    "lm": "the language model",
    "prompt_lm": "the model that proposes instructions",
    "optimizer": "the optimizer",
    "splits": "the data",
    "seed": "the seed",
}


def check_same(job: Job, spec: Mapping[str, Any], run_id: str) -> None:
    """Raise `ConfigurationError` if the job differs from the one that started the run."""
    current = json.loads(json.dumps(job.spec()))
    for key, name in _NAMES.items():
        if current[key] != spec[key]:
            raise ConfigurationError(
                f"run {run_id} can't be resumed: {name} differs. It was started with {_text(spec[key])}, but "
                f"this is {_text(current[key])}"
            )


def check_same_request(job: Job, spec: Mapping[str, Any], name: str) -> None:
    """Raise `ConfigurationError` if a run's name was used for another request."""
    current = json.loads(json.dumps(job.spec()["request"]))
    other = sorted(
        key for key in current.keys() | spec["request"].keys() if current.get(key) != spec["request"].get(key)
    )
    if other:
        raise ConfigurationError(
            f"the run named {name!r} was started with different {', '.join(other)}: use another name, or "
            "resume it with the original values"
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
