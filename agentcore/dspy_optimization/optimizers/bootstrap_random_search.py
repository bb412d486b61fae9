"""Random search over bootstrapped demonstrations: the baseline that every other optimizer has to beat."""

import asyncio
import random
from typing import TYPE_CHECKING

from pydantic import Field

from agentcore.data import Dataset
from agentcore.dspy_optimization.optimizers._base import BaseOptimizer, OptimizerSettings, WorkEstimate
from agentcore.dspy_optimization.optimizers._demos import DemoPlan, DemoSet, make_demo_set
from agentcore.dspy_optimization.optimizers._racing import Race
from agentcore.dspy_optimization.optimizers._task import SearchTask

if TYPE_CHECKING:
    import dspy


class BootstrapRandomSearchSettings(OptimizerSettings):
    """DSPy's own names and defaults."""

    max_bootstrapped_demos: int = Field(default=4, ge=1)
    max_labeled_demos: int = Field(default=16, ge=0)
    num_candidate_programs: int = Field(default=16, ge=1)
    """In addition to the original program, the labels-only one and the one from unshuffled examples."""
    racing: bool = True
    racing_level: float = Field(default=0.1, gt=0, lt=0.5)
    """See `Race`."""


class BootstrapRandomSearch(BaseOptimizer[BootstrapRandomSearchSettings]):
    """The candidates of DSPy's `BootstrapFewShotWithRandomSearch`, made and scored concurrently."""

    name = "bootstrap_random_search"
    freezes = True
    settings_type = BootstrapRandomSearchSettings

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> WorkEstimate:
        settings = self._settings
        sets = settings.num_candidate_programs + 1
        return WorkEstimate(
            bootstrap=sets * settings.max_bootstrapped_demos,
            trials=(sets + 2) * len(validation),
            chain=6 * predictors,
            demos=max(settings.max_labeled_demos, settings.max_bootstrapped_demos),
        )

    async def optimize(self, task: SearchTask) -> "dspy.Module":
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
        # Shuffle: the data may be sorted, and racing decides on the first examples.
        order = random.Random(task.seed).sample(list(task.validation), size)
        race = Race(task, order, settings.racing_level if settings.racing else 0)
        programs = [task.program, *(task.restored(_with(task.program, made.result())) for made in sets[1:])]
        entered = await race.enter(programs)
        new = list({item.number: item for item in entered}.values())
        await race.race(new, size)
        for item in new:
            race.report(item, size)
        race.report_racing(size)
        await task.durable()
        assert task.best is not None
        return task.best.program

    def _plans(self, task: SearchTask) -> list[DemoPlan]:
        """Demo plans from DSPy's seeds and draws; the first stands for the original program."""
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


def _with(program: "dspy.Module", demos: DemoSet) -> "dspy.Module":
    made = program.deepcopy()
    for predictor, own in zip(made.predictors(), demos, strict=True):
        predictor.demos = own
    return made
