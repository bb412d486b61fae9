"""One example run on Ray: the LM calls of all its attempts, and its outcome."""

import asyncio
import contextvars
import json
from collections import Counter, defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle
from dspy.clients._deprecation import adapter_message_call

from agentcore._redaction import Redactor, first_line
from agentcore._threads import run_in_thread
from agentcore.errors import ConfigurationError
from agentcore.evaluation._executor import Ran
from agentcore.evaluation.ray._wire import Answer, Asked, Outcome, Question, dump_error
from agentcore.lm import lm_secrets

if TYPE_CHECKING:
    import dspy


class Reply(NamedTuple):
    """A model's answer, or the error it raised."""

    value: Any
    error: Exception | None = None


class ExampleOnRay:
    """One example across all its attempts. Retries reuse the answers to LM calls already made."""

    def __init__(self, lms: list[Any], group: asyncio.TaskGroup) -> None:
        self.lms = lms
        self.group = group
        self.context = contextvars.copy_context()
        self.asked: defaultdict[str, list[asyncio.Task[Reply]]] = defaultdict(list)
        self.errors: list[Exception] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.ended = False

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine with the example's settings, counting its cost towards the example."""
        task = self.group.create_task(work, context=self.context.copy())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def end(self) -> None:
        self.ended = True
        for task in list(self.tasks):
            task.cancel()

    async def call(self, lm: "dspy.BaseLM", asked: Asked, *, blocking: bool) -> Reply:
        prompt, messages, kwargs = asked
        try:
            # The messages come from an adapter on the worker. Remove once DSPy drops this warning, in 3.5.
            with adapter_message_call(lm, messages):
                if blocking:
                    return Reply(await run_in_thread(lambda: lm(prompt, messages=messages, **kwargs)))
                return Reply(await lm.acall(prompt, messages=messages, **kwargs))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return Reply(None, RuntimeError(f"the model raised CancelledError: {error}"))
        except Exception as error:  # noqa: BLE001 - passed on to the program, as in a local run
            return Reply(None, error)
        except BaseException:
            self.ended = True  # the task group accepts no more tasks
            raise


@dataclass
class Attempt:
    """One run of an example on one worker."""

    example: ExampleOnRay
    number: int
    actor: Any
    seen: Counter[str] = field(default_factory=Counter)

    def take(self, question: Question) -> None:
        if not self.example.ended:
            self.example.begin(self.answer(question))

    async def answer(self, question: Question) -> None:
        """Answer a question, reusing the answer if an earlier attempt already asked it."""
        example = self.example
        lm = example.lms[question.model]
        try:
            asked: Asked = cloudpickle.loads(question.content)
        except Exception as error:  # noqa: BLE001 - it may use classes that exist only on the worker
            reply = Reply(None, RuntimeError(f"the LM call can't be read by the driver: {first_line(error)}"))
        else:
            key = _key(question.model, asked)
            number = self.seen[key]
            self.seen[key] += 1
            if number == len(example.asked[key]):
                example.asked[key].append(example.begin(example.call(lm, asked, blocking=question.blocking)))
            # Shielded: another attempt may be waiting for the same answer.
            reply = await asyncio.shield(example.asked[key][number])
        self.actor.answer.remote(self.number, self.packed(question.number, lm, reply))

    def packed(self, question: int, lm: "dspy.BaseLM", reply: Reply) -> Answer:
        if reply.error is None:
            try:
                return Answer(question, cloudpickle.dumps(reply.value))
            except Exception as error:  # noqa: BLE001 - a user's engine may return anything
                reply = Reply(None, TypeError(f"the answer can't be sent to a worker: {first_line(error)}"))
        assert reply.error is not None
        self.example.errors.append(reply.error)
        content = dump_error(reply.error, Redactor(lm_secrets(lm), unmistakable=True))
        return Answer(question, content, len(self.example.errors) - 1)


def _key(model: int, asked: Asked) -> str:
    return json.dumps(
        [model, *asked], sort_keys=True, default=lambda value: getattr(value, "__qualname__", repr(value))
    )


def result_of(
    outcome: Outcome, example: ExampleOnRay, program: "dspy.Module", trace: list[Any] | None
) -> Ran:
    """The prediction, with its trace mapped to this process's predictors; re-raises the program's error."""
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
