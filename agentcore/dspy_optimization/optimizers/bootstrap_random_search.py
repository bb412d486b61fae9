"""Random search over bootstrapped demonstrations: the comparator that every other optimizer has to beat."""

import asyncio
import random
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._base import Work
from agentcore.dspy_optimization.optimizers._demos import DemoPlan, DemoSet, make_demo_set
from agentcore.dspy_optimization.optimizers._task import SearchTask
from agentcore.dspy_optimization.search import Race


class BootstrapRandomSearchSettings(BaseModel):
    """DSPy's own names and defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bootstrapped_demos: int = Field(default=4, ge=1)
    max_labeled_demos: int = Field(default=16, ge=0)
    num_candidate_programs: int = Field(default=16, ge=1)
    """Besides the program as given, the one with labels only and the one from the unshuffled examples."""
    racing: bool = True
    racing_level: float = Field(default=0.2, gt=0, lt=0.5)
    """See `agentcore.dspy_optimization.search.Race`."""


class BootstrapRandomSearch:
    """The candidates of DSPy's `BootstrapFewShotWithRandomSearch`, made and scored concurrently."""

    name = "bootstrap_random_search"
    freezes = True

    def __init__(self, **settings: Any) -> None:
        self._settings = BootstrapRandomSearchSettings(**settings)

    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> Work:
        settings = self._settings
        sets = settings.num_candidate_programs + 1
        return Work(
            bootstrap=sets * settings.max_bootstrapped_demos,
            trials=(sets + 2) * len(validation),
            chain=6 * predictors,
            demos=max(settings.max_labeled_demos, settings.max_bootstrapped_demos),
        )

    async def optimize(self, task: SearchTask) -> Any:
        plans = self._plans(task)
        program = task.program.deepcopy()
        program._compiled = False
        names = [name for name, _ in task.program.named_predictors()]
        task.space({}, dict.fromkeys(names, len(plans)), len(plans))
        async with asyncio.TaskGroup() as group:
            sets = [
                group.create_task(make_demo_set(task, program, plan, number))
                for number, plan in enumerate(plans)
            ]
        settings, size = self._settings, len(task.validation)
        # What is looked at first must not come sorted.
        order = random.Random(task.seed).sample(list(task.validation), size)
        race = Race(task, order, settings.racing_level if settings.racing else 0)
        programs = [task.program, *(task.restored(_with(task.program, made.result())) for made in sets[1:])]
        entered = await race.enter(programs)
        new = list({item.number: item for item in entered}.values())
        await race.race(new, size)
        for item in new:
            race.report(item, size)
        race.tell_racing(size)
        await task.durable()
        assert task.best is not None
        return task.best.program

    def _plans(self, task: SearchTask) -> list[DemoPlan]:
        """DSPy's seeds and draws; the first stands for the program as given."""
        train, settings = task.train.examples, self._settings
        plans = [DemoPlan(train, 0, 0)]
        if settings.max_labeled_demos:
            plans.append(DemoPlan(train, 0, settings.max_labeled_demos))
        plans.append(DemoPlan(train, settings.max_bootstrapped_demos, settings.max_labeled_demos))
        for seed in range(settings.num_candidate_programs):
            shuffled = list(train)
            random.Random(seed + task.seed).shuffle(shuffled)
            size = random.Random(seed + task.seed).randint(1, settings.max_bootstrapped_demos)
            plans.append(DemoPlan(shuffled, size, settings.max_labeled_demos))
        return plans


def _with(program: Any, demos: DemoSet) -> Any:
    made = program.deepcopy()
    for predictor, own in zip(made.predictors(), demos, strict=True):
        predictor.demos = own
    return made
