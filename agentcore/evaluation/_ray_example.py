"""One example on Ray: what its programs ask of models, over all attempts, and what became of it."""

import asyncio
import contextvars
import json
from collections import Counter, defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cloudpickle
from dspy.clients._deprecation import adapter_message_call

from agentcore._threads import run_in_thread
from agentcore.errors import ConfigurationError, environment_secrets, first_line, looks_random
from agentcore.evaluation._executor import Ran
from agentcore.evaluation._ray_wire import Answer, Asked, Outcome, Question, dump_error
from agentcore.lm import lm_secrets


class Said(NamedTuple):
    """What a model answered, or the error that it raised."""

    value: Any
    error: Exception | None = None


class Example:
    """One example over all its attempts: what its programs ask is asked once, whichever attempt asks it."""

    def __init__(self, lms: list[Any], group: asyncio.TaskGroup) -> None:
        self.lms = lms
        self.group = group
        self.context = contextvars.copy_context()
        self.asked: defaultdict[str, list[asyncio.Task[Said]]] = defaultdict(list)
        self.errors: list[Exception] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.ended = False

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do something under the settings and on the account of the example."""
        task = self.group.create_task(work, context=self.context.copy())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def end(self) -> None:
        self.ended = True
        for task in list(self.tasks):
            task.cancel()

    async def call(self, lm: Any, asked: Asked, *, blocking: bool) -> Said:
        prompt, messages, kwargs = asked
        try:
            # An adapter wrote the messages, on the worker. Lift with DSPy's own warning, in 3.5.
            with adapter_message_call(lm, messages):
                if blocking:
                    return Said(await run_in_thread(lambda: lm(prompt, messages=messages, **kwargs)))
                return Said(await lm.acall(prompt, messages=messages, **kwargs))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return Said(None, RuntimeError(f"the model raised CancelledError: {error}"))
        except Exception as error:  # noqa: BLE001 - the program gets it, as it would here
            return Said(None, error)
        except BaseException:
            self.ended = True  # the group takes nothing more
            raise


@dataclass
class Attempt:
    """One run of an example on one worker."""

    example: Example
    number: int
    actor: Any
    seen: Counter[str] = field(default_factory=Counter)

    def take(self, question: Question) -> None:
        if not self.example.ended:
            self.example.begin(self.answer(question))

    async def answer(self, question: Question) -> None:
        """Have a question answered: as in an earlier attempt, where that has asked it."""
        example = self.example
        lm = example.lms[question.model]
        try:
            asked: Asked = cloudpickle.loads(question.content)
        except Exception as error:  # noqa: BLE001 - classes that only the worker has
            said = Said(None, RuntimeError(f"the LM call can't be read by the driver: {first_line(error)}"))
        else:
            key = _key(question.model, asked)
            number = self.seen[key]
            self.seen[key] += 1
            if number == len(example.asked[key]):
                example.asked[key].append(example.begin(example.call(lm, asked, blocking=question.blocking)))
            # Another attempt may wait for the same answer.
            said = await asyncio.shield(example.asked[key][number])
        self.actor.answer.remote(self.number, self.packed(question.number, lm, said))

    def packed(self, question: int, lm: Any, said: Said) -> Answer:
        if said.error is None:
            try:
                return Answer(question, cloudpickle.dumps(said.value))
            except Exception as error:  # noqa: BLE001 - an engine of the user's may answer anything
                said = Said(None, TypeError(f"the answer can't be sent to a worker: {first_line(error)}"))
        assert said.error is not None
        self.example.errors.append(said.error)
        content = dump_error(said.error, [*lm_secrets(lm), *filter(looks_random, environment_secrets())])
        return Answer(question, content, len(self.example.errors) - 1)


def _key(model: int, asked: Asked) -> str:
    return json.dumps(
        [model, *asked], sort_keys=True, default=lambda value: getattr(value, "__qualname__", repr(value))
    )


def result_of(outcome: Outcome, example: Example, program: Any, trace: list[Any] | None) -> Ran:
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
