"""Programs on the workers of a Ray cluster: this process keeps their models, and makes their LM calls."""

import asyncio
import contextvars
import hashlib
import itertools
import json
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import cloudpickle
import dspy
from dspy.clients._deprecation import adapter_message_call
from dspy.dsp.utils.settings import DEFAULT_CONFIG

from agentcore._threads import run_in_thread
from agentcore.errors import ConfigurationError, ExecutorError, first_line
from agentcore.evaluation._executor import Ran, Runner
from agentcore.evaluation._first_error import first_error
from agentcore.evaluation._ray_start import connect
from agentcore.evaluation._ray_wire import Answer, Outcome, Question, dump, dump_error
from agentcore.evaluation._ray_worker import Worker, versions

if find_spec("ray") is None:
    raise ConfigurationError("executor 'ray' needs Ray: pip install 'agentcore[ray]'")

_ATTEMPTS = 3
"""Runs of an example whose worker died; after the first it has a worker to itself, so that the example that
kills workers is found, and no other suffers for it."""
_STARTS = 3
"""Workers in a row that may die before they have answered once."""
_AT_ONCE = 10_000
"""Calls of one actor that Ray lets run at once: more than `max_concurrency` can ask for."""
_KEPT_PROGRAMS = 64
_OF_THE_DRIVER = {
    *("lm", "trace", "callbacks", "caller_modules", "caller_predict", "usage_tracker"),
    *("send_stream", "stream_listeners", "disable_history", "max_history_size"),
}
"""DSPy's settings that mean nothing on another machine."""


class RayExecutor:
    """Runs programs on a Ray cluster.

    The driver makes the workers' LM calls itself: keys stay with it, and caps, rate limits, cache and
    account hold as they do without Ray. An example whose worker dies is run again; what its models had
    answered is not asked again.

    Args:
        address: of the cluster; None takes RAY_ADDRESS, and without one starts Ray on this machine.
        workers: processes that run programs; None for one by CPU of the cluster, at most one by example
            in flight.
        options: Ray's own for each worker, such as `num_cpus`, `num_gpus`, `resources`, `runtime_env`.
        patience: seconds that the first worker may take to start.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        options: Mapping[str, Any] | None = None,
        patience: float = 300.0,
    ) -> None:
        if workers is not None and workers < 1:
            raise ConfigurationError(f"workers must be at least 1, not {workers}")
        self.address = address
        self.workers = workers
        self.options = dict(options or {})
        self.patience = patience

    @asynccontextmanager
    async def open(self, at_once: int) -> AsyncIterator["_Cluster"]:
        """Start the workers; they end with the block.

        Raises:
            ExecutorError: no cluster answers, or no worker starts.
            ConfigurationError: the workers have other versions than the driver.
        """
        ray = await run_in_thread(lambda: connect(self.address))
        cpus = int(ray.cluster_resources().get("CPU", 1))
        count = self.workers or max(1, min(cpus, at_once))
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
    """One worker process; its actor is another one after it died."""

    actor: Any
    ready: bool = False
    running: int = 0
    alone: bool = False


@dataclass(frozen=True)
class _Shipped:
    """A program as the workers get it, and the models that it left here."""

    digest: str
    ref: Any
    lms: list[Any]
    program: Any


@dataclass
class _Example:
    """One example over all its attempts, and what its models have said."""

    lms: list[Any]
    said: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    errors: list[Exception] = field(default_factory=list)


@dataclass
class _Attempt:
    """One run of an example on one worker, and the LM calls that it makes here."""

    example: _Example
    number: int
    actor: Any
    group: asyncio.TaskGroup
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    asking: set[asyncio.Task[None]] = field(default_factory=set)
    replay: dict[str, deque[Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.replay = {key: deque(values) for key, values in self.example.said.items()}

    def begin(self, answering: Coroutine[Any, Any, None]) -> None:
        """Make an LM call under the settings and on the account of the example."""
        task = self.group.create_task(answering, context=self.context.copy())
        self.asking.add(task)
        task.add_done_callback(self.asking.discard)

    async def ask(self, question: Question) -> Any:
        """A model's answer: the one that an earlier attempt had, else a new one."""
        key = _key(question)
        if self.replay.get(key):
            return self.replay[key].popleft()
        lm = self.example.lms[question.model]
        prompt, messages, kwargs = question.prompt, question.messages, question.kwargs
        # An adapter wrote the messages, on the worker. Lift with DSPy's own warning, in 3.5.
        with adapter_message_call(lm, messages):
            if question.blocking:
                answer = await run_in_thread(lambda: lm(prompt, messages=messages, **kwargs))
            else:
                answer = await lm.acall(prompt, messages=messages, **kwargs)
        self.example.said[key].append(answer)
        return answer


def _key(question: Question) -> str:
    asked = [question.model, question.prompt, question.messages, question.kwargs]
    return json.dumps(
        asked, sort_keys=True, default=lambda value: getattr(value, "__qualname__", repr(value))
    )


class _Cluster:
    """The workers of one run; see `Place`. Belongs to one event loop."""

    def __init__(self, ray: Any, count: int, options: dict[str, Any], patience: float) -> None:
        self.ray = ray
        self.died = ray.exceptions.RayActorError
        self.patience = patience
        chosen = {"num_cpus": 1, **options, "max_concurrency": _AT_ONCE}
        self._make = ray.remote(Worker).options(**chosen).remote
        self.workers = [_Worker(self._make()) for _ in range(count)]
        self._changed = asyncio.Condition()
        self._numbers = itertools.count()
        self._attempts: dict[int, _Attempt] = {}
        self._shipped: OrderedDict[str, Any] = OrderedDict()
        self._telling: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        for worker in self.workers:
            self.ray.kill(worker.actor)

    # Programs

    async def prepare(self, program: Any) -> Runner:
        current = dspy.settings.config
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
        example = _Example(shipped.lms)
        content = cloudpickle.dumps(dict(inputs))
        for attempt in range(_ATTEMPTS):
            async with self.worker(alone=attempt > 0) as worker:
                actor = worker.actor
                try:
                    outcome = await self.attempt(actor, example, shipped, content, trace is not None)
                except self.died:
                    await self.replace(worker, actor)
                else:
                    return _result(outcome, example, shipped.program, trace)
        raise RuntimeError(
            f"its Ray worker died {_ATTEMPTS} times while the program ran, in the end with nothing else on it"
        )

    async def attempt(
        self, actor: Any, example: _Example, shipped: _Shipped, inputs: bytes, tracing: bool
    ) -> Outcome:
        number = next(self._numbers)
        try:
            async with asyncio.TaskGroup() as group:
                attempt = self._attempts[number] = _Attempt(example, number, actor, group)
                ended = False
                try:
                    outcome: Outcome = await actor.run.remote(
                        number, shipped.digest, shipped.ref, inputs, tracing
                    )
                    ended = True
                    return outcome
                finally:
                    self._attempts.pop(number, None)
                    if not ended:
                        actor.stop.remote(number)
                    for task in list(attempt.asking):
                        task.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None

    # Workers

    async def serve(self, worker: _Worker) -> None:
        """Answer a worker's questions as long as it lives, and those of its successors."""
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
                        attempt.begin(self.answer(attempt, question))
            except self.died as error:
                died += not worker.ready
                if died >= _STARTS:
                    raise ExecutorError(
                        f"Ray's workers die before they have begun: {first_line(error)}"
                    ) from None
                await self.replace(worker, actor)

    async def greet(self, worker: _Worker) -> None:
        """Wait until a worker is there, of the same versions as this process."""
        try:
            async with asyncio.timeout(self.patience):
                theirs = await worker.actor.hello.remote()
        except TimeoutError:
            if not any(other.ready for other in self.workers):
                raise ExecutorError(
                    f"no Ray worker has started for {self.patience:g} s. The cluster has "
                    f"{self.ray.cluster_resources()}; what a worker needs is RayExecutor(options={{…}})"
                ) from None
            return
        except self.ray.exceptions.RayTaskError as error:
            raise ExecutorError(f"Ray's workers can't begin: {_cause(error)}") from None
        differing = {name: value for name, value in versions().items() if theirs[name] != value}
        if differing:
            told = ", ".join(f"{name} {theirs[name]} (here {value})" for name, value in differing.items())
            raise ConfigurationError(f"Ray's workers have {told}: install the same versions there")
        async with self._changed:
            worker.ready = True
            self._changed.notify_all()

    async def replace(self, worker: _Worker, dead: Any) -> None:
        """Start another actor in a dead one's place; whoever notices first does it."""
        async with self._changed:
            if worker.actor is dead:
                self.ray.kill(dead)
                worker.actor, worker.ready = self._make(), False

    async def answer(self, attempt: "_Attempt", question: Question) -> None:
        try:
            answer = Answer(question.number, cloudpickle.dumps(await attempt.ask(question)))
        except Exception as error:  # noqa: BLE001 - the program gets it, as it would here
            attempt.example.errors.append(error)
            answer = Answer(question.number, dump_error(error), len(attempt.example.errors) - 1)
        except BaseException:
            self._attempts.pop(attempt.number, None)  # its group takes no more questions
            raise
        attempt.actor.answer.remote(attempt.number, answer)

    @asynccontextmanager
    async def worker(self, *, alone: bool) -> AsyncIterator[_Worker]:
        """The worker with the least to do; `alone` with nothing else on it."""

        def free() -> list[_Worker]:
            return [worker for worker in self.workers if worker.ready and not worker.alone]

        async with self._changed:
            await self._changed.wait_for(free)
            chosen = min(free(), key=lambda worker: worker.running)
            chosen.alone = alone
            try:
                await self._changed.wait_for(lambda: not alone or (chosen.ready and chosen.running == 0))
            except BaseException:
                chosen.alone = False
                self._changed.notify_all()
                raise
            chosen.running += 1
        try:
            yield chosen
        finally:
            chosen.running -= 1
            chosen.alone = chosen.alone and not alone
            # Not awaited: a cancelled example must give its place back too.
            self._tell_soon()

    def _tell_soon(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


def _result(outcome: Outcome, example: _Example, program: Any, trace: list[Any] | None) -> Ran:
    """A prediction, and its trace with this process's predictors; raises what the program raised."""
    if outcome.unable is not None:
        raise ConfigurationError(f"executor 'ray': {outcome.unable}")
    if outcome.error_number is not None:
        raise example.errors[outcome.error_number]
    if outcome.error is not None:
        raise cloudpickle.loads(outcome.error)
    assert outcome.prediction is not None
    if trace is not None and outcome.trace is not None:
        predictors = program.predictors()
        for place, *rest in cloudpickle.loads(outcome.trace):
            trace.append((predictors[place], *rest))
    return Ran(cloudpickle.loads(outcome.prediction), outcome.seconds)


def _cause(error: BaseException) -> str:
    return first_line(getattr(error, "cause", None) or error)
