"""Background delivery of journal entries to MLflow."""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agentcore import _process
from agentcore._forks import not_forked
from agentcore._redaction import first_line
from agentcore.errors import AgentCoreError, JournalError, LeaseLostError, TrackingError
from agentcore.journal import Journal
from agentcore.settings import MLflowConfig, Settings, shown_uri
from agentcore.tracking._connection import Connection, Held, Unreachable, connection_to
from agentcore.tracking._sender import Sender
from agentcore.tracking._times import MetricTimes

_logger = logging.getLogger("agentcore")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_TAKEN_PAUSE = 1.0
"""Seconds until retrying a run that another process is delivering."""
_POLL = 1.0
_SILENCE = 120.0
"""Seconds that a flush without a timeout waits if there is neither progress nor a failure, e.g. because a
suspended process is delivering the run."""


@dataclass
class _Failure:
    """The last error in a run's delivery."""

    error: TrackingError
    count: int
    began: float
    """`time.monotonic()` when the last attempt began."""
    at: float
    """`time.monotonic()` when it failed."""

    @property
    def pause(self) -> float:
        if isinstance(self.error, Held):
            return _LONGEST_PAUSE
        return float(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self.count - 1)))


class Delivery:
    """Threads that deliver the runs of one destination: in order within a run, several runs at once.

    Each run is delivered under a lease, so `agentcore sync` and other processes can run at the same time.
    Failures are retried with pauses of up to 30 s; undelivered entries stay in the journal.
    """

    def __init__(self, journal: Journal, config: MLflowConfig, own: set[str] | None = None) -> None:
        self.journal = journal
        self.destination = destination_of(config)
        self.own = set() if own is None else own
        self.times = MetricTimes()
        """Runs that this process writes to, through any delivery to this destination."""
        self.connection: Connection = connection_to(config)
        self._due: dict[str, float] = {}
        self._active: set[str] = set()
        self._failures: dict[str, _Failure] = {}
        self._told: set[tuple[str, int]] = set()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._ready = False
        self._stopping = False

    # From any thread

    @property
    def stopped(self) -> bool:
        return self._stopping

    def notify(self, stream: str) -> None:
        """Report that something was appended to this process's `stream`."""
        with self._changed:
            self.own.add(stream)
            self._due.setdefault(stream, 0.0)
            self._start()
            self._changed.notify_all()

    def deliver_backlog(self) -> list[str]:
        """Schedule the runs waiting for this destination, except those of processes that are still working on
        them and deliver them themselves; returns their ids."""
        found = [item.id for item in self.journal.waiting(self.destination) if item.working != "yes"]
        with self._changed:
            for stream in found:
                self._due.setdefault(stream, 0.0)
            if found:
                self._start()
            self._changed.notify_all()
        return found

    def problem(self, stream: str | None = None) -> str | None:
        """The error that currently blocks the delivery of a run (or of any run), if there is one."""
        with self._changed:
            if stream is not None:
                failure = self._failures.get(stream)
                return str(failure.error) if failure else None
            return next((str(item.error) for item in self._failures.values()), None)

    def wait_for_run(self, stream: str, seconds: float) -> str | None:
        """Wait until the server has created the run, and return its id.

        None if that fails or takes longer than `seconds`, not counting the time to import MLflow.

        Raises:
            Held: the server refuses this client.
        """
        deadline: float | None = None
        while True:
            known = self.journal.stream(stream)
            if known is not None and known.tracking_id is not None:
                return known.tracking_id
            with self._changed:
                failure = self._failures.get(stream)
                if failure is not None and isinstance(failure.error, Held):
                    raise failure.error
                if failure is not None:
                    return None
                now = time.monotonic()
                if deadline is None and self._ready:
                    deadline = now + seconds
                if self._stopping or (deadline is not None and now >= deadline):
                    return None
                self._changed.wait(0.05 if deadline is None else min(0.05, deadline - now))

    def flush(
        self, streams: Iterable[str] | None = None, *, timeout: float | None = None, patience: float = 3.0
    ) -> None:
        """Wait until what runs have in the journal now is delivered; not for what is added meanwhile.

        Args:
            streams: their ids; default: those that this process wrote to.
            timeout: seconds after which to give up; None waits as long as there is progress.
            patience: seconds to keep waiting while deliveries fail without any progress.

        Raises:
            TrackingError: not everything was delivered; it stays in the journal.
        """
        wanted = self._goals(set(self.own if streams is None else streams))
        began = time.monotonic()
        self._hurry(set(wanted))
        moved, before = began, -1
        while left := self._left(wanted):
            now = time.monotonic()
            if sum(left.values()) != before:
                moved, before = now, sum(left.values())
            with self._changed:
                failing = [self._failures.get(stream) for stream in left]
            fresh = [item for item in failing if item is not None and item.at > began]
            # An attempt under way when this flush began met what may have been put right since.
            refused = len(fresh) == len(left) and all(
                isinstance(item.error, Held) and item.began > began for item in fresh
            )
            stuck = bool(fresh) and now - max(began, moved) > patience
            late = now - began > timeout if timeout is not None else now - max(began, moved) > _SILENCE
            if refused or stuck or late or self._stopping:
                raise self._undelivered(left, fresh[0].error if fresh else None)
            with self._changed:
                for stream in left.keys() - self._active:
                    failure = self._failures.get(stream)
                    if failure is not None and failure.began <= began:
                        self._due[stream] = 0.0
                    self._due.setdefault(stream, 0.0)
                self._start()
                self._changed.notify_all()
                self._changed.wait(0.1)

    def halt(self) -> None:
        """Start nothing more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop the threads once each has finished its request in flight."""
        self.halt()
        for thread in self._threads:
            thread.join(timeout=2 * self.connection.config.request_timeout)

    # How

    def _hurry(self, streams: set[str]) -> None:
        with self._changed:
            for stream in streams & self._due.keys():
                self._due[stream] = 0.0
            self._changed.notify_all()

    def _goals(self, streams: set[str]) -> dict[str, int]:
        """The last entry of each run that has entries waiting."""
        return {
            item.id: item.last_seq for item in self.journal.waiting(self.destination) if item.id in streams
        }

    def _left(self, goals: Mapping[str, int]) -> dict[str, int]:
        """How many entries each run is short of its goal."""
        return {
            item.id: goals[item.id] - item.delivered
            for item in self.journal.waiting(self.destination)
            if item.delivered < goals.get(item.id, 0)
        }

    def refused(self, streams: Iterable[str]) -> list[tuple[int, str]]:
        """Entries that MLflow has refused for good and that nobody has been told of yet."""
        found = []
        for stream in streams:
            for seq, reason in self.journal.rejected(stream):
                if (stream, seq) not in self._told:
                    self._told.add((stream, seq))
                    found.append((seq, reason))
        return found

    def _undelivered(self, left: dict[str, int], error: TrackingError | None) -> TrackingError:
        runs = "1 run waits" if len(left) == 1 else f"{len(left)} runs wait"
        why = str(error) if error else f"MLflow at {self.destination} did not accept everything in time"
        return TrackingError(f"{why}. {runs} in the journal; deliver with: agentcore sync")

    def _start(self) -> None:
        """Start all threads; at exit no more can be started. The caller holds the condition."""
        if self._threads or self._stopping:
            return
        for number in range(self.connection.slots):
            thread = threading.Thread(target=self._work, name=f"agentcore-delivery-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while (stream := self._next()) is not None:
            error: TrackingError | None = None
            taken = False
            began = time.monotonic()
            try:
                self._prepare()
                taken = not self._deliver(stream)
            except LeaseLostError:
                taken = True
            except TrackingError as failure:
                error = failure
            except AgentCoreError as failure:  # the journal can't be read or written right now
                error = TrackingError(str(failure))
            except Exception as failure:  # noqa: BLE001 - reported and retried; must not stop other runs
                error = TrackingError(f"a delivery failed: {first_line(failure)}")
            self._finished(stream, error, taken, began)

    def _next(self) -> str | None:
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                due = [
                    (when, stream)
                    for stream, when in self._due.items()
                    if stream not in self._active and when <= now
                ]
                # While the server is unreachable, only one request at a time checks whether it is back.
                away = any(isinstance(item.error, Unreachable) for item in self._failures.values())
                if due and not (away and self._active):
                    _, stream = min(due, key=lambda item: item[0])
                    del self._due[stream]
                    self._active.add(stream)
                    return stream
                later = [when - now for when in self._due.values() if when > now]
                self._changed.wait(min([*later, 60.0]) if not due else _POLL)
            return None

    def _prepare(self) -> None:
        if not self._ready:
            self.connection.prepare()
            with self._changed:
                self._ready = True
                self._changed.notify_all()

    def _deliver(self, stream: str) -> bool:
        """Deliver a run's waiting entries; False if another process is delivering them."""
        lease = self.journal.acquire(stream, "deliver").result()
        if lease is None:
            return False
        try:
            known = self.journal.stream(stream)
            if known is not None:
                Sender(self.journal, self.connection, known, lease, self._progressed(stream)).run()
        finally:
            # Released as soon as the journal can be written again: this process would hold it for its life.
            self.journal.abandon(lease)
        return True

    def _progressed(self, stream: str) -> Callable[[], None]:
        def tell() -> None:
            with self._changed:
                self._failures.pop(stream, None)
                self._changed.notify_all()

        return tell

    def _finished(self, stream: str, error: TrackingError | None, taken: bool, began: float) -> None:
        with self._changed:
            self._active.discard(stream)
            now = time.monotonic()
            if error is not None:
                before = self._failures.get(stream)
                failure = _Failure(error, before.count + 1 if before else 1, began, now)
                self._failures[stream] = failure
                self._due[stream] = now + failure.pause
            else:
                self._failures.pop(stream, None)
                if not self._failures:
                    for other, when in self._due.items():  # the server is back: skip the remaining pauses
                        self._due[other] = min(when, now)
                if taken and stream in self.own:
                    self._due[stream] = now + _TAKEN_PAUSE
            self._changed.notify_all()


def destination_of(config: MLflowConfig) -> str:
    """A tracking server's name in the journal: its URI without a password, and with an absolute file path."""
    uri = config.tracking_uri
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        uri = prefix + os.path.abspath(uri.removeprefix(prefix))  # noqa: PTH100 - no file is looked at
    return shown_uri(uri)


_deliveries: dict[tuple[int, str, int, int], Delivery] = {}
_own: dict[tuple[int, str, int], set[str]] = {}
_lock = threading.Lock()


def delivery_for(journal: Journal, config: MLflowConfig) -> Delivery:
    """The delivery from a journal to a server; one per server and credentials in this process."""
    with not_forked(), _lock:
        where = (id(journal), destination_of(config), os.getpid())
        # Other credentials or limits get their own delivery, since the existing one may not work.
        key = (*where, id(connection_to(config)))
        if key not in _deliveries:
            if not _deliveries:
                atexit.register(finish_deliveries)
            _deliveries[key] = Delivery(journal, config, _own.setdefault(where, set()))
            threading.Thread(
                target=_take_over, args=(_deliveries[key],), name="agentcore-backlog", daemon=True
            ).start()
        return _deliveries[key]


def _take_over(delivery: Delivery) -> None:
    """Deliver what earlier processes left in the journal, and prune old delivered runs."""
    try:
        delivery.deliver_backlog()
        keep_ms = Settings().journal_keep_days * 86_400_000
        delivery.journal.prune(round(time.time() * 1000 - keep_ms))
    except JournalError as error:
        _logger.warning("%s", error)


def stop_deliveries() -> None:
    """Stop all deliveries of this process; undelivered entries stay in the journal."""
    with _lock:
        for delivery in _deliveries.values():
            delivery.stop()
        _deliveries.clear()
        _own.clear()


def finish_deliveries() -> None:
    """Deliver what this process has logged, for at most `_process.exit_seconds`."""
    if _process.exit_seconds is None:
        return
    deadline = time.monotonic() + _process.exit_seconds
    for (_, _, pid, _), delivery in list(_deliveries.items()):
        if pid != os.getpid():
            continue  # a forked child has none of the threads
        try:
            delivery.flush(timeout=max(0.0, deadline - time.monotonic()), patience=1.0)
        except AgentCoreError as error:
            _logger.warning("%s", error)
