"""MIPROv2's demo sets, bootstrapped concurrently; DSPy makes the same sets sequentially."""

import asyncio
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from agentcore.data import Example
from agentcore.dspy_optimization.optimizers._task import SearchTask
from agentcore.errors import AgentCoreError
from agentcore.lm import is_lm_failure
from agentcore.tracking import dump_demos

DemoSet = list[list[Any]]
"""The demonstrations of one set, by predictor."""

MAX_ERRORS = 10
"""How many examples the LM may fail on while one set is bootstrapped before the search fails; DSPy's
default."""


@dataclass(frozen=True)
class DemoPlan:
    """How to build one demo set.

    Attributes:
        examples: in the order in which they are tried.
        size: bootstrapped demonstrations wanted; 0 for a set of labelled examples only, or an empty one.
        labeled: maximum number of demonstrations, labelled ones included.
    """

    examples: Sequence[Example]
    size: int
    labeled: int


def plan_demo_sets(
    train: Sequence[Example], count: int, bootstrapped: int, labeled: int, rng: random.Random
) -> list[DemoPlan]:
    """Plan the sets of DSPy's `create_n_fewshot_demo_sets`, drawing random numbers in the same order: an
    empty set, labelled examples, unshuffled ones, then shuffled ones of random size."""
    plans = []
    for number in range(-3, count - 3):
        if number == -3:
            plans.append(DemoPlan(train, 0, 0))
        elif number == -2 and labeled > 0:
            plans.append(DemoPlan(train, 0, labeled))
        elif number == -1:
            plans.append(DemoPlan(train, bootstrapped, labeled))
        else:
            shuffled = list(train)
            rng.shuffle(shuffled)
            plans.append(DemoPlan(shuffled, rng.randint(1, bootstrapped), labeled))
    return plans


async def make_demo_set(task: SearchTask, program: dspy.Module, plan: DemoPlan, number: int) -> DemoSet:
    """Make set `number`. Only bootstrapped demonstrations need LM calls."""
    if plan.size:
        student = await _Bootstrap(task, plan, number).fill(program)
    elif plan.labeled:
        labels = dspy.LabeledFewShot(k=plan.labeled)
        student = labels.compile(program, trainset=[item.dspy for item in plan.examples], sample=True)
        keep_models(student, program)
    else:
        student = (
            program.deepcopy()
        )  # DSPy's set is empty; a program that starts with demonstrations keeps them
    return [predictor.demos for predictor in student.predictors()]


class _Bootstrap(dspy.BootstrapFewShot):
    """DSPy's teacher, student and choice of demonstrations, but examples are tried concurrently.

    While k successes are missing, k examples are in flight, so no success is wasted. Successes are used in
    the order of the examples.
    """

    def __init__(self, task: SearchTask, plan: DemoPlan, number: int) -> None:
        super().__init__(max_bootstrapped_demos=plan.size, max_labeled_demos=plan.labeled)
        self._task = task
        self._plan = plan
        self._number = number

    async def fill(self, program: dspy.Module) -> dspy.Module:
        self.trainset = [item.dspy for item in self._plan.examples]
        # A program that already has demonstrations is its own teacher.
        teacher = program.deepcopy() if any(item.demos for item in program.predictors()) else None
        if teacher is not None:
            teacher._compiled = True
        self._prepare_student_and_teacher(program, teacher)
        keep_models(self.student, program)
        keep_models(self.teacher, program)
        self._prepare_predictor_mappings()
        found = await self._successes()
        self.name2traces: dict[str, list[Any]] = {name: [] for name in self.name2predictor}
        for position in sorted(found):
            for name, demos in found[position].items():
                self.name2traces[name].extend(demos)
        self.validation = [item for position, item in enumerate(self.trainset) if position not in found]
        random.Random(0).shuffle(self.validation)
        return self._train()

    async def _successes(self) -> dict[int, dict[str, list[Any]]]:
        """Demonstrations from the successful examples, by example position, then by predictor."""
        found: dict[int, dict[str, list[Any]]] = {}
        running: dict[asyncio.Task[dict[str, list[Any]] | None], int] = {}
        errors, pending = 0, iter(enumerate(self._plan.examples))
        try:
            while True:
                missing = self._plan.size - len(found) - len(running)
                for position, example in itertools.islice(pending, missing):
                    running[asyncio.ensure_future(self._once(position, example))] = position
                if not running:
                    return found
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for attempt in done:
                    position = running.pop(attempt)
                    try:
                        demos = attempt.result()
                    except Exception:
                        errors += 1
                        if errors >= MAX_ERRORS:
                            raise
                        continue
                    if demos is not None:
                        found[position] = demos
                if len(found) >= self._plan.size:
                    return found
        finally:
            await end(running)

    async def _once(self, position: int, example: Example) -> dict[str, list[Any]] | None:
        return await self._task.step(
            f"demos-{self._number}-{position}",
            lambda: self._attempt(example),
            lambda made: None if made is None else {name: dump_demos(demos) for name, demos in made.items()},
            lambda kept: (
                None if kept is None else {name: self._task.demos(found) for name, found in kept.items()}
            ),
        )

    async def _attempt(self, example: Example) -> dict[str, list[Any]] | None:
        """The demonstrations from one run of the teacher; None if it failed or was not good enough."""
        teacher = self.teacher.deepcopy()  # each attempt drops its own example from the demonstrations
        names = {}
        for name, predictor in teacher.named_predictors():
            predictor.demos = [item for item in predictor.demos if item != example.dspy]
            names[id(predictor)] = name
        try:
            prediction, trace = await self._task.trace(teacher, example)
        except Exception as error:
            if is_lm_failure(error) or isinstance(error, AgentCoreError):
                raise
            return None
        if not await self._task.judge(example.dspy, prediction, trace):
            return None
        demos: dict[str, list[Any]] = {}
        for predictor, inputs, outputs in trace:
            name = names.get(id(predictor))
            if name is not None:
                demos.setdefault(name, []).append(dspy.Example(augmented=True, **inputs, **outputs))
        return {name: _one_of(found) for name, found in demos.items()}


def keep_models(program: dspy.Module, original: dspy.Module) -> dspy.Module:
    """Give each predictor its own model back: DSPy's `reset_copy` drops it, and what is measured would be
    another program."""
    models = {name: predictor.lm for name, predictor in original.named_predictors()}
    for name, predictor in program.named_predictors():
        if predictor.lm is None:
            predictor.lm = models.get(name)
    return program


async def end(tasks: Iterable["asyncio.Future[Any]"]) -> None:
    """Cancel tasks that are no longer needed, and wait for them to end."""
    left = list(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
    for task in left:
        if not task.cancelled():
            task.exception()


def _one_of(demos: list[Any]) -> list[Any]:
    """Pick one call of a predictor per run, as DSPy does: the last one, or a random earlier one."""
    if len(demos) == 1:
        return demos
    from dspy.utils.hasher import Hasher

    rng = random.Random(Hasher.hash(tuple(demos)))
    return [rng.choice(demos[:-1]) if rng.random() < 0.5 else demos[-1]]
