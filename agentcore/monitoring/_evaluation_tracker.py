"""`EvaluationTracker`: evaluations of generated applications as runs."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agentcore._json import jsonable
from agentcore._process import lend_run, take_back_run
from agentcore._redaction import first_line
from agentcore._sync import SyncTwin, blocking
from agentcore.data import current_run
from agentcore.errors import ConfigurationError, JournalError, TrackingError
from agentcore.monitoring._generators import GenerationReport, report_of
from agentcore.monitoring._report import cell
from agentcore.monitoring._units import shown
from agentcore.settings import MLflowConfig, Settings, shown_uri
from agentcore.tracking import RunStatus, RunTracker, is_alive

_logger = logging.getLogger("agentcore")

EXPERIMENT = "/Shared/agentcore-evaluations"
FRAMEWORK = "agentcore"
_WAIT = 2.0
_DATABRICKS = ("DATABRICKS_HOST", "DATABRICKS_TOKEN")


class AsyncEvaluationTracker:
    """`EvaluationTracker`, awaited.

    Without tracking (Databricks without its credentials, a server that refuses, no journal) every method does
    nothing, after one line that says why: an evaluation is worth more than its record. While MLflow doesn't
    answer, everything waits in the journal.

    Args:
        experiment_name: created if it doesn't exist.
        config: the MLflow server; default: from the environment.
        framework: the tag of that name.
    """

    def __init__(
        self,
        experiment_name: str = EXPERIMENT,
        config: MLflowConfig | None = None,
        *,
        framework: str = FRAMEWORK,
    ) -> None:
        base = config or MLflowConfig()
        self.config = base.model_copy(update={"experiment_name": experiment_name})
        self.framework = framework
        self._why_off = _missing(self.config)
        self._told = False
        self.ended: str | None = None
        """The run that ended last."""
        self._tracker: RunTracker | None = None

    @property
    def enabled(self) -> bool:
        """Whether evaluations are tracked."""
        return self._why_off is None

    @property
    def tracker(self) -> RunTracker:
        """The experiment's tracker."""
        if self._tracker is None:
            self._tracker = RunTracker(self.config)
        return self._tracker

    async def start_run(
        self, run_name: str | None = None, tags: Mapping[str, str] | None = None
    ) -> str | None:
        """Start a run and make it the current one, also for MLflow's fluent API if it uses the
        same server; None without tracking.

        Args:
            run_name: default: `eval_{mode}_{timestamp}`.
        """
        if self._off():
            return None
        mode = (tags or {}).get("mode") or Settings().eval_mode
        name = run_name or _name(mode, _now())
        every = {"framework": self.framework, "mode": mode, "run_name": name, **(tags or {})}
        alive = await is_alive(self.config)
        try:
            run_id = await self.tracker.start_run(run_name=name, tags=every, wait=_WAIT if alive else 0)
        except (TrackingError, JournalError) as error:
            self._why_off = first_line(error)
            self._off()
            return None
        if run_id.startswith("local-"):
            _logger.warning(
                "MLflow at %s doesn't answer: the evaluation waits in the journal; "
                "deliver with: agentcore sync",
                shown_uri(self.config.tracking_uri),
            )
        else:
            lend_run(self.config.tracking_uri, run_id)
        return run_id

    async def log_evaluation_parameters(
        self,
        mode: str | None = None,
        total_apps: int | None = None,
        timestamp: str | None = None,
        model_version: str | None = None,
        **more: Any,
    ) -> None:
        """Log the parameters of an evaluation to the current run."""
        if self._off():
            return
        params = {
            "mode": mode or Settings().eval_mode,
            "total_apps": total_apps,
            "timestamp": timestamp or _now(),
            "model_version": model_version or Settings().lm or "unknown",
            **more,
        }
        await self.tracker.log_params(params)
        if mode is not None:
            await self.tracker.set_tags({"mode": mode})

    async def log_evaluation_metrics(self, report: Any) -> dict[str, float]:
        """Log every figure of a report to the current run; returns them. See `GenerationReport`.

        Raises:
            DataError: a field of the report is wrong.
        """
        figures = report_of(report).figures()
        if not self._off():
            await self.tracker.log_metrics(figures)
        return figures

    async def log_artifact_file(self, file: str | Path, artifact_path: str = "") -> None:
        """Log a file to the current run.

        Raises:
            ArtifactError: it can't be read.
        """
        if not self._off():
            await self.tracker.log_artifact(file, artifact_path)

    async def end_run(self, status: RunStatus = "FINISHED") -> None:
        """End the current run."""
        if self._off():
            return
        run_id = self.tracker.current_run_id
        await self.tracker.end_run(status)
        if run_id is not None:
            self.ended = run_id
            take_back_run(run_id)

    async def track_evaluation(
        self,
        report: Any,
        mode: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        markdown: str | None = None,
        model_version: str | None = None,
    ) -> str | None:
        """Log a whole evaluation as a run; returns its id, or None without tracking.

        Args:
            report: a dict or a `GenerationReport`.
            mode: default: the report's, else `EVAL_MODE`.
            markdown: the text of EVALUATION_REPORT.md; default: made from the report.

        Raises:
            DataError: a field of the report is wrong.
        """
        found = report_of(report)
        figures = found.figures()
        mode = mode or found.mode or Settings().eval_mode
        when = found.timestamp or _now()
        outer, own = current_run.get(), self.tracker._current.get() if self.enabled else None
        run_id = await self.start_run(run_name or _name(mode, when), {"mode": mode, **(tags or {})})
        if run_id is None:
            return None
        try:
            total = figures.get("total_apps")
            await self.log_evaluation_parameters(
                mode,
                None if total is None else round(total),
                when,
                model_version or found.model_version,
            )
            entries = self.tracker.entries
            drafts = [
                *entries.metrics(figures),
                *entries.json("evaluation_report.json", jsonable(report)),
                *entries.text("EVALUATION_REPORT.md", markdown or report_markdown(found, mode, when)),
            ]
            await self.tracker.log(drafts, run_id=run_id)
            await self.end_run()
        except BaseException:
            if self.tracker.current_run_id == run_id:
                await self.end_run("FAILED")
            raise
        finally:
            current_run.set(outer)
            self.tracker._current.set(own)
        return run_id

    async def compare_runs(self, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Metrics, parameters and tags of runs, by the given ids.

        Raises:
            TrackingError: MLflow can't be reached, or has no such run.
        """
        if self._why_off is not None:
            raise ConfigurationError(f"there is no tracking: {self._why_off}")
        found = {}
        for run_id in run_ids:
            run = await self.tracker.get_run(run_id)
            found[run_id] = {
                "metrics": dict(run.data.metrics),
                "params": dict(run.data.params),
                "tags": dict(run.data.tags),
            }
        return found

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until everything logged is in MLflow; see `RunTracker.flush`."""
        if not self._off():
            await self.tracker.flush(timeout)

    def _off(self) -> bool:
        """Whether there is no tracking; says so once."""
        if self._why_off is not None and not self._told:
            self._told = True
            _logger.warning("MLflow tracking is off: %s", self._why_off)
        return self._why_off is not None


def _missing(config: MLflowConfig) -> str | None:
    """What Databricks needs and the environment lacks."""
    if not config.tracking_uri.startswith("databricks"):
        return None
    missing = [name for name in _DATABRICKS if not os.environ.get(name)]
    return f"set {' and '.join(missing)}, which Databricks needs" if missing else None


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _name(mode: str, timestamp: str) -> str:
    return f"eval_{mode}_{timestamp}"


def report_markdown(report: GenerationReport, mode: str, timestamp: str) -> str:
    """The report as a page: its figures, and each application."""
    lines = [f"# Evaluation, {cell(mode)}, {cell(timestamp)}", "", "| figure | value |", "|---|---:|"]
    lines += [f"| {name} | {shown(name, value)} |" for name, value in report.figures().items()]
    rows = [app.values() for app in report.apps]
    if rows:
        columns = [
            name
            for name in dict.fromkeys(name for row in rows for name in row)
            if all(isinstance(row.get(name), (str, int, float, bool, type(None))) for row in rows)
        ]
        lines += ["", f"| {' | '.join(map(cell, columns))} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(cell(row.get(name, '')) for name in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


class EvaluationTracker(SyncTwin):
    """Tracks evaluations of generated applications: success rates, quality, cost. Blocking; safe in any
    thread and inside a running event loop. `.aio` is the awaitable twin.

    Args:
        experiment_name, config, options: see `AsyncEvaluationTracker`.
    """

    _target: AsyncEvaluationTracker

    def __init__(
        self, experiment_name: str = EXPERIMENT, config: MLflowConfig | None = None, **options: Any
    ) -> None:
        target = AsyncEvaluationTracker(experiment_name, config, **options)
        carried: list[ContextVar[Any]] = [target.tracker._current, current_run] if target.enabled else []
        super().__init__(target, carry=carried)

    @property
    def aio(self) -> AsyncEvaluationTracker:
        """The same, awaited."""
        return self._target

    start_run = blocking(AsyncEvaluationTracker.start_run)
    log_evaluation_parameters = blocking(AsyncEvaluationTracker.log_evaluation_parameters)  # type: ignore[arg-type]
    log_evaluation_metrics = blocking(AsyncEvaluationTracker.log_evaluation_metrics)
    log_artifact_file = blocking(AsyncEvaluationTracker.log_artifact_file)
    track_evaluation = blocking(AsyncEvaluationTracker.track_evaluation)
    compare_runs = blocking(AsyncEvaluationTracker.compare_runs)
    flush = blocking(AsyncEvaluationTracker.flush)

    def end_run(self, status: RunStatus = "FINISHED") -> None:
        """See `AsyncEvaluationTracker.end_run`."""
        self._call("end_run", (status,), {})
        if self.aio.ended is not None:
            take_back_run(self.aio.ended)  # MLflow's active runs are this thread's


def track_evaluation(report: Any, mode: str | None = None, **options: Any) -> str | None:
    """Log a whole evaluation as a run of the default experiment; see `EvaluationTracker.track_evaluation`."""
    return EvaluationTracker().track_evaluation(report, mode, **options)
