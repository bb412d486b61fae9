"""`offline/knn`: an in-process engine that learns in context from the demonstrations in its prompt.

It is **not a large language model** and has no knowledge. It demonstrates an optimization without a key or a
network, and gives tests and benchmarks an engine with configurable latency and error rate. It parses fields,
allowed values and demonstrations from the prompts of DSPy's chat, JSON and XML adapters, and answers with the
outputs of the nearest demonstration (see `_neighbours.rank`). Without demonstrations, it picks one of the
allowed values by a hash of the inputs, and ignores the instruction.
"""

import asyncio
import hashlib
import itertools
import random
import re
import threading
import time
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, ServerError, Usage

from agentcore.lm._neighbours import rank
from agentcore.lm._prompt import Field, Prompt, parse_prompt, render
from agentcore.lm._proposer import proposal

NOTHING_TO_GO_BY = "offline/knn has no demonstration to go by."
_UNREADABLE = (
    "offline/knn only answers prompts of DSPy's chat, JSON and XML adapters; "
    "it is not a large language model."
)
_TOKEN = re.compile(r"\w+|[^\w\s]")


class OfflineEngine:
    """The synchronous engine. `calls` counts requests, including those that `error_rate` made fail.

    Thread safety: any number of threads and event loops may share one engine.

    Args:
        latency: seconds that each request takes.
        error_rate: share of requests, 0–1, that fail with a (retryable) server error.
        seed: seed for choosing which requests fail.
    """

    def __init__(self, latency: float = 0.0, error_rate: float = 0.0, seed: int = 0) -> None:
        if latency < 0 or not 0 <= error_rate <= 1:
            raise ValueError("latency must be ≥ 0 and error_rate between 0 and 1")
        self.latency = latency
        self.error_rate = error_rate
        self.seed = seed
        self.calls = 0
        self._rng = random.Random(seed)
        self._lock = threading.Lock()

    def complete(self, request: Request) -> Response:
        failing = self._begin()
        if self.latency:
            time.sleep(self.latency)
        return self._finish(request, failing)

    def _begin(self) -> bool:
        with self._lock:
            self.calls += 1
            return self._rng.random() < self.error_rate

    def _finish(self, request: Request, failing: bool) -> Response:
        if failing:
            raise ServerError("offline/knn: failure requested by error_rate", status=503)
        system = request.system if isinstance(request.system, str) else ""
        messages = [(message.role, message.text or "") for message in request.messages]
        text, reason = answer(system, messages), "stop"
        most = request.config.max_tokens if request.config else None
        if most is not None and count_tokens(text) > most:
            text, reason = text[: _end_of_token(text, most)], "length"
        asked = count_tokens(system) + sum(count_tokens(message) for _, message in messages)
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(text),
            finish_reason=reason,
            usage=Usage(input_tokens=asked, output_tokens=count_tokens(text)),
        )

    def dump_state(self) -> dict[str, Any]:
        return {"latency": self.latency, "error_rate": self.error_rate, "seed": self.seed}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "OfflineEngine":
        return cls(**state)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OfflineEngine":
        return self  # all of DSPy's copies of a program share one engine and its count


class AsyncOfflineEngine:
    """The asynchronous engine: like the synchronous one, but waits without blocking a thread."""

    def __init__(self, engine: OfflineEngine) -> None:
        self.engine = engine

    async def complete(self, request: Request) -> Response:
        failing = self.engine._begin()
        if self.engine.latency:
            await asyncio.sleep(self.engine.latency)
        return self.engine._finish(request, failing)

    def dump_state(self) -> dict[str, Any]:
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "AsyncOfflineEngine":
        return cls(OfflineEngine.load_state(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> "AsyncOfflineEngine":
        return self


def make_offline_lm(
    latency: float, error_rate: float, seed: int, cache: bool, num_retries: int, max_tokens: int
) -> dspy.LM:
    """A `dspy.LM` with a new engine, available as its `engine` attribute."""
    engine = OfflineEngine(latency, error_rate, seed)
    return dspy.LM(
        "offline/knn",
        engine=engine,
        async_engine=AsyncOfflineEngine(engine),
        cache=cache,
        num_retries=num_retries,
        max_tokens=max_tokens,
    )


def _end_of_token(text: str, count: int) -> int:
    return next(itertools.islice(_TOKEN.finditer(text), count - 1, None)).end()


def count_tokens(text: str) -> int:
    """Count words and punctuation marks: a simple tokenizer, but an actual count."""
    return len(_TOKEN.findall(text))


def answer(system: str, messages: list[tuple[str, str]]) -> str:
    prompt = parse_prompt(system, messages)
    if prompt is None:
        return _UNREADABLE
    proposed = proposal(prompt)
    if proposed is not None:
        return render(prompt, {prompt.outputs[0].name: proposed})
    return render(prompt, _answer_task(prompt))


def _answer_task(prompt: Prompt) -> dict[str, str]:
    ranked = rank(prompt.demos, prompt.query, prompt.inputs)
    values = {}
    for field in prompt.outputs:
        nearest = next((item for item in ranked if field.name in prompt.demos[item.position]), None)
        if nearest is not None:
            values[field.name] = prompt.demos[nearest.position][field.name]
        elif field.name == "reasoning" and ranked:
            shown = prompt.demos[ranked[0].position]
            inputs = ", ".join(f"{name.name} {shown.get(name.name, '?')}" for name in prompt.inputs)
            values[field.name] = (
                f"The nearest demonstration has {inputs} (distance {ranked[0].distance:.3f})."
            )
        else:
            values[field.name] = _without_demos(field, prompt.query)
    return values


def _without_demos(field: Field, query: dict[str, str]) -> str:
    if field.allowed:
        digest = hashlib.sha256(repr((field.name, sorted(query.items()))).encode()).digest()
        return field.allowed[int.from_bytes(digest[:8]) % len(field.allowed)]
    if "None" in field.type:
        return "null"
    if field.type in ("int", "float"):
        return "0"
    if field.type.startswith(("list", "tuple", "set")):
        return "[]"
    if field.type.startswith("dict"):
        return "{}"
    return NOTHING_TO_GO_BY
