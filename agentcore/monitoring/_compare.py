"""Compares runs side by side: metrics in their units, the latest against the one before, and what changed."""

import difflib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentcore._naming import utc
from agentcore.data import sha256
from agentcore.errors import ArtifactError, ConfigurationError
from agentcore.evaluation import PairedTest, paired_test
from agentcore.monitoring._recorded import DRIFT_TAG, TABLE, numbered, scores_in
from agentcore.monitoring._units import better, unit_of
from agentcore.tracking import RunTracker, model_names

if TYPE_CHECKING:
    from mlflow.entities import Run

_VALIDATION = "validation_examples.json"
_MODE_TAGS = ("mode", "evaluation_type", "target_type", "run_type")
_ORDER = ("percent", "number", "usd", "ms", "seconds", "count")
_HIDDEN = ("agentcore.", "mlflow.")
_TEXT = 4000
_QUESTION = ("target_field", "dataset_digest", "task")
_NONE = (None, "")


@dataclass(frozen=True)
class Column:
    """One run."""

    id: str
    name: str
    mode: str
    started: str
    started_ms: int
    status: str
    group: str | None
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    datasets: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A metric of the latest run against the one before.

    Attributes:
        relative: the change as a fraction of the previous value; None if that is 0.
        better: None if the direction of the metric isn't known, or nothing changed.
    """

    metric: str
    latest: float
    previous: float
    absolute: float
    relative: float | None
    better: bool | None


@dataclass(frozen=True)
class Paired:
    """The latest run against the one before, example by example.

    Attributes:
        source: the artifact with the scores.
        fixed, broken: examples that only the latest, and only the previous run got right, as text.
    """

    source: str
    test: PairedTest
    examples: int
    fixed: tuple[str, ...]
    broken: tuple[str, ...]


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side, newest first."""

    runs: tuple[Column, ...]
    metrics: tuple[str, ...]
    best: Mapping[str, int]
    """The position of the best run, by metric."""
    changes: tuple[Change, ...]
    paired: Paired | None = None
    comparable: bool = True
    """Whether the latest run and the one before are of the same data and target."""
    params: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    """Parameters and data sets that differ, by run."""
    prompts: str = ""
    """A diff of the prompts of the latest run and the one before."""

    def values(self, metric: str) -> list[float | None]:
        """A metric by run."""
        return [run.metrics.get(metric) for run in self.runs]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {
            "runs": [vars(run) for run in self.runs],
            "metrics": {
                name: {
                    "unit": unit_of(name),
                    "values": self.values(name),
                    "best": self.runs[self.best[name]].id if name in self.best else None,
                }
                for name in self.metrics
            },
            "latest_vs_previous": [vars(change) for change in self.changes],
            "paired": None
            if self.paired is None
            else {
                "source": self.paired.source,
                "examples": self.paired.examples,
                "difference": self.paired.test.difference,
                "interval": list(self.paired.test.interval),
                "p_value": self.paired.test.p_value,
                "verdict": self.paired.test.verdict,
                "fixed": list(self.paired.fixed),
                "broken": list(self.paired.broken),
            },
            "differences": {name: list(values) for name, values in self.params.items()},
            "prompt_diff": self.prompts,
        }


async def find_runs(
    tracker: RunTracker,
    wanted: Sequence[str] = (),
    *,
    last: int = 5,
    mode: str | None = None,
) -> "list[Run]":
    """The runs to compare, newest first: those named, or the last finished ones.

    Raises:
        ConfigurationError: there are no runs, or a name matches none or several.
        TrackingError: MLflow can't be reached.
    """
    if wanted:
        found = {(run := await tracker.find_run(item)).info.run_id: run for item in wanted}
        return sorted(found.values(), key=lambda run: run.info.start_time or 0, reverse=True)
    # A drift check measures two data sets at once: its figures have other names.
    clauses = ["attributes.status = 'FINISHED'", f"tags.{DRIFT_TAG} IS NULL"]
    if mode is not None:
        if "'" in mode:
            raise ConfigurationError(f"mode {mode!r} contains a quote")
        clauses.append(f"tags.mode = '{mode}'")
    name = tracker.config.experiment_name
    if await tracker.gateway.call(lambda client: client.get_experiment_by_name(name)) is None:
        raise ConfigurationError(
            f"there is no experiment {name!r}. Name another with --experiment or --agent"
        )
    runs = await tracker.search_runs(" and ".join(clauses), last)
    if not runs:
        of_mode = f" with mode {mode!r}" if mode else ""
        raise ConfigurationError(
            f"experiment {tracker.config.experiment_name!r} has no finished run{of_mode}. Name another with "
            "--experiment or --agent"
        )
    return runs


async def compare_runs(
    tracker: RunTracker, runs: "Sequence[Run]", *, group_by: str | None = None, all_metrics: bool = False
) -> RunComparison:
    """Compare runs, newest first.

    Args:
        group_by: a tag or parameter whose values name the groups; runs of a group stand together.
        all_metrics: also the bounds of intervals.
    """
    columns = [_column(run, group_by) for run in runs]
    if group_by is not None and not any(column.group for column in columns):
        raise ConfigurationError(f"no run has a tag or parameter {group_by!r} to group by")
    order = list(range(len(columns)))
    if group_by:
        order.sort(key=lambda number: columns[number].group or "")
    columns = [columns[number] for number in order]
    ordered = [runs[number] for number in order]
    names = _metric_names(columns, all_metrics=all_metrics)
    newest = sorted(ordered, key=lambda run: run.info.start_time or 0, reverse=True)[:2]
    changes: tuple[Change, ...] = ()
    paired, prompts, same = None, "", True
    if len(newest) == 2:
        latest, previous = newest
        same = _same_question(latest, previous)
        changes = tuple(_changes(names, latest.data.metrics, previous.data.metrics, judge=same))
        paired = await _paired(tracker, latest, previous)
        prompts = await _prompt_diff(tracker, latest, previous)
    return RunComparison(
        tuple(columns),
        tuple(names),
        _best(columns, names),
        changes,
        paired,
        same,
        _differences(columns),
        prompts,
    )


def _same_question(latest: "Run", previous: "Run") -> bool:
    """Whether two runs answer the same question, so that one can be better than the other."""
    return all(latest.data.params.get(name) == previous.data.params.get(name) for name in _QUESTION)


def _column(run: "Run", group_by: str | None) -> Column:
    tags, params = run.data.tags, run.data.params
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return Column(
        run.info.run_id,
        run.info.run_name or run.info.run_id[:8],
        next((tags[name] for name in _MODE_TAGS if name in tags), params.get("mode", "")),
        f"{utc(run.info.start_time):%Y-%m-%d %H:%M:%S}" if run.info.start_time else "",
        run.info.start_time or 0,
        run.info.status,
        None if group_by is None else tags.get(group_by, params.get(group_by, "")),
        dict(run.data.metrics),
        dict(params),
        tuple(sorted(f"{item.dataset.name} {item.dataset.digest}" for item in inputs)),
    )


def _metric_names(columns: Sequence[Column], *, all_metrics: bool) -> list[str]:
    found = dict.fromkeys(name for column in columns for name in column.metrics)
    names = [
        name
        for name in found
        if all_metrics or not (name.endswith(("_low", "_high")) and name.rpartition("_")[0] in found)
    ]
    return sorted(names, key=lambda name: (_ORDER.index(unit_of(name)), name.startswith("overall"), name))


def _best(columns: Sequence[Column], names: Sequence[str]) -> dict[str, int]:
    found = {}
    for name in names:
        direction = better(name)
        known = [
            (column.metrics[name], number) for number, column in enumerate(columns) if name in column.metrics
        ]
        if direction is None or len({value for value, _ in known}) < 2:
            continue
        values = [value for value, _ in known]
        top = max(values) if direction == "higher" else min(values)
        if values.count(top) == 1:
            found[name] = next(number for value, number in known if value == top)
    return found


def _changes(
    names: Sequence[str], latest: Mapping[str, float], previous: Mapping[str, float], *, judge: bool
) -> "list[Change]":
    found = []
    for name in names:
        if name not in latest or name not in previous:
            continue
        absolute = latest[name] - previous[name]
        direction = better(name) if judge else None
        improved = None if direction is None or absolute == 0 else (absolute > 0) == (direction == "higher")
        relative = absolute / abs(previous[name]) if previous[name] else None
        found.append(Change(name, latest[name], previous[name], absolute, relative, improved))
    return found


def _differences(columns: Sequence[Column]) -> dict[str, tuple[str | None, ...]]:
    names = dict.fromkeys(name for column in columns for name in column.params)
    found: dict[str, tuple[str | None, ...]] = {}
    for name in names:
        values = tuple(column.params.get(name) for column in columns)
        if len(set(values)) > 1:
            found[name] = values
    datasets = tuple(", ".join(column.datasets) or None for column in columns)
    if len(set(datasets)) > 1:
        found["data sets"] = datasets
    return found


async def _paired(tracker: RunTracker, latest: "Run", previous: "Run") -> Paired | None:
    """The paired test, where both runs have scores of the same examples. An optimization's are those of its
    validation examples: the test examples stay unseen."""
    for source in (TABLE, _VALIDATION):
        read = []
        for run in (latest, previous):
            with suppress(ArtifactError):
                read.append(_scores(source, await tracker.read_json(run.info.run_id, source)))
        if len(read) < 2:
            continue
        new, old = read
        common = [
            key
            for key, (score, _) in new.items()
            if score is not None and old.get(key, (None, ""))[0] is not None
        ]
        if not common:
            continue
        pairs = [(float(old[key][0] or 0), float(new[key][0] or 0), new[key][1]) for key in common]
        return Paired(
            source,
            paired_test(
                [after - before for before, after, _ in pairs], [key.split("/")[0] for key in common]
            ),
            len(pairs),
            tuple(text for before, after, text in pairs if before < 0.5 <= after),
            tuple(text for before, after, text in pairs if after < 0.5 <= before),
        )
    return None


def _scores(source: str, content: Any) -> dict[str, tuple[float | None, str]]:
    """Score and text of each example, by its digest."""
    if source == TABLE:
        scores = scores_in(content)
        columns = content["columns"]
        digest = columns.index("digest")
        shown = [
            number for number, name in enumerate(columns) if name not in ("digest", "latency_ms", "tokens")
        ]
        texts = [
            " ".join(
                ", ".join(
                    f"{columns[number]}={row[number]}" for number in shown if row[number] is not None
                ).split()
            )
            for row in content["data"]
        ]
        keys = numbered([str(row[digest]) for row in content["data"]])
        return {key: (scores.get(key), text) for key, text in zip(keys, texts, strict=True)}
    try:
        return {
            sha256([item["inputs"], item["labels"]]): (
                item["optimized"]["score"],
                " → ".join(json.dumps(item[part], ensure_ascii=False) for part in ("inputs", "labels")),
            )
            for item in content["examples"]
        }
    except (TypeError, KeyError):
        raise ArtifactError(f"{source} has no scores of examples") from None


async def _prompt_diff(tracker: RunTracker, latest: "Run", previous: "Run") -> str:
    texts = []
    for run in (previous, latest):
        if "optimized_model" not in model_names(run):
            return ""
        try:
            texts.append(_prompt_text(await tracker.read_prompt(run.info.run_id, "optimized_model")))
        except ArtifactError:
            return ""
    old, new = (run.info.run_name or run.info.run_id for run in (previous, latest))
    lines = difflib.unified_diff(texts[0], texts[1], old, new, lineterm="", n=2)
    return "\n".join(lines)[:_TEXT]


def _prompt_text(predictors: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, part in predictors.items():
        lines += [f"[{name}]", *part["instruction"].splitlines()]
        lines += [json.dumps(demo, ensure_ascii=False, sort_keys=True, default=str) for demo in part["demos"]]
    return lines
