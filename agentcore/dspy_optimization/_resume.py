"""Resumes runs that failed, were stopped, or whose process died."""

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentcore._json import restored
from agentcore._naming import local_id, short_id
from agentcore._redaction import first_line
from agentcore._types import parse_type
from agentcore.data import SPLITS, Dataset, Example, Splits
from agentcore.dspy_optimization._events import STREAM_KIND, JobRecorded, RunFinished
from agentcore.dspy_optimization._history import History
from agentcore.dspy_optimization._job import Job
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ArtifactError, ConfigurationError, DataError, RunFinishedError, TrackingError
from agentcore.evaluation import BUILTIN_METRICS
from agentcore.journal import Journal, Lease, Stream, open_journal
from agentcore.lm import check_stored_name
from agentcore.settings import is_trusted
from agentcore.tracking import ANOTHER_COPY, TAKEN_TAG, stored_type

_ASK_SECONDS = 10.0
"""How long a resumed run waits for MLflow, its import included."""
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


def recorded_lm(run_id: str) -> str:
    """The name of the model that a run was started with; see `find_run`. Blocking.

    Raises:
        ConfigurationError: in a journal that others may write to, the name could choose where calls go.
    """
    journal, _, job = find_run(run_id)
    name = str(job.spec["lm"]["model"])
    if journal.shared:
        check_stored_name(name)
    return name


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
        data, splits = recorded_data(content, run_id, job.spec["program"]["class"])
    except BaseException:
        journal.abandon(lease)
        raise
    return Unfinished(stream, lease, history, job.spec, data, splits)


def recorded_data(content: Mapping[str, Any], run_id: str, program: str) -> tuple[Dataset, Splits]:
    """The examples and splits of `training_data.json`, with the values that the run had.

    Args:
        program: the path of the program's class; its package may have the values' types.

    Raises:
        DataError: a value can't be brought back, or a secret was redacted from one.
    """
    kinds: dict[str, Any] = {}
    for name, text in content.get("types", {}).items():
        try:
            kinds[name] = parse_type(text, lambda path: stored_type(path, program))
        except ArtifactError as error:
            raise DataError(
                f"run {run_id} can't be continued: the values of field {name!r} can't be brought back from "
                f"JSON ({first_line(error)}). Start a new run"
            ) from None
    try:
        rows = [
            {name: restored(value, kinds[name]) if name in kinds else value for name, value in row.items()}
            for row in content["examples"]
        ]
    except ValueError as error:
        raise DataError(
            f"run {run_id} can't be continued: its recorded examples don't fit the types of their fields "
            f"({first_line(error)}). Start a new run"
        ) from None
    data = Dataset.from_rows(
        rows,
        input_fields=content["input_fields"],
        name=content["name"],
        description=content["description"],
        cluster=content.get("cluster"),
    )
    if data.digest != content["digest"]:
        raise DataError(
            f"run {run_id} can't be continued: its recorded examples are incomplete, because a secret "
            "was redacted from them. Start a new run"
        )
    by_digest: dict[str, list[Example]] = {}
    for item in data:
        by_digest.setdefault(item.digest, []).append(item)
    train, validation, test, *sealed = [
        data.part(name, [by_digest[digest][0] for digest in content["splits"][name]["examples"]])
        for name in SPLITS
        if name in content["splits"]
    ]
    inherited = content.get("inherited") or {}
    return data, Splits(train, validation, test, sealed[0] if sealed else None, inherited)


async def check_only_copy(tracker: MLflowTracker, run: Unfinished) -> None:
    """Raise `ConfigurationError` if MLflow says that another copy of the journal was resumed. If MLflow can't
    be asked, delivery notices it."""
    tracking_id = run.stream.tracking_id
    if tracking_id is None:
        return
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            known = (await tracker.gateway.get_run(tracking_id)).data.tags.get(TAKEN_TAG)
    except (TrackingError, TimeoutError):
        return
    # A token that this journal wrote may not be delivered yet.
    if known is not None and known not in run.history.tokens:
        raise ConfigurationError(ANOTHER_COPY.format(short_id(run.stream.id)))


def recorded_settings(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings that a run's optimizers had, defaults included, by optimizer."""
    names, settings = spec["request"]["algorithms"], spec["optimizer"]["settings"]
    if len(names) == 1:
        return {names[0]: settings}
    return {
        name: {
            key.removeprefix(f"{name}."): value
            for key, value in settings.items()
            if key.startswith(f"{name}.")
        }
        for name in names
    }


_NAMES = {
    "program": "the program",
    "metric": "the metric",
    "lm": "the language model",
    "prompt_lm": "the model that proposes instructions",
    "optimizer": "the optimizer",
    "splits": "the data",
    "seed": "the seed",
    "repeats": "the number of repeats",
    "cluster": "the cluster field",
}
_AGAIN = ". Pass the same model again: the lm of the pipeline, or --lm, --lm-base-url and --lm-arg"
_ADDED = {"repeats": 1, "cluster": None}
"""Values in runs that were started before these were recorded."""


def check_same_job(job: Job, spec: Mapping[str, Any], name: str) -> None:
    """Like `check_same`, for a job that was asked for again: the request says which optimizer, and the data
    may have been divided by an earlier version."""
    check_same(job, spec, f"named {name!r}", skipped=("optimizer", "splits"))
    if job.data.digest != spec["dataset"]:
        raise ConfigurationError(f"the run named {name!r} was started with other examples: use another name")


def check_same(job: Job, spec: Mapping[str, Any], run_id: str, skipped: Sequence[str] = ()) -> None:
    """Raise `ConfigurationError` if the job differs from the one that started the run."""
    current = json.loads(json.dumps(job.spec()))
    if "repeats" not in spec:
        _forget_limits(current, spec)
    _forget_endpoints(current, spec)
    for key, name in _NAMES.items():
        if key in skipped:
            continue
        started = spec.get(key, _ADDED.get(key))
        if current[key] != started:
            raise ConfigurationError(
                f"run {run_id} can't be resumed: {name} differs. It was started with {_text(started)}, but "
                f"this is {_text(current[key])}" + (_AGAIN if key in ("lm", "prompt_lm") else "")
            )


def _forget_limits(current: dict[str, Any], spec: Mapping[str, Any]) -> None:
    """Compare only the settings that a run of an earlier version recorded of its models."""
    for key in ("lm", "prompt_lm"):
        settings, known = current[key]["settings"], spec[key]["settings"]
        current[key]["settings"] = {
            **known,
            **{name: value for name, value in settings.items() if name in known},
        }


def _forget_endpoints(current: dict[str, Any], spec: Mapping[str, Any]) -> None:
    """Compare no endpoints with a run of an earlier version, which didn't record them."""
    for key in ("lm", "prompt_lm"):
        if "endpoint" not in spec[key]:
            current[key].pop("endpoint")


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


def check_trusted_imports(program: str | None, metric: str | None) -> None:
    """Raise `ConfigurationError` unless what these texts, which others may have written, import is of
    packages that the user trusts."""
    for path in (program, metric):
        if path is None or (path is metric and path in BUILTIN_METRICS):
            continue
        if path is program and _PLAIN_SIGNATURE.fullmatch(path):
            continue
        module = path.partition(":")[0].strip()
        if not is_trusted(module):
            package = module.partition(".")[0]
            raise ConfigurationError(
                f"the journal says to import {path}, and others may write to it. If you trust {package}, set "
                f"AGENTCORE_TRUSTED_MODULES={package}; or resume from the script that started the run, with "
                "pipeline.resume(run_id)"
            )


_PLAIN_SIGNATURE = re.compile(r"[\w\s,:\[\]|]*->[\w\s,:\[\]|]*")
"""A signature without a dot: DSPy imports the modules of dotted types."""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
