"""Runs programs on Ray workers, while this process keeps their models and makes their LM calls."""

import asyncio
import contextlib
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import cloudpickle
import dspy
from dspy.dsp.utils.settings import DEFAULT_CONFIG

from agentcore._redaction import first_line
from agentcore._threads import run_in_thread
from agentcore.errors import ConfigurationError, ExecutorError
from agentcore.evaluation._executor import Ran, Runner, first_error
from agentcore.evaluation.ray._example import Attempt, ExampleOnRay, result_of
from agentcore.evaluation.ray._start import connect
from agentcore.evaluation.ray._wire import Outcome, dump
from agentcore.evaluation.ray._worker import Worker, versions

_ATTEMPTS = 3
"""How often an example is run if its worker dies. Retries get a worker to themselves, so that an example that
kills its worker is identified and doesn't take other examples down with it."""
_STARTS = 3
"""How many workers in a row may die before one starts successfully."""
_AT_ONCE = 10_000
"""Ray's limit on concurrent calls per actor, set higher than any `max_concurrency`."""
_KEPT_PROGRAMS = 64
_OF_THE_DRIVER = {
    *("lm", "trace", "callbacks", "caller_modules", "caller_predict", "usage_tracker"),
    *("send_stream", "stream_listeners", "disable_history", "max_history_size"),
}
"""DSPy settings that are meaningless on another machine."""


class RayExecutor:
    """Runs programs on a Ray cluster.

    The driver makes the workers' LM calls: API keys never leave it, and caps, rate limits, cache and cost
    accounting work as they do without Ray. If a worker dies, its example is run again without repeating LM
    calls that were already answered.

    Args:
        address: the cluster's address; None uses RAY_ADDRESS if set, and otherwise starts Ray locally.
        workers: number of worker processes; None for one per CPU of the cluster, but no more than the number
            of examples in flight.
        options: Ray's own options for each worker, such as `num_cpus`, `num_gpus`, `resources`.
        runtime_env: Ray's `runtime_env`, such as `{"working_dir": "."}`, if workers lack the program's code.
        patience: seconds to wait for the first worker to start.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        options: Mapping[str, Any] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        patience: float = 300.0,
    ) -> None:
        if workers is not None and workers < 1:
            raise ConfigurationError(f"workers must be at least 1, not {workers}")
        self.address = address
        self.workers = workers
        self.options = dict(options or {})
        self.runtime_env = dict(runtime_env or {})
        self.patience = patience

    @asynccontextmanager
    async def open(self, at_once: int) -> AsyncIterator["_Cluster"]:
        """Start the workers; they are stopped when the block exits.

        Raises:
            ExecutorError: the cluster can't be reached, or no worker starts.
            ConfigurationError: workers and driver have different versions.
        """
        ray = await run_in_thread(lambda: connect(self.address, self.runtime_env))
        cpus = ray.cluster_resources().get("CPU", 1) / (self.options.get("num_cpus") or 1)
        count = self.workers or max(1, min(int(cpus), at_once))
        cluster = _Cluster(ray, count, self.options, self.patience)
        try:
            async with asyncio.TaskGroup() as group:
                serving = [group.create_task(cluster.serve(worker)) for worker in cluster.workers]
                try:
                    yield cluster
                finally:
                    for task in serving:
                        task.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        finally:
            cluster.close()


@dataclass
class _Worker:
    """One worker process. If it dies, a new actor replaces it."""

    actor: Any
    ready: bool = False
    running: int = 0
    alone: bool = False


@dataclass(frozen=True)
class _Shipped:
    """A program as it is sent to the workers, and the models that stay in this process."""

    digest: str
    ref: Any
    lms: list[Any]
    program: dspy.Module


class _Cluster:
    """The workers of one run; a `Place`. Bound to one event loop."""

    def __init__(self, ray: Any, count: int, options: dict[str, Any], patience: float) -> None:
        self.ray = ray
        self.patience = patience
        chosen = {"num_cpus": 1, **options, "max_concurrency": _AT_ONCE}
        try:
            self._make = ray.remote(Worker).options(**chosen).remote
            self.workers = [_Worker(self._make()) for _ in range(count)]
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"RayExecutor(options=…): {first_line(error)}") from None
        self._changed = asyncio.Condition()
        self._numbers = itertools.count()
        self._attempts: dict[int, Attempt] = {}
        self._shipped: OrderedDict[str, Any] = OrderedDict()
        self._telling: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        for worker in self.workers:
            self.kill(worker.actor)

    # Programs

    async def prepare(self, program: dspy.Module) -> Runner:
        current = dspy.settings.config
        if current.get("track_usage"):
            raise ConfigurationError(
                "executor 'ray' can't report usage per prediction: leave track_usage out, and read the usage "
                "from result.spend or the records"
            )
        settings = {
            name: value
            for name, value in current.items()
            if name not in _OF_THE_DRIVER
            and not name.startswith("agentcore_")
            and (name not in DEFAULT_CONFIG or value != DEFAULT_CONFIG[name])
        }
        settings["lm"] = dspy.settings.lm

        def ship() -> _Shipped:
            try:
                content, lms = dump((program, settings))
            except Exception as error:
                raise ConfigurationError(
                    f"the program can't be sent to Ray's workers: {first_line(error)}. Open files, "
                    "connections and locks in its forward, not in its __init__"
                ) from error
            digest = hashlib.sha256(content).hexdigest()
            if digest not in self._shipped:
                self._shipped[digest] = self.ray.put(content)
                while len(self._shipped) > _KEPT_PROGRAMS:
                    self._shipped.popitem(last=False)
            return _Shipped(digest, self._shipped[digest], lms, program)

        return partial(self.run, await run_in_thread(ship))

    async def run(
        self, shipped: _Shipped, inputs: Mapping[str, Any], *, trace: list[Any] | None = None
    ) -> Ran:
        content = cloudpickle.dumps(dict(inputs))
        try:
            async with asyncio.TaskGroup() as group:
                example = ExampleOnRay(shipped.lms, group)
                try:
                    outcome = await self.outcome(example, shipped, content, trace is not None)
                finally:
                    example.end()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        return result_of(outcome, example, shipped.program, trace)

    async def outcome(
        self, example: ExampleOnRay, shipped: _Shipped, inputs: bytes, tracing: bool
    ) -> Outcome:
        """Run an example, retrying if its worker dies."""
        errors = self.ray.exceptions
        for number in range(_ATTEMPTS):
            async with self.worker(alone=number > 0) as worker:
                actor = worker.actor
                attempt = Attempt(example, next(self._numbers), actor)
                self._attempts[attempt.number] = attempt
                ended = False
                try:
                    asked = (attempt.number, shipped.digest, shipped.ref, inputs, tracing)
                    outcome: Outcome = await actor.run.remote(*asked)
                    ended = True
                    return outcome
                except errors.RayTaskError as error:
                    raise ExecutorError(f"a Ray worker failed: {_cause(error)}") from None
                except errors.RayError:  # it died: killed, out of memory, or its node is gone
                    ended = True
                    await self.replace(worker, actor)
                finally:
                    del self._attempts[attempt.number]
                    if not ended:
                        actor.stop.remote(attempt.number)
        raise RuntimeError(
            f"the Ray worker died {_ATTEMPTS} times while running this example, the last time with no "
            "other example on it"
        )

    # Workers

    async def serve(self, worker: _Worker) -> None:
        """Answer the LM calls of a worker, and of the actors that replace it."""
        errors = self.ray.exceptions
        died = 0
        while True:
            actor = worker.actor
            try:
                if not worker.ready:
                    await self.greet(worker)
                    died = 0
                for question in await actor.questions.remote():
                    attempt = self._attempts.get(question.example)
                    if attempt is not None:
                        attempt.take(question)
            except errors.RayTaskError as error:
                raise ExecutorError(f"a Ray worker failed: {_cause(error)}") from None
            except errors.RayError as error:
                died += not worker.ready
                if died >= _STARTS:
                    raise ExecutorError(f"Ray workers die before they start: {first_line(error)}") from None
                await self.replace(worker, actor)

    async def greet(self, worker: _Worker) -> None:
        """Wait until a worker has started, and check that its versions match this process's."""
        hello = worker.actor.hello.remote()
        while True:
            try:
                async with asyncio.timeout(self.patience):
                    theirs = await hello
                break
            except TimeoutError:
                if any(other.ready for other in self.workers):
                    continue  # it may start later, when the cluster has grown
                raise ExecutorError(
                    f"no Ray worker has started within {self.patience:g} s. The cluster has "
                    f"{self.ray.cluster_resources()}, of which {self.ray.available_resources()} is free. Set "
                    "the number of workers and the resources each needs: RayExecutor(workers=…, options={…})"
                ) from None
        differing = {name: value for name, value in versions().items() if theirs[name] != value}
        if differing:
            told = ", ".join(f"{name} {theirs[name]} (here {value})" for name, value in differing.items())
            raise ConfigurationError(f"Ray's workers have {told}: install the same versions on both sides")
        async with self._changed:
            worker.ready = True
            self._changed.notify_all()

    async def replace(self, worker: _Worker, dead: Any) -> None:
        """Replace a dead actor, unless that has already been done."""
        async with self._changed:
            if worker.actor is dead:
                self.kill(dead)
                worker.actor, worker.ready = self._make(), False
                self._changed.notify_all()

    def kill(self, actor: Any) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):  # it is already gone
            self.ray.kill(actor)

    @asynccontextmanager
    async def worker(self, *, alone: bool) -> AsyncIterator[_Worker]:
        """The least busy worker; with `alone`, reserved for a single example."""

        def free() -> list[_Worker]:
            return [worker for worker in self.workers if worker.ready and not worker.alone]

        async with self._changed:
            while True:
                await self._changed.wait_for(free)
                chosen = min(free(), key=lambda worker: worker.running)
                if not alone or await self.empty(chosen):
                    break
            chosen.running += 1
        try:
            yield chosen
        finally:
            chosen.running -= 1
            chosen.alone = chosen.alone and not alone
            # Not awaited, so that a cancelled example frees its worker too.
            self._tell_soon()

    async def empty(self, chosen: _Worker) -> bool:
        """Reserve a worker for one example once the others on it are done; False if it died meanwhile."""
        chosen.alone = True
        usable = False
        try:
            await self._changed.wait_for(lambda: not chosen.ready or chosen.running == 0)
            usable = chosen.ready
        finally:
            if not usable:
                chosen.alone = False
                self._changed.notify_all()
        return usable

    def _tell_soon(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


def _cause(error: BaseException) -> str:
    return first_line(getattr(error, "cause", None) or error)
