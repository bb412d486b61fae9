"""Answers requests with the version in production, and a share of them with its challenger."""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import dspy

from agentcore._imports import import_litellm, import_object
from agentcore._json import jsonable
from agentcore._redaction import first_line
from agentcore._threads import run_in_thread
from agentcore.api._agents import AgentEntry
from agentcore.api._arms import Arm, ArmCounter, ArmsReply, Tally, arm_of, bucket_of, compared, pair_stream
from agentcore.api._events import TRAFFIC, ArmsClosed, FeedbackGiven
from agentcore.api._inputs import checked_inputs
from agentcore.api._models import FeedbackRequest, PredictReply, PredictRequest
from agentcore.data import PERSONAL
from agentcore.errors import (
    AgentCoreError,
    ArtifactError,
    ConfigurationError,
    JournalError,
    LMUnavailableError,
    NotFoundError,
    PredictionError,
    TooBusyError,
    TrackingError,
)
from agentcore.evaluation import call_program, place_of, resolve_metric
from agentcore.journal import Journal, wait
from agentcore.lm import is_lm_failure, is_offline, lm_secrets, resolve_lm
from agentcore.monitoring import (
    AsyncAgentTracker,
    get_metrics_collector,
    prediction_of,
    scrubbed,
    texts_in,
)
from agentcore.registry import CHAMPION, LiveProgram, load
from agentcore.settings import MLflowConfig
from agentcore.tracking import destination_of

_logger = logging.getLogger("agentcore")

REFRESH_SECONDS = 30.0
_MISSING_SECONDS = 5.0
"""How long to answer that there is no version before asking MLflow again."""
_WAITING = 1000
"""The most requests that wait for their turn."""


class _Version:
    """The program behind an alias, loaded on the first request."""

    def __init__(self, agent: str, alias: str, config: MLflowConfig) -> None:
        self.which = f"{agent}@{alias}"
        self._config = config
        self._lock = asyncio.Lock()
        self._live: LiveProgram | None = None
        self._missing: tuple[float, ConfigurationError] | None = None

    @property
    def live(self) -> LiveProgram | None:
        return self._live

    async def get(self) -> LiveProgram:
        """The program.

        Raises:
            NotFoundError: the alias points to no version.
            ArtifactError: its files were changed.
            TrackingError: MLflow can't be reached, and no version was loaded before.
        """
        if self._live is not None:
            return self._live
        async with self._lock:
            if self._live is None:
                if self._missing is not None and time.monotonic() < self._missing[0]:
                    raise self._missing[1]
                try:
                    self._live = await load(self.which, config=self._config, refresh=REFRESH_SECONDS)
                except ConfigurationError as error:
                    missing = NotFoundError(
                        f"{self.which} points to no version ({error}). Promote one with: agentcore promote"
                    )
                    self._missing = (time.monotonic() + _MISSING_SECONDS, missing)
                    raise missing from None
        return self._live

    def close(self) -> None:
        if self._live is not None:
            self._live.close()


@dataclass
class _Answer:
    """A request and what came of it."""

    request_id: str
    key: str
    arm: Arm
    version: str
    inputs: Mapping[str, Any]
    outputs: dict[str, Any] = field(default_factory=dict)
    milliseconds: float = 0.0
    failure: Exception | None = None


class Serving:
    """Answers the requests of one agent. Every answer is logged with its version: as a trace, in the
    agent's request metrics, and in the comparison of the two versions."""

    def __init__(self, agent: str, entry: AgentEntry, config: MLflowConfig, journal: Journal) -> None:
        self.agent = agent
        self.entry = entry
        self.config = config
        self.journal = journal
        self._versions: dict[Arm, _Version] = {
            "champion": _Version(agent, CHAMPION, config),
            "challenger": _Version(agent, entry.traffic.challenger, config),
        }
        self._gate = asyncio.Semaphore(entry.max_concurrency)
        self._waiting = 0
        schema = {"properties": {name: {PERSONAL: True} for name in entry.personal}}
        self._tracker = AsyncAgentTracker(agent, config, schema=schema)
        self._collector = get_metrics_collector(agent, config=config)
        self._run: asyncio.Task[str] | None = None
        self._pair: tuple[str, str] | None = None
        self._counter = ArmCounter()
        self._reading = asyncio.Lock()
        self._tallied, self._tally = "", Tally()
        self._lm: Any = None
        self.problem: str | None = None
        """What was wrong with the agent when the server started."""

    # Requests

    async def predict(self, request: PredictRequest) -> PredictReply:
        """Answer a request.

        Raises:
            NotFoundError: no version is in production.
            DataError: the inputs don't fit the program.
            TooBusyError, TimeoutError: too many requests, or the program took too long.
            LMUnavailableError: the language model failed.
            PredictionError: the program failed.
        """
        request_id = uuid.uuid4().hex
        key = request.key if request.key is not None else request_id
        arm, program = await self._chosen(key)
        inputs = await run_in_thread(lambda: checked_inputs(program.program, request.inputs))
        answer = _Answer(request_id, key, arm, program.version, inputs)
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self.entry.timeout), self._turn():
                began = time.perf_counter()
                answer.outputs = await self._answer(program.program, inputs)
        except TimeoutError:
            answer.failure = TimeoutError(f"no answer within {self.entry.timeout:g} s")
        except (LMUnavailableError, PredictionError) as error:
            answer.failure = error
        answer.milliseconds = (time.perf_counter() - began) * 1000
        await self._log(answer)
        if answer.failure is not None:
            raise answer.failure
        return PredictReply(
            request_id=request_id,
            outputs=answer.outputs,
            version=answer.version,
            arm=arm,
            duration_ms=round(answer.milliseconds, 3),
        )

    async def rate(self, request: FeedbackRequest) -> None:
        """Record how good an answer was; durable once this returns.

        Raises:
            ConfigurationError: neither version that is being served is the one named.
        """
        pair = await self._serving()
        if request.version not in pair.values():
            served = ", ".join(sorted(set(pair.values())))
            raise ConfigurationError(f"version {request.version} isn't being served; served now: {served}")
        key = request.key if request.key is not None else request.request_id
        given = FeedbackGiven(
            request_id=request.request_id, version=request.version, bucket=bucket_of(key), score=request.score
        )
        self._collector.record_score("feedback", request.score)
        if len(set(pair.values())) < 2:
            return
        stream = await self._stream((pair["champion"], pair["challenger"]))
        await self.journal.write(stream, [given])

    async def arms(self) -> ArmsReply:
        """What the two versions have answered, over all replicas, and what that proves."""
        await self.flush()
        versions = await self._serving()
        share = self.entry.traffic.share
        if len(set(versions.values())) < 2:
            return compared(self.agent, share, versions, Tally())
        stream = self._id((versions["champion"], versions["challenger"]))
        async with self._reading:
            if stream != self._tallied:
                self._tallied, self._tally = stream, Tally()
            return await run_in_thread(lambda: self._compared(share, versions, stream))

    def _compared(self, share: float, versions: dict[Arm, str], stream: str) -> ArmsReply:
        # Others may write to the journal: impossible counts are skipped.
        for entry in self.journal.read(stream, self._tally.seq, lenient=True):
            self._tally.add(entry.event)
            self._tally.seq = entry.seq
        return compared(self.agent, share, versions, self._tally)

    def serving(self) -> str | None:
        """The version in production that this replica serves; None before the first request."""
        live = self._versions["champion"].live
        return None if live is None else live.version

    def model(self) -> Any:
        """The agent's language model. Blocking.

        Raises:
            ConfigurationError: there is none, or it can't be imported.
        """
        return resolve_lm(self.entry.model())

    async def warm(self) -> None:
        """Import what `agents.toml` names, and load the versions, before the first request.

        Raises:
            ConfigurationError: something can't be imported.
        """
        await run_in_thread(self._check_imports)
        if not is_offline(await run_in_thread(self.model)):
            await run_in_thread(import_litellm)
        with suppress(AgentCoreError):
            await self._serving()

    def _check_imports(self) -> None:
        for path, what in ((self.entry.program, "program"), (self.entry.func, "func")):
            if path is not None and ":" in path and "->" not in path:
                import_object(path, what)
        if self.entry.metric is not None:
            resolve_metric(self.entry.metric)

    async def champion(self) -> str:
        """The version in production.

        Raises:
            NotFoundError: there is none.
            ArtifactError, TrackingError: it can't be loaded.
        """
        return (await self._versions["champion"].get()).version

    async def flush(self) -> None:
        """Write the totals of the current pair to the journal.

        Raises:
            JournalError: they can't be written, and are kept.
        """
        event, pair = self._counter.event(), self._pair
        if event is None or pair is None:
            return
        try:
            await self.journal.write(await self._stream(pair), [event])
        except BaseException:
            self._counter.keep()
            raise

    async def close(self) -> None:
        """Write what waits, and end the run."""
        for version in self._versions.values():
            version.close()
        try:
            await self.flush()
            if self._run is not None:
                await self._tracker.end_run(run_id=await self._run)
            await self._collector.aio.close()
        except JournalError as error:
            _logger.warning("the last figures of %s are lost: %s", self.agent, error)

    # How

    async def _serving(self) -> dict[Arm, str]:
        """The versions that are served, by arm; without a challenger, only the champion's."""
        found: dict[Arm, str] = {"champion": (await self._versions["champion"].get()).version}
        if self.entry.traffic.share > 0:
            with suppress(NotFoundError):
                found["challenger"] = (await self._versions["challenger"].get()).version
        return found

    async def _chosen(self, key: str) -> tuple[Arm, LiveProgram]:
        champion = await self._versions["champion"].get()
        if self.entry.traffic.share <= 0:
            return "champion", champion
        try:
            challenger = await self._versions["challenger"].get()
        except (NotFoundError, TrackingError, ArtifactError):
            return "champion", champion
        if challenger.version == champion.version:
            return "champion", champion
        await self._paired((champion.version, challenger.version))
        if arm_of(self.agent, challenger.version, key, self.entry.traffic.share) == "challenger":
            return "challenger", challenger
        return "champion", champion

    async def _paired(self, pair: tuple[str, str]) -> None:
        """Begin to count anew if a version has changed."""
        if pair == self._pair:
            return
        before, counter = self._pair, self._counter
        self._pair, self._counter = pair, ArmCounter()
        if before is None or (event := counter.event()) is None:
            return
        try:
            await self.journal.write(await self._stream(before), [event, ArmsClosed()])
        except JournalError as error:
            _logger.warning("the last figures of %s are lost: %s", self.agent, error)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._waiting >= _WAITING:
            raise TooBusyError(f"{self._waiting} requests are waiting for {self.agent!r} already")
        self._waiting += 1
        try:
            await self._gate.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._gate.release()

    async def _answer(self, program: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if self._lm is None:
            self._lm = await run_in_thread(self.model)
        try:
            with dspy.context(lm=self._lm, track_usage=True, disable_history=True):
                prediction = prediction_of((await call_program(program, inputs)).prediction)
                outputs = {str(name): jsonable(value) for name, value in prediction.items()}
        except Exception as error:  # noqa: BLE001 - becomes the answer
            if is_lm_failure(error):
                told = self._without(inputs, first_line(error, secrets=lm_secrets(self._lm)))
                raise LMUnavailableError(
                    f"the language model failed: {told}. Check its key and its provider's status"
                ) from None
            told = self._without(inputs, first_line(error))
            _logger.warning("agent %s failed: %s%s", self.agent, told, place_of(error))
            raise PredictionError(
                f"the program failed on these inputs ({type(error).__name__}); the server's log has more"
            ) from None
        for model, usage in (prediction.get_lm_usage() or {}).items():
            self._collector.record_token_usage(
                str(model),
                input_tokens=int(usage.get("prompt_tokens") or 0),
                output_tokens=int(usage.get("completion_tokens") or 0),
            )
        return outputs

    def _without(self, inputs: Mapping[str, Any], text: str) -> str:
        """A message without the personal data of a request."""
        removed = {text for name in self.entry.personal for text in texts_in(inputs.get(name))}
        return str(scrubbed(text, removed))

    async def _log(self, answer: "_Answer") -> None:
        failure = answer.failure
        self._collector.record_request("error" if failure is not None else "ok")
        self._collector.record_duration(answer.milliseconds)
        if failure is not None:
            self._collector.record_error(type(failure).__name__)
        if self._pair is not None and answer.version in self._pair:
            self._counter.add(
                answer.version, answer.key, None if failure is not None else answer.milliseconds
            )
        try:
            if self._run is None:
                self._run = asyncio.ensure_future(self._tracker.start_run(tags={"purpose": "serving"}))
            await asyncio.shield(self._run)
            await self._tracker.log_request(
                answer.request_id,
                answer.inputs,
                answer.outputs,
                answer.milliseconds,
                error=None if failure is None else first_line(failure),
                tags={
                    "agent_version": answer.version,
                    "arm": answer.arm,
                    "key_sha256": _digest(answer.key),
                },
            )
        except (
            JournalError
        ) as error:  # the answer was paid for: it is given, and the log says what is missing
            self._run = None
            _logger.warning("request %s of %s was not logged: %s", answer.request_id, self.agent, error)

    def _id(self, pair: tuple[str, str]) -> str:
        return pair_stream(destination_of(self.config), self.agent, *pair, self.entry.traffic.share)

    async def _stream(self, pair: tuple[str, str]) -> str:
        stream = self._id(pair)
        await wait(self.journal.create(stream, TRAFFIC, self.agent, ""))
        return stream


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
