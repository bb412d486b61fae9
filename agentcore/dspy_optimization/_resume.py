"""Going on with a run whose process died, or that failed or was stopped."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentcore.data import Dataset, Example, Splits
from agentcore.dspy_optimization._history import History
from agentcore.dspy_optimization._prepare import Job
from agentcore.errors import ConfigurationError, DataError, RunFinishedError
from agentcore.journal import JobRecorded, Journal, Lease, Stream, open_journal

_PAUSE = 0.1
"""Seconds between attempts to get a run's lease."""
PATIENCE = 1.0
"""Seconds for the lease of a process that is just marking the run."""
LEASE_PATIENCE = 60.0
"""Seconds for the lease of a process that died elsewhere (30), and some more."""


@dataclass(frozen=True)
class Unfinished:
    """A run of the journal that can be gone on with, under its lease."""

    stream: Stream
    lease: Lease
    history: History
    spec: dict[str, Any]
    data: Dataset
    splits: Splits


def find_run(run_id: str) -> tuple[Journal, Stream, History, JobRecorded]:
    """The optimization whose id (the journal's, MLflow's or a local one) starts so. Blocking.

    Raises:
        ConfigurationError: there is none or more than one, or it is no optimization.
    """
    journal = open_journal()
    found = journal.find(run_id.removeprefix("local-"))
    if len(found) > 1:
        raise ConfigurationError(f"{len(found)} runs start with {run_id!r}: give more of the id")
    if not found:
        raise ConfigurationError(
            f"the journal at {journal.home} has no run {run_id!r}. List its runs with: agentcore journal ls"
        )
    (stream,) = found
    history = History.of(entry.event for entry in journal.read(stream.id))
    if stream.kind != "optimization" or history.job is None:
        raise ConfigurationError(f"run {run_id} is no optimization: there is nothing to resume")
    return journal, stream, history, history.job


def find_unfinished(run_id: str) -> tuple[Journal, Stream, JobRecorded]:
    """`find_run`, where it has not finished.

    Raises:
        ConfigurationError: see `find_run`.
        RunFinishedError: it has finished.
    """
    journal, stream, history, job = find_run(run_id)
    if history.finished is not None and history.finished.status in ("completed", "budget_exhausted"):
        raise RunFinishedError(
            f"run {run_id} has finished. See it with: agentcore show {run_id[:8]}",
            run_id=stream.tracking_id or f"local-{stream.id}",
        )
    return journal, stream, job


def take_over(run_id: str, patience: float) -> Unfinished:
    """Find an unfinished run and get its lease, within `patience` seconds. Blocking.

    Raises:
        ConfigurationError: see `find_unfinished`; or another process is working on it.
    """
    journal, stream, job = find_unfinished(run_id)
    deadline = time.monotonic() + patience
    while (lease := journal.acquire(stream.id, "work").result()) is None and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    if lease is None:
        raise ConfigurationError(
            f"another process is working on run {run_id}; if it died on another machine, wait for its lease "
            "to run out (30 s) and try again"
        )
    try:
        # What its last owner wrote before the lease changed hands belongs to it.
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
            f"the examples of run {run_id} are not whole in the journal (a secret was cut out of them): "
            "it can't be resumed; start a new one"
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
    "splits": "the examples",
    "seed": "the seed",
}


def check_same(job: Job, spec: Mapping[str, Any], run_id: str) -> None:
    """Raise `ConfigurationError` where the resumed run would be another one."""
    own = json.loads(json.dumps(job.spec()))
    for key, name in _NAMES.items():
        if own[key] != spec[key]:
            raise ConfigurationError(
                f"run {run_id} can't be resumed: {name} differs. It was started with {_text(spec[key])}, "
                f"this is {_text(own[key])}"
            )


def check_same_request(job: Job, spec: Mapping[str, Any], name: str) -> None:
    """Raise `ConfigurationError` where a run's name was used for another request."""
    own = json.loads(json.dumps(job.spec()["request"]))
    other = sorted(
        key for key in own.keys() | spec["request"].keys() if own.get(key) != spec["request"].get(key)
    )
    if other:
        raise ConfigurationError(
            f"the run named {name!r} was begun with other {', '.join(other)}: give another name, or go on "
            "with it as it was begun"
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
