"""`get_metrics_collector`: request metrics of a running agent."""

import logging
import math
import re
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from agentcore._redaction import first_line
from agentcore._sync import run_blocking
from agentcore._threads import run_in_thread
from agentcore.data import current_run
from agentcore.errors import ConfigurationError, TrackingError
from agentcore.monitoring._events import WindowRecorded
from agentcore.monitoring._flusher import flusher
from agentcore.monitoring._otlp import exporter_of
from agentcore.monitoring._totals import Names, Totals
from agentcore.settings import MLflowConfig, Settings
from agentcore.tracking import RunEnded, RunTracker, check_agent, purpose_name

_logger = logging.getLogger("agentcore")

_BATCH = 4096
"""Records gathered before they are added up."""
_MOST = 16 * _BATCH
"""With more records than this waiting, a recording thread waits for its turn to add them up."""

_LARGEST = 1e15
_LONGEST_NAME = 80

EXPERIMENT = "/Shared/ai-agents/{agent}"


class MetricsCollector:
    """Counts requests, durations, tokens, errors and scores of one agent. Get one by `get_metrics_collector`.

    Every `record_…` may be called from any thread and takes about a microsecond: it appends to a queue. Every
    window (`AGENTCORE_METRICS_WINDOW`, 15 s) the sums are written to the journal, and delivered from there to
    MLflow, with the window's number since 1970 as the step. A process that is killed loses what it recorded
    since the last window; one that exits normally loses nothing.

    Attributes:
        run_id: the run that the windows go to; None until the first, unless one was given.
    """

    def __init__(self, agent: str, run_id: str | None = None, config: MLflowConfig | None = None) -> None:
        self.agent = check_agent(agent)
        self.run_id = run_id
        self.window = Settings().metrics_window
        self._owned = run_id is None
        self._ended = False
        self._tracker = RunTracker(agent_config(agent, config))
        self._process = uuid.uuid4().hex
        self._exporter = exporter_of(agent)
        self._queues()
        flusher.add(self)

    def _queues(self) -> None:
        self._adding = threading.Lock()
        self._flushing = threading.Lock()
        self._durations: deque[float] = deque()
        self._requests: deque[str] = deque()
        self._errors: deque[str] = deque()
        self._tokens: deque[tuple[str, int, int, int]] = deque()
        self._scores: deque[tuple[str, float]] = deque()
        self._names = Names()
        self._past = Totals(self._names)
        self._now = Totals(self._names)
        self._writing: Totals | None = None

    @cached_property
    def aio(self) -> "AsyncMetricsCollector":
        """The same, awaited."""
        return AsyncMetricsCollector(self)

    # Recording

    def record_request(self, status: str = "ok") -> None:
        """Count a request by its status, such as `approved`."""
        self._requests.append(status)
        if len(self._requests) >= _BATCH:
            self._add_up(len(self._requests))

    def record_duration(self, duration: float) -> None:
        """Record how long a request took, in milliseconds.

        Raises:
            ConfigurationError: it isn't a number of 0 or more.
        """
        try:
            number = float(duration)
        except (TypeError, ValueError, OverflowError):
            number = -1.0
        if not 0 <= number <= _LARGEST or isinstance(duration, (str, bytes)):
            raise ConfigurationError(f"a duration must be 0 or more milliseconds, not {_short(duration)}")
        self._durations.append(number)
        if len(self._durations) >= _BATCH:
            self._add_up(len(self._durations))

    def record_token_usage(
        self, model: str, tokens: int = 0, *, input_tokens: int = 0, output_tokens: int = 0
    ) -> None:
        """Add tokens of a model: `tokens` if it isn't known which are input and which are output.

        Raises:
            ConfigurationError: one of them isn't a whole number of 0 or more.
        """
        for number in (tokens, input_tokens, output_tokens):
            whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
            if not whole or not 0 <= number <= _LARGEST:
                raise ConfigurationError(f"tokens must be a whole number, 0 or more, not {_short(number)}")
        self._tokens.append((model, input_tokens, output_tokens, tokens))
        if len(self._tokens) >= _BATCH:
            self._add_up(len(self._tokens))

    def record_error(self, error_type: str) -> None:
        """Count an error by its type, such as `ValidationError`."""
        self._errors.append(error_type)
        if len(self._errors) >= _BATCH:
            self._add_up(len(self._errors))

    def record_score(self, name: str, value: float) -> None:
        """Record a value of a decision, such as a risk score.

        Raises:
            ConfigurationError: it is no finite number.
        """
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.inf
        if not abs(number) <= _LARGEST or isinstance(value, (str, bytes)):
            raise ConfigurationError(f"score {_short(name)} must be a finite number, not {_short(value)}")
        self._scores.append((name, number))
        if len(self._scores) >= _BATCH:
            self._add_up(len(self._scores))

    # Reading

    def get_summary(self) -> dict[str, Any]:
        """Everything that this process has recorded, as plain numbers. Durations are in milliseconds, and
        quantiles are at most 0.4 % off."""
        whole = self._whole()
        return {"agent": self.agent, "run_id": self.run_id, **whole.summary()}

    def state(self) -> dict[str, Any]:
        """The same as JSON that `merged_summary` can add to that of other processes."""
        whole = self._whole()
        return whole.state()

    def flush(self, timeout: float | None = None) -> None:
        """Write the current window, and wait until everything is in MLflow.

        Raises:
            JournalError, TrackingError: see `RunTracker.flush`.
        """
        run_blocking(self.aio.flush(timeout))

    def close(self) -> None:
        """Write the last window, and end the run if it is the collector's own."""
        self.finish()
        flusher.drop(self)
        for key, known in list(_collectors.items()):
            if known is self:
                del _collectors[key]

    def finish(self) -> None:
        """Write the last window, and end the run if it is the collector's own."""
        self.flush_window()
        if self._owned and self.run_id is not None and not self._ended:
            run_id = self.run_id
            run_blocking(self._tracker.log([RunEnded(status="FINISHED")], run_id=run_id))
            self._ended = True

    # How

    def _whole(self) -> Totals:
        """Everything recorded so far, with the window that is being written."""
        whole = Totals(self._names)
        with self._adding:
            self._take()
            for part in (self._past, self._writing, self._now):
                if part is not None:
                    whole.merge(part)
        return whole

    def _add_up(self, waiting: int) -> None:
        """Add up what waits, unless another thread does."""
        if self._adding.acquire(blocking=waiting >= _MOST):
            try:
                self._take()
            finally:
                self._adding.release()

    def _take(self) -> None:
        """Move everything from the queues into the window. Appending needs no lock."""
        now = self._now
        now.add_counts("requests", now.requests, self._named(Counter(_taken(self._requests))))
        now.add_counts("errors", now.errors, self._named(Counter(_taken(self._errors))))
        now.durations.add(np.asarray(_taken(self._durations), dtype=float))
        by_model: dict[Any, list[int]] = {}
        for model, *amounts in _taken(self._tokens):
            known = by_model.setdefault(model, [0, 0, 0, 0])
            for number, amount in enumerate((*amounts, 1)):
                known[number] += int(amount)
        for model, (read, written, untold, calls) in by_model.items():
            now.add_tokens(self._name(model), (read, written, untold, calls))
        by_score: dict[Any, list[float]] = {}
        for name, value in _taken(self._scores):
            by_score.setdefault(name, []).append(value)
        for name, values in by_score.items():
            now.add_scores(self._name(name), np.asarray(values))

    def _name(self, given: Any) -> str:
        """A name from a request: without secrets, and short."""
        return self._tracker.redactor.text(str(given))[:_LONGEST_NAME]

    def _named(self, counts: "Counter[Any]") -> "Counter[str]":
        found: Counter[str] = Counter()
        for name, count in counts.items():
            found[self._name(name)] += count
        return found

    def flush_window(self) -> None:
        """Write the window to the journal; kept if that fails."""
        with self._flushing:
            with self._adding:
                self._take()
                window, self._now = self._now, Totals(self._names)
                self._writing = window
            if not window:
                return
            try:
                run_blocking(self._write(window))
            except BaseException:
                with self._adding:
                    window.merge(self._now)
                    self._now, self._writing = window, None
                raise
            with self._adding:
                self._past.merge(window)
                self._writing = None
                past = Totals.of(self._past.state()) if self._exporter else None
        if self._exporter is not None and past is not None:
            try:
                self._exporter.export(past)
            except TrackingError as error:
                _logger.warning("%s", first_line(error))

    async def _write(self, window: Totals) -> None:
        number = int(time.time() // self.window)
        if self.run_id is None:
            outer = current_run.get()
            self.run_id = await self._tracker.start_run(
                run_name=purpose_name(self.agent, "metrics"), tags={"agent_name": self.agent}, wait=0
            )
            current_run.set(outer)
        entries = self._tracker.entries
        recorded = WindowRecorded(process=self._process, window=number, state=window.state())
        # Only flushing changes the past, and flushes are one at a time.
        totals = {
            "requests_total": float(self._past.requests.total() + window.requests.total()),
            "errors_total": float(self._past.errors.total() + window.errors.total()),
        }
        drafts = entries.metrics({**window_metrics(window), **totals}, number)
        await self._tracker.log([*drafts, recorded], run_id=self.run_id)

    def forget(self) -> None:
        """Start again, in a child process."""
        if self._owned:
            self.run_id = None
        self._process = uuid.uuid4().hex
        self._queues()


class AsyncMetricsCollector:
    """The waiting methods of a collector, awaited; recording never waits."""

    def __init__(self, collector: MetricsCollector) -> None:
        self._collector = collector

    async def get_summary(self) -> dict[str, Any]:
        """See `MetricsCollector.get_summary`."""
        return await run_in_thread(self._collector.get_summary)

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """See `MetricsCollector.flush`."""
        await run_in_thread(self._collector.flush_window)
        if self._collector.run_id is not None:
            await self._collector._tracker.flush(timeout, run_id=self._collector.run_id)

    async def close(self) -> None:
        """See `MetricsCollector.close`."""
        await run_in_thread(self._collector.close)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "such a large number"
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"


def _taken(queue: "deque[Any]") -> list[Any]:
    return [queue.popleft() for _ in range(len(queue))]


def agent_config(agent: str, config: MLflowConfig | None) -> MLflowConfig:
    """The configuration with the experiment of a running agent."""
    name = EXPERIMENT.format(agent=check_agent(agent))
    return (config or MLflowConfig()).model_copy(update={"experiment_name": name})


def window_metrics(window: Totals) -> dict[str, float | None]:
    """A window's metrics, by the names that they have in MLflow."""
    found = window.summary()
    metrics: dict[str, float | None] = {
        "requests": found["total_requests"],
        "errors": found["total_errors"],
        "error_rate": found["error_rate"],
        "avg_latency_ms": found["avg_duration_ms"],
        "p50_latency_ms": found["p50_duration_ms"],
        "p95_latency_ms": found["p95_duration_ms"],
        "p99_latency_ms": found["p99_duration_ms"],
        "total_tokens": found["total_tokens"],
        "input_tokens": found["input_tokens"],
        "output_tokens": found["output_tokens"],
    }
    for kind, by_name in (
        ("requests", found["requests_by_status"]),
        ("errors", found["errors_by_type"]),
        ("tokens", found["tokens_by_model"]),
    ):
        for name, count in by_name.items():  # different names may become the same
            key = f"{kind}/{metric_name(name)}"
            metrics[key] = (metrics.get(key) or 0) + count
    for name, values in found["scores"].items():
        metrics |= {f"score/{metric_name(name)}/{part}": values[part] for part in ("avg", "p50", "p95")}
    return metrics


def metric_name(name: str) -> str:
    """A name from a request as a part of a metric's name."""
    return re.sub(r"[^\w.\- :]+", "_", name).strip("./ ")[:80] or "unnamed"


_collectors: dict[tuple[str, str | None], MetricsCollector] = {}


def get_metrics_collector(
    agent: str, run_id: str | None = None, *, config: MLflowConfig | None = None
) -> MetricsCollector:
    """The collector of an agent in this process.

    Args:
        run_id: the run that gets the metrics, by any of its ids; default: a run of the collector's own,
            `{agent}_metrics_{timestamp}` in the experiment `/Shared/ai-agents/{agent}`.
        config: the MLflow server, for the first call; default: from the environment.
    """
    found = _collectors.get((agent, run_id))
    if found is None:
        made = MetricsCollector(agent, run_id, config)
        found = _collectors.setdefault((agent, run_id), made)
        if found is not made:
            flusher.drop(made)
    return found


def merged_summary(states: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The summary of several processes' `state()`."""
    whole = Totals(Names())
    for state in states:
        whole.merge(Totals.of(state))
    return whole.summary()


def recorded_summary(run_id: str, agent: str, config: MLflowConfig | None = None) -> dict[str, Any]:
    """The summary of every window of a run that the journal holds, of all processes.

    Raises:
        ConfigurationError: the journal has no such run.
    """
    tracker = RunTracker(agent_config(agent, config))

    async def read() -> list[dict[str, Any]]:
        journal, delivery = await tracker.opened()
        stream = await run_in_thread(lambda: journal.resolve(run_id, destination=delivery.destination))
        if stream is None:
            raise ConfigurationError(f"the journal at {journal.location} has no run {run_id}")
        entries = await run_in_thread(lambda: journal.read(stream.id, of=WindowRecorded))
        return [entry.event.state for entry in entries if isinstance(entry.event, WindowRecorded)]

    return merged_summary(run_blocking(read()))
