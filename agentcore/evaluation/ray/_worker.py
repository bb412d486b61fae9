"""The Ray worker: runs programs, while the driver makes their LM calls."""

import asyncio
import itertools
import platform
import threading
from collections import OrderedDict
from collections.abc import Coroutine
from concurrent.futures import Future
from importlib.metadata import version
from typing import Any

import cloudpickle
import dspy
from dspy.utils.callback import BaseCallback

from agentcore._redaction import first_line
from agentcore.evaluation._executor import Ran, call_program
from agentcore.evaluation.ray._wire import Answer, Asked, Model, Outcome, Question, dump_error, load

_KEPT_PROGRAMS = 16
"""A search evaluates several candidates at once. An evicted program is loaded again when needed."""


def versions() -> dict[str, str]:
    """Versions that must match between a driver and its workers."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "dspy": version("dspy"), "agentcore": version("agentcore")}


_REFUSED = (
    "the program created a model while it ran ({}): on Ray, its calls would bypass the caps and would not "
    "be counted. Create it in the program's __init__, or pass it as lm="
)


class Stopped(BaseException):
    """The driver gave up on the example. A BaseException: DSPy treats an `Exception` as a bad answer."""


class UnknownModel(BaseException):
    """The program created a model at run time, whose calls would bypass the caps."""


class WorkerLM(dspy.BaseLM):
    """Stands in for a model on the driver, with the same name, settings and abilities."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.name, model.type, cache=model.cache)
        self.kwargs = dict(model.kwargs)
        self._original = model

    @property
    def supports_function_calling(self) -> bool:
        return bool(self._original.abilities["supports_function_calling"])

    @property
    def supports_reasoning(self) -> bool:
        return bool(self._original.abilities["supports_reasoning"])

    @property
    def supports_response_schema(self) -> bool:
        return bool(self._original.abilities["supports_response_schema"])

    @property
    def supported_params(self) -> set[str]:
        return set(self._original.abilities["supported_params"])

    @property
    def supports_decision_requests(self) -> bool:
        return bool(self._original.abilities["supports_decision_requests"])

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        return self._ask(True, prompt, messages, kwargs).result()

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        return await asyncio.wrap_future(self._ask(False, prompt, messages, kwargs))

    def _ask(self, blocking: bool, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> "Future[Any]":
        example: _RunningExample = dspy.settings.agentcore_example
        # Programs may copy a model and change its settings, so differences are sent with the call.
        changed = {
            key: value
            for key, value in self.kwargs.items()
            if key not in self._original.kwargs or self._original.kwargs[key] != value
        }
        changed |= dict.fromkeys(self._original.kwargs.keys() - self.kwargs.keys())
        if self.cache != self._original.cache:
            changed["cache"] = self.cache
        if (self.model, self.model_type) != (self._original.name, self._original.type):
            raise UnknownModel(_REFUSED.format(self.model))
        asked: Asked = (prompt, messages, {**changed, **kwargs})
        return example.ask(self._original.number, blocking, asked)


class _OnlyKnownModels(BaseCallback):
    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        raise UnknownModel(_REFUSED.format(getattr(instance, "model", instance)))


class _RunningExample:
    """An example running on this worker."""

    def __init__(self, worker: "Worker", number: int) -> None:
        self.worker = worker
        self.number = number
        self.stopped = False
        self.waiting: dict[int, Future[Any]] = {}

    def ask(self, model: int, blocking: bool, asked: Asked) -> "Future[Any]":
        content = cloudpickle.dumps(asked)
        future: Future[Any] = Future()
        number = next(self.worker.numbers)
        self.waiting[number] = future
        if self.stopped:
            raise Stopped
        self.worker.send(Question(number, self.number, model, blocking, content))
        return future

    def stop(self) -> None:
        self.stopped = True
        for future in list(self.waiting.values()):
            if not future.done():
                future.set_exception(Stopped())


class Worker:
    """A Ray actor. Its event loop only passes messages; programs run in a separate loop and in threads, so
    that a program that blocks still receives the answer it is waiting for."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self._programs: OrderedDict[str, tuple[Any, dict[str, Any]]] = OrderedDict()
        self._examples: dict[int, _RunningExample] = {}
        self._questions: list[Question] = []
        self._asked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._programs_loop = asyncio.new_event_loop()
        threading.Thread(target=self._programs_loop.run_forever, name="programs", daemon=True).start()

    async def hello(self) -> dict[str, str]:
        self._loop = asyncio.get_running_loop()
        return versions()

    async def run(self, number: int, digest: str, shipped: bytes, inputs: bytes, tracing: bool) -> Outcome:
        """Run a program on an example's inputs.

        Args:
            number: the example's number, unique for this worker.
            digest: of `shipped`, the pickled program, settings and task model.
        """
        try:
            if digest not in self._programs:
                self._programs[digest] = load(shipped, WorkerLM)
                while len(self._programs) > _KEPT_PROGRAMS:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(digest)
            program, settings = self._programs[digest]
            values = cloudpickle.loads(inputs)
        except Exception as error:  # noqa: BLE001 - importing the user's code may raise anything
            return Outcome(
                unable=f"{type(error).__name__}: {first_line(error)}. Give the workers the program's code: "
                "RayExecutor(runtime_env={'working_dir': '.'})"
            )
        example = self._examples[number] = _RunningExample(self, number)
        trace: list[Any] | None = [] if tracing else None
        try:
            ran = await self._in_programs_loop(self._predict(program, settings, example, values, trace))
        except asyncio.CancelledError:
            example.stop()
            raise
        except UnknownModel as error:
            return Outcome(unable=str(error))
        except BaseException as error:  # noqa: BLE001 - returned as the example's outcome
            return Outcome(error=dump_error(error), error_number=getattr(error, "agentcore_number", None))
        finally:
            del self._examples[number]
        return _outcome(program, ran, trace)

    async def questions(self) -> list[Question]:
        """The questions asked by programs since the last call; waits until there is at least one."""
        await self._asked.wait()
        self._asked.clear()
        asked, self._questions = self._questions, []
        return asked

    async def answer(self, example: int, answer: Answer) -> None:
        found = self._examples.get(example)
        future = found.waiting.pop(answer.question, None) if found else None
        if future is None or future.done():
            return
        try:
            value = cloudpickle.loads(answer.content)
        except Exception as error:  # noqa: BLE001 - it may use classes that exist only on the driver
            value = RuntimeError(f"the model's answer can't be read by the worker: {first_line(error)}")
            if answer.error_number is None:
                future.set_exception(value)
                return
        if answer.error_number is None:
            future.set_result(value)
        else:
            value.agentcore_number = answer.error_number
            future.set_exception(value)

    async def stop(self, number: int) -> None:
        """Refuse every further LM call of an example."""
        if number in self._examples:
            self._examples[number].stop()

    def send(self, question: Question) -> None:
        """Send a question to the driver, from any thread."""

        def add() -> None:
            self._questions.append(question)
            self._asked.set()

        assert self._loop is not None
        self._loop.call_soon_threadsafe(add)

    async def _predict(
        self,
        program: dspy.Module,
        settings: dict[str, Any],
        example: _RunningExample,
        inputs: Any,
        trace: list[Any] | None,
    ) -> Ran:
        markers = {"agentcore_example": example, "callbacks": [_OnlyKnownModels()]}
        try:
            with dspy.context(**settings, **markers):
                return await call_program(program, inputs, trace=[] if trace is None else trace)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if example.stopped or (task is not None and task.cancelling()):
                raise
            # Raised by the program itself; re-raised, it would look like a cancellation of this call.
            raise RuntimeError(f"the program raised CancelledError: {error}") from None
        except (SystemExit, KeyboardInterrupt) as error:  # would end the loop of all programs
            raise RuntimeError(f"the program raised {type(error).__name__}: {error}") from None

    async def _in_programs_loop(self, work: Coroutine[Any, Any, Ran]) -> Ran:
        ran: Ran = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._programs_loop))
        return ran


def _outcome(program: dspy.Module, ran: Ran, trace: list[Any] | None) -> Outcome:
    places = {id(predictor): place for place, predictor in enumerate(program.predictors())}
    known = [(places[id(item[0])], *item[1:]) for item in trace or [] if id(item[0]) in places]
    try:
        return Outcome(
            prediction=cloudpickle.dumps(ran.prediction),
            seconds=ran.seconds,
            trace=None if trace is None else cloudpickle.dumps(known),
        )
    except Exception as error:  # noqa: BLE001 - a prediction may hold anything
        return Outcome(error=dump_error(TypeError(f"the prediction can't be sent from its worker: {error}")))
