"""`AgentTracker`: the runs of a running agent, its requests, data, evaluations and models."""

import json
import logging
import math
import random
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from agentcore._json import jsonable
from agentcore._naming import now_ms
from agentcore._sync import SyncTwin, blocking, run_blocking
from agentcore._threads import run_in_thread
from agentcore.data import current_run, rows_of
from agentcore.data import sha256 as digest_of
from agentcore.errors import ConfigurationError
from agentcore.monitoring._collector import agent_config, metric_name
from agentcore.monitoring._flusher import flusher
from agentcore.monitoring._personal import Personal, Redaction, scrubbed
from agentcore.settings import MLflowConfig, Settings
from agentcore.tracking import (
    RunStatus,
    RunTracker,
    TraceRecord,
    TracesLogged,
    VersionRegistered,
    check_agent,
    purpose_name,
)

if TYPE_CHECKING:
    from agentcore.registry import HistoryEntry, Promotion

_logger = logging.getLogger("agentcore")

_BATCH = 100
"""Traces in one entry of the journal."""
_SOON = 1_000
"""Traces that are written without waiting for the end of the window."""
_MOST = 10_000
"""The most traces that wait in memory; beyond that, the oldest are dropped."""
_CUT = "… (shortened)"
_STAGES = ("Staging", "Production", "staging", "production", "champion")
_NO_STAGES = ("None", "none", "Archived", "archived")


class AsyncAgentTracker:
    """`AgentTracker`, awaited. Nothing waits for MLflow: everything is written to the journal, and delivered
    in the background.

    Args:
        agent: its name. Runs go to the experiment `/Shared/ai-agents/{agent}`.
        config: the MLflow server; default: from the environment.
        schema: of requests and decisions, as JSON Schema or a Pydantic model: fields that it marks with
            `x-personal-data` are kept out of traces.
        redact: a function from a request or decision to what may leave the process, called after that.
        sampling: share of the requests, 0–1, that become traces; default: `AGENTCORE_TRACE_SAMPLING`.
    """

    def __init__(
        self,
        agent: str,
        config: MLflowConfig | None = None,
        *,
        schema: "Mapping[str, Any] | type[BaseModel] | None" = None,
        redact: Redaction | None = None,
        sampling: float | None = None,
    ) -> None:
        settings = Settings()
        self.agent = agent
        self.window = settings.metrics_window
        self.tracker = RunTracker(agent_config(agent, config))
        self._config = config
        self._personal = Personal(schema)
        self._redact = redact or (lambda value: value)
        self.sampling = settings.trace_sampling if sampling is None else sampling
        if not 0 <= self.sampling <= 1:
            raise ConfigurationError(f"sampling is a share from 0 to 1, not {self.sampling!r}")
        self._bytes = round(settings.trace_kb * 1024)
        self._open: list[str] = []
        self._dropping = False
        self._waiting: deque[tuple[str, TraceRecord]] = deque(maxlen=_MOST)
        self._writing = threading.Lock()

    @property
    def run_id(self) -> str | None:
        """The current run of this task or thread, or the one that was started last in another."""
        return self.tracker.current_run_id or (self._open[-1] if self._open else None)

    async def start_run(self, run_name: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """Start a run, `{agent}_{purpose}_{timestamp}` by default, and make it the current one."""
        name = run_name or purpose_name(self.agent, "run")
        run_id = await self.tracker.start_run(
            run_name=name, tags={"agent_name": self.agent, **(tags or {})}, wait=0
        )
        self._open.append(run_id)
        return run_id

    async def end_run(self, status: RunStatus = "FINISHED", *, run_id: str | None = None) -> None:
        """End the current run of this task or thread, or the one given, with the traces that wait."""
        run_id = run_id or self.tracker.current_run_id
        if run_id is None:
            raise ConfigurationError(
                "no current run in this task or thread: call start_run first, or name another's with run_id="
            )
        await run_in_thread(self.flush_window)
        await self.tracker.end_run(status, run_id=run_id)
        if run_id in self._open:
            self._open.remove(run_id)

    async def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Log metrics at a step, such as the number of a batch."""
        await self.tracker.log_metrics(metrics, step=step or 0, run_id=self._run())

    async def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters."""
        await self.tracker.log_params(params, run_id=self._run())

    async def log_request(
        self,
        request_id: str,
        request_data: Mapping[str, Any],
        decision_data: Mapping[str, Any],
        duration_ms: float,
        *,
        error: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log a request as a trace, linked to the current run, if it is among the sampled ones. Traces are
        written once a window; a process that is killed loses those since the last one.

        Args:
            error: what failed; the trace's state is then ERROR.
        """
        run_id = self._run()
        if self.sampling < 1 and random.random() >= self.sampling:
            return
        # Large requests take milliseconds: not in the event loop.
        record = await run_in_thread(
            lambda: self._record(
                request_id, request_data or {}, decision_data or {}, duration_ms, error, tags or {}
            )
        )
        if len(self._waiting) == _MOST and not self._dropping:
            self._dropping = True
            _logger.warning("more than %s traces wait to be written: the oldest are dropped", f"{_MOST:,}")
        self._waiting.append((run_id, record))
        flusher.add(self)
        if len(self._waiting) == _SOON:
            flusher.soon(self)

    def _record(
        self,
        request_id: str,
        request: Mapping[str, Any],
        decision: Mapping[str, Any],
        duration_ms: float,
        error: str | None,
        tags: Mapping[str, str],
    ) -> TraceRecord:
        """What may leave the process of a request: without personal data and secrets, of limited size."""
        asked, removed = self._personal.clean(jsonable(dict(request)))
        told, more = self._personal.clean(jsonable(dict(decision)))
        removed |= more
        if error:
            told = {**told, "error": error}

        def text(value: Any) -> str:
            return self.tracker.redactor.text(scrubbed(str(value), removed))

        duration = max(0.0, float(duration_ms))
        return TraceRecord(
            id=uuid.uuid4().hex,
            request_id=text(request_id)[:250],
            name=self.agent,
            start_ms=round(now_ms() - duration),
            duration_ms=duration,
            request=self._text(scrubbed(asked, removed)),
            response=self._text(scrubbed(told, removed)),
            failed=error is not None,
            tags={str(name): text(value) for name, value in tags.items()},
        )

    async def log_dataset(self, df: Any, name: str, targets: str | None = None) -> None:
        """Record a frame, rows or a stored data set as an input of the run, by its digest; its rows are not
        sent. `targets` is kept as the parameter `{name}_targets`."""
        rows = await run_in_thread(lambda: list(rows_of(df)))
        if targets is not None and rows and targets not in rows[0]:
            raise ConfigurationError(
                f"{name} has no field {targets!r}; it has {', '.join(map(str, rows[0]))}"
            )
        digest = str(getattr(df, "digest", "")) or await run_in_thread(lambda: digest_of(rows))
        run_id = self._run()
        await self.tracker.log_dataset(name, digest, len(rows), "evaluation", run_id=run_id)
        if targets is not None:
            await self.tracker.log_params({f"{name}_targets": targets}, run_id=run_id)

    async def log_evaluation_results(
        self, eval_results: Mapping[str, Any], dataset_name: str | None = None
    ) -> None:
        """Log the figures of an evaluation as metrics `eval_{name}`, and everything as
        `evaluation_results.json`."""
        run_id, plain = self._run(), jsonable(dict(eval_results))
        numbers = {
            f"eval_{metric_name(str(name))}": value
            for name, value in plain.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        }
        await self.tracker.log_metrics(numbers, run_id=run_id)
        if dataset_name is not None:
            await self.tracker.set_tags({"evaluation_dataset": dataset_name}, run_id=run_id)
        content = {"dataset": dataset_name, "results": plain}
        await self.tracker.log_json("evaluation_results.json", content, run_id=run_id)

    async def log_model(
        self, model: Any, artifact_path: str = "model", registered_model_name: str | None = None
    ) -> None:
        """Log a `dspy.Module` as `models/{artifact_path}.*` and as an MLflow LoggedModel, without pickle and
        without keys.

        Args:
            registered_model_name: also register it as a version of this model. No alias points to it until
                `transition_model_stage`.

        Raises:
            ArtifactError: it is no DSPy program, or can't be saved.
        """
        run_id = self._run()
        name = artifact_path.strip("/").replace("/", "_") or "model"
        if registered_model_name is not None:
            check_agent(registered_model_name)
        await self.tracker.log_model_artifact(model, name, run_id=run_id)
        if registered_model_name is not None:
            version = VersionRegistered(model=registered_model_name, artifact_name=name)
            await self.tracker.log([version], run_id=run_id)

    async def transition_model_stage(
        self,
        model_name: str,
        version: str,
        stage: Literal["Staging", "Production", "staging", "production"],
        *,
        force: bool | str = False,
        **gate: Any,
    ) -> "Promotion | HistoryEntry":
        """Move a version to a stage, which is an alias: Production is `champion`, Staging is `staging`. The
        promotion gate decides, unless `force`.

        Args:
            version: a registered version, or the id of an optimization run.
            force: True, or better the reason; recorded in the history and on the version. The gate
                can't examine a version that didn't come from an optimization: that one needs `force`.
            gate: further arguments of `Registry.promote`, such as `lm` and `data`.

        Raises:
            ConfigurationError: there is no such model, version or stage.
        """
        from agentcore.registry import Registry

        if stage in _NO_STAGES:
            raise ConfigurationError(
                f"stage {stage!r}: MLflow's stages are deprecated. To take a version out of production, roll "
                f"back: agentcore rollback {model_name}"
            )
        if stage not in _STAGES:
            raise ConfigurationError(f"stage {stage!r}: use Staging or Production")
        registry = Registry(model_name, self._config)
        reason = "AgentTracker.transition_model_stage(force=True)" if force is True else force or None
        to = "staging" if stage.lower() == "staging" else "production"
        await self.tracker.flush()
        return await registry.promote_version(str(version), to, force=reason, **gate)

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until everything logged is in MLflow; see `RunTracker.flush`."""
        await run_in_thread(self.flush_window)
        await self.tracker.flush(timeout)

    # How

    def _run(self) -> str:
        run_id = self.run_id
        if run_id is None:
            raise ConfigurationError("no current run: call start_run first")
        return run_id

    def _text(self, value: Any) -> str:
        """What may leave the process, as JSON of limited size."""
        kept = self._redact(value)
        text = json.dumps(self.tracker.redactor.value(kept), ensure_ascii=False, default=str)
        if len(text.encode("utf-8", "replace")) <= self._bytes:
            return text
        cut = text.encode("utf-8", "replace")[: self._bytes].decode("utf-8", "ignore")
        return json.dumps(cut + _CUT, ensure_ascii=False)

    def flush_window(self) -> None:
        """Write the traces that wait to the journal; kept if that fails."""
        with self._writing:
            flusher.drop(self)  # before they are taken: a request that comes later adds it again
            taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._dropping = False
            by_run: dict[str, list[TraceRecord]] = {}
            for run_id, record in taken:
                by_run.setdefault(run_id, []).append(record)
            events = [
                (run_id, TracesLogged(traces=records[start : start + _BATCH]))
                for run_id, records in by_run.items()
                for start in range(0, len(records), _BATCH)
            ]
            try:
                while events:
                    run_id, event = events[0]
                    run_blocking(self.tracker.log([event], run_id=run_id))
                    events.pop(0)
            except BaseException:
                rest = [(run, record) for run, item in events for record in item.traces]
                rest += [self._waiting.popleft() for _ in range(len(self._waiting))]
                self._waiting.extend(rest)  # of too many, the oldest are dropped
                flusher.add(self)
                raise

    def finish(self) -> None:
        """Write the traces that wait."""
        self.flush_window()

    def forget(self) -> None:
        """Drop what the parent process gathered."""
        self._writing = threading.Lock()
        self._waiting.clear()


class AgentTracker(SyncTwin):
    """Tracks a running agent. Blocking, but never longer than a write to the journal; may be called from any
    thread and inside a running event loop. Each thread has its own current run. `.aio` is the awaitable twin.

    Args:
        agent, config, options: see `AsyncAgentTracker`.
    """

    _target: AsyncAgentTracker

    def __init__(self, agent: str, config: MLflowConfig | None = None, **options: Any) -> None:
        target = AsyncAgentTracker(agent, config, **options)
        super().__init__(target, carry=[target.tracker._current, current_run])

    @property
    def aio(self) -> AsyncAgentTracker:
        """The same, awaited."""
        return self._target

    @property
    def run_id(self) -> str | None:
        """The current run of this thread."""
        return self.aio.run_id

    start_run = blocking(AsyncAgentTracker.start_run)
    end_run = blocking(AsyncAgentTracker.end_run)
    log_metrics = blocking(AsyncAgentTracker.log_metrics)
    log_params = blocking(AsyncAgentTracker.log_params)
    log_request = blocking(AsyncAgentTracker.log_request)
    log_dataset = blocking(AsyncAgentTracker.log_dataset)
    log_evaluation_results = blocking(AsyncAgentTracker.log_evaluation_results)
    log_model = blocking(AsyncAgentTracker.log_model)
    transition_model_stage = blocking(AsyncAgentTracker.transition_model_stage)  # type: ignore[arg-type]  # **gate
    flush = blocking(AsyncAgentTracker.flush)
