"""Evaluations as runs of an agent's evaluation experiment: written, and compared with earlier ones."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentcore._json import json_value
from agentcore._naming import run_name
from agentcore.data import current_run
from agentcore.errors import ArtifactError
from agentcore.evaluation import Interval, Verdict, paired_test
from agentcore.monitoring._events import ConfusionPlotted, DriftPlotted
from agentcore.monitoring._models import EvaluationMetrics
from agentcore.monitoring._report import drift_markdown, markdown
from agentcore.tracking import DatasetUsed, Draft, Experiments, InputsLogged, RunEnded, is_alive

if TYPE_CHECKING:
    from mlflow.entities import Run

    from agentcore.monitoring._drift import DriftReport

TABLE = "eval_results_table.json"
REPORT = "evaluation_report.json"
DIGEST_TAG = "dataset_digest"
DRIFT_TAG = "drift_cause"
TARGET_TAG = "target_field"
_WAIT = 2.0
_SHOWN_CLASSES = 40
_TABLE_ROWS = 50_000


@dataclass(frozen=True)
class Regression:
    """An evaluation compared with an earlier one of the same rows.

    Attributes:
        difference: of the accuracy, now minus before, with its 95% interval.
        fixed, broken: digests of the rows that only now, and only before, were right.
        regressed: whether the loss is proven and over the threshold.
    """

    run_id: str
    before: float
    after: float
    difference: float
    interval: Interval
    p_value: float
    verdict: Verdict
    threshold: float
    examples: int
    fixed: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        return self.verdict == "worse" and self.difference < -self.threshold

    def __str__(self) -> str:
        words = {"better": "better than", "worse": "worse than"}
        told = words.get(self.verdict, "not proven different from")
        return (
            f"{told} run {self.run_id}: accuracy {self.before:.3f} → {self.after:.3f}, "
            f"{self.difference + 0.0:+.3f} ({self.interval.low:+.3f} to {self.interval.high:+.3f}), "
            f"{len(self.fixed)} fixed, {len(self.broken)} broken of {self.examples}"
        )


class EvaluationRuns:
    """The evaluation runs of an agent."""

    def __init__(self, experiments: Experiments, tags: Mapping[str, str]) -> None:
        self.experiments = experiments
        self.tags = tags
        self.tracker = experiments.tracker("evaluation")

    async def log(self, metrics: EvaluationMetrics, model: str) -> str:
        """Log an evaluation as a run; returns its id."""
        entries = self.tracker.entries
        quality = metrics.quality
        drafts: list[Draft] = [
            _used([metrics]),
            *entries.params(
                {
                    "agent": metrics.agent,
                    "dataset": metrics.dataset,
                    "dataset_digest": metrics.digest,
                    "target_field": metrics.target_field,
                    "task": metrics.task,
                    "repeats": metrics.repeats,
                    "model": model,
                }
            ),
            *entries.metrics(
                {
                    **metrics.figures(),
                    **{
                        f"{name}_{side}": getattr(bounds, side)
                        for name, bounds in metrics.intervals.items()
                        for side in ("low", "high")
                        if abs(getattr(bounds, side)) < float("inf")
                    },
                }
            ),
            *entries.json(REPORT, metrics.as_dict()),
            *entries.text("EVALUATION_REPORT.md", markdown(metrics)),
            *entries.json(TABLE, _table(metrics)),
        ]
        if quality is not None and quality.confusion is not None and len(quality.labels) <= _SHOWN_CLASSES:
            drafts.append(
                ConfusionPlotted(
                    title=f"{metrics.agent} on {metrics.dataset}, {metrics.examples} rows",
                    labels=list(quality.labels),
                    counts=[[float(value) for value in row] for row in quality.confusion],
                )
            )
        tags = {
            DIGEST_TAG: metrics.digest,
            TARGET_TAG: metrics.target_field,
            "dataset_name": metrics.dataset,
            "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}]),
        }
        return await self._run(tags, drafts)

    async def log_drift(self, report: "DriftReport", model: str) -> str:
        """Log a drift report as a run; returns its id."""
        entries = self.tracker.entries
        both = (report.baseline, report.current)
        drafts: list[Draft] = [
            _used(both),
            *entries.params(
                {
                    "agent": report.current.agent,
                    "baseline_dataset": report.baseline.dataset,
                    "current_dataset": report.current.dataset,
                    "target_field": report.current.target_field,
                    "threshold": report.threshold,
                    "model": model,
                }
            ),
            *entries.metrics(
                {
                    **{f"baseline_{name}": value for name, value in report.baseline.figures().items()},
                    **{f"current_{name}": value for name, value in report.current.figures().items()},
                    **{f"{item.name}_degradation": item.degradation for item in report.metrics},
                    "has_drift": float(report.has_drift),
                    "has_input_drift": float(report.has_input_drift),
                    "drifted_fields": float(len(report.drifted_fields)),
                }
            ),
            *entries.json("drift_report.json", report.as_dict()),
            *entries.text("DRIFT_REPORT.md", drift_markdown(report)),
            DriftPlotted(
                title=f"{report.current.agent}: {report.baseline.dataset} → {report.current.dataset}",
                threshold=report.threshold,
                metrics=[
                    (item.name, item.degradation, item.interval.low, item.interval.high, item.drifted)
                    for item in report.metrics
                ],
                fields=[
                    (item.name, item.p_value, item.effect, item.drifted)
                    for item in report.fields
                    if item.p_value is not None
                ],
            ),
        ]
        return await self._run({"evaluation_type": "regression", DRIFT_TAG: report.cause}, drafts, "drift")

    async def _run(self, tags: Mapping[str, Any], drafts: Sequence[Draft], what: str = "all") -> str:
        """Write a whole run. The caller's current run stays what it was."""
        outer = current_run.get()
        tags = {"dataset_type": "evaluation", "evaluation_type": "comprehensive", **self.tags, **tags}
        own = self.experiments.tags("evaluation", **tags)
        wait = _WAIT if await is_alive(self.tracker.config) else 0.0
        try:
            run_id = await self.tracker.start_run(run_name=run_name("eval", what), tags=own, wait=wait)
            await self.tracker.log([*drafts, RunEnded(status="FINISHED")], run_id=run_id)
            self.tracker._current.set(None)
        finally:
            current_run.set(outer)
        return run_id

    async def last(self, metrics: EvaluationMetrics) -> "Run | None":
        """The newest finished evaluation of the same rows by the same target, other than this one."""
        found = await self.tracker.search_runs(
            f"attributes.status = 'FINISHED' and tags.{DIGEST_TAG} = '{metrics.digest}'", 100
        )
        found = [run for run in found if run.data.tags.get(TARGET_TAG) == metrics.target_field]
        known = None if metrics.run_id is None else await self.tracker.tracking_id(metrics.run_id)
        return next((item for item in found if item.info.run_id != known), None)

    async def regression(self, metrics: EvaluationMetrics, threshold: float) -> Regression | None:
        """See `ModelEvaluator.check_regression`."""
        earlier = await self.last(metrics)
        if earlier is None:
            return None
        try:
            scores = scores_in(await self.tracker.read_json(earlier.info.run_id, TABLE))
        except ArtifactError:
            return None
        keys = numbered([row.digest for row in metrics.rows])
        pairs = [
            (row.digest, scores[key], row.score)
            for key, row in zip(keys, metrics.rows, strict=True)
            if row.score is not None and scores.get(key) is not None
        ]
        if not pairs:
            return None
        # Rows that occur several times are no further evidence.
        tested = paired_test(
            [after - before for _, before, after in pairs], [digest for digest, _, _ in pairs]
        )
        return Regression(
            earlier.info.run_id,
            sum(before for _, before, _ in pairs) / len(pairs),
            sum(after for _, _, after in pairs) / len(pairs),
            tested.difference,
            tested.interval,
            tested.p_value,
            tested.verdict,
            threshold,
            len(pairs),
            tuple(digest for digest, before, after in pairs if before < 0.5 <= after),
            tuple(digest for digest, before, after in pairs if after < 0.5 <= before),
        )


def scores_in(table: Any) -> dict[str, Any]:
    """The score of each row in a run's table, by the row's digest; see `numbered`.

    Raises:
        ArtifactError: it is no such table.
    """
    try:
        columns = table["columns"]
        digest, score = columns.index("digest"), columns.index("score")
        keys = numbered([str(row[digest]) for row in table["data"]])
        found = [None if row[score] is None else float(row[score]) for row in table["data"]]
        return dict(zip(keys, found, strict=True))
    except (TypeError, KeyError, ValueError, IndexError, AttributeError, OverflowError):
        raise ArtifactError(f"{TABLE} is not a table of AgentCore's") from None


def numbered(digests: Sequence[str]) -> list[str]:
    """Digests as keys: those that occur again get their number, `{digest}/2`."""
    seen: Counter[str] = Counter()
    keys = []
    for digest in digests:
        seen[digest] += 1
        keys.append(digest if seen[digest] == 1 else f"{digest}/{seen[digest]}")
    return keys


def _used(sets: Sequence[EvaluationMetrics]) -> InputsLogged:
    contexts = ("evaluation",) if len(sets) == 1 else ("baseline", "evaluation")
    return InputsLogged(
        datasets=[
            DatasetUsed(
                name=item.dataset, digest=item.digest, rows=item.examples + item.lm_failures, context=context
            )
            for item, context in zip(sets, contexts, strict=True)
        ]
    )


def _table(metrics: EvaluationMetrics) -> dict[str, Any]:
    """The rows, as MLflow's evaluation view shows them."""
    rows = [row.shown for row in metrics.rows[:_TABLE_ROWS]]
    fields = list(dict.fromkeys(name for row in rows for name in row.inputs))
    own = ("expected", "answer", "score", "latency_ms", "tokens", "cost_usd", "error", "digest")
    columns = [*(f"{name} (input)" if name in own else name for name in fields), *own]
    data = [
        [json_value(row.inputs.get(name)) for name in fields]
        + [
            json_value(row.expected),
            row.answer,
            row.score,
            row.latency_ms,
            row.tokens,
            row.cost_usd,
            row.error,
            row.digest,
        ]
        for row in rows
    ]
    return {"columns": columns, "data": data}
