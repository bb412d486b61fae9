"""MIPROv2 (Opsahl-Ong et al. 2024, arXiv 2406.11695): instructions and demonstrations searched together."""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dspy.teleprompt.mipro_optimizer_v2 import (
    AUTO_RUN_SETTINGS,
    BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT,
    LABELED_FEWSHOT_EXAMPLES_IN_CONTEXT,
    MIN_MINIBATCH_SIZE,
)

from agentcore.data import Dataset, Example
from agentcore.dspy_optimization.optimizers._base import BaseOptimizer, WorkEstimate
from agentcore.dspy_optimization.optimizers._demos import (
    DemoPlan,
    DemoSet,
    make_demo_set,
    plan_demo_sets,
)
from agentcore.dspy_optimization.optimizers._instructions import ProposalPlan, plan_proposals, propose
from agentcore.dspy_optimization.optimizers._mipro_settings import MIPROv2Settings
from agentcore.dspy_optimization.optimizers._racing import Params
from agentcore.dspy_optimization.optimizers._stock import compile_stock
from agentcore.dspy_optimization.optimizers._task import SearchTask
from agentcore.dspy_optimization.optimizers._trials import SearchPlan, SearchSpace, TrialSearch

if TYPE_CHECKING:
    import dspy

_DEMOS_READY, _INSTRUCTIONS_READY = 1, 2


class MIPROv2(BaseOptimizer[MIPROv2Settings]):
    """DSPy's proposals and search space, rescheduled so that independent steps run concurrently."""

    name = "miprov2"
    freezes = True
    settings_type = MIPROv2Settings

    def work(self, train: Dataset, validation: Dataset, predictors: int) -> WorkEstimate:
        settings = self._settings
        shape = shape_of(settings, train.examples, validation.examples, predictors, 1)
        whole, views = len(shape.order), min(10, math.ceil(len(train) / 10))
        rounds = 1 + plan_of(shape, settings).rounds()[1]
        proposed = shape.proposals[0:0] if shape.instructions < 2 else shape.proposals
        asked = sum(plan.demo_set > 0 for plan in proposed)
        return WorkEstimate(
            bootstrap=sum(plan.size for plan in shape.demos),
            proposals=views + 1 + 3 * asked,
            trials=(shape.trials + 1) * shape.minibatch + (rounds + 1) * (whole - shape.minibatch),
            chain=views + 2 + predictors * 2 * (rounds + 2),
            demos=0 if shape.zeroshot else max(settings.max_labeled_demos, settings.max_bootstrapped_demos),
        )

    async def optimize(self, task: SearchTask) -> "dspy.Module":
        # DSPy takes seed 0 to mean "no seed".
        seed = task.seed + 1
        if self._settings.mode == "dspy":
            return await compile_stock(task, self._settings, seed)
        async with asyncio.TaskGroup() as group:
            await _Search(task, self._settings, seed, group).run()
        assert task.best is not None  # the original program is scored first
        return task.best.program


@dataclass(frozen=True)
class Shape:
    """The size of a search, as DSPy determines it.

    Attributes:
        seed: DSPy's seed.
        order: the examples that candidates are scored on.
        minibatch: how many of them are scored first.
        trials: combinations drawn besides the original program.
        demos: how the demo sets are made.
        proposals: which instructions are proposed.
        instructions: instructions per predictor, its own included.
        zeroshot: whether demonstrations only inform the proposals.
    """

    seed: int
    order: Sequence[Example]
    minibatch: int
    trials: int
    demos: list[DemoPlan]
    proposals: list[ProposalPlan]
    instructions: int
    zeroshot: bool


def shape_of(
    settings: MIPROv2Settings,
    train: Sequence[Example],
    validation: Sequence[Example],
    predictors: int,
    seed: int,
) -> Shape:
    """Compute DSPy's sizes, drawing random numbers in the same order as `compile`."""
    rng = random.Random(seed)
    zeroshot = settings.max_bootstrapped_demos == 0 and settings.max_labeled_demos == 0
    minibatch = settings.minibatch
    if settings.auto is None:
        assert settings.num_candidates is not None
        assert settings.num_trials is not None
        # A minibatch is a prefix of the order, so shuffle: the data may be sorted.
        order = random.Random(seed).sample(list(validation), len(validation))
        sets = count = settings.num_candidates
        trials = settings.num_trials
    else:
        auto = AUTO_RUN_SETTINGS[settings.auto]
        order = rng.sample(list(validation), min(auto["val_size"], len(validation)))
        minibatch = len(order) > MIN_MINIBATCH_SIZE
        sets = auto["n"]
        count = sets if zeroshot else int(sets * 0.5)
        variables = predictors * (1 if zeroshot else 2)
        trials = int(max(2 * variables * math.log2(sets), 1.5 * sets))
    demos = plan_demo_sets(
        train,
        sets,
        BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT if zeroshot else settings.max_bootstrapped_demos,
        LABELED_FEWSHOT_EXAMPLES_IN_CONTEXT if zeroshot else settings.max_labeled_demos,
        rng,
    )
    count = min(count, max(len(demos), 1))
    return Shape(
        seed=seed,
        order=order,
        minibatch=min(settings.minibatch_size, len(order)) if minibatch else len(order),
        trials=trials,
        demos=demos,
        proposals=plan_proposals(predictors, count, rng),
        instructions=count,
        zeroshot=zeroshot,
    )


def plan_of(shape: Shape, settings: MIPROv2Settings) -> SearchPlan:
    return SearchPlan(
        seed=shape.seed,
        trials=shape.trials,
        minibatch=shape.minibatch,
        at_once=settings.minibatch_full_eval_steps,
        racing_level=settings.racing_level if settings.racing else 0.0,
    )


class _Search:
    """One search: demonstrations, summary, proposals and trials, each started as soon as possible."""

    def __init__(
        self, task: SearchTask, settings: MIPROv2Settings, seed: int, group: asyncio.TaskGroup
    ) -> None:
        self.task = task
        self.settings = settings
        self.program = task.program.deepcopy()
        self.program._compiled = False  # an optimized program may be optimized again
        self.names = [name for name, _ in self.program.named_predictors()]
        self.predictors = len(self.program.predictors())
        self.shape = shape_of(settings, task.train.examples, task.validation.examples, self.predictors, seed)
        self.demos = [group.create_task(self.demo_set(number)) for number in range(len(self.shape.demos))]
        self.instructions = group.create_task(self.propose())

    async def run(self) -> None:
        shape, settings = self.shape, self.settings
        choices: dict[str, int] = {}
        frozen = self.task.frozen
        for number, name in enumerate(self.names):
            frozen_here = name in frozen.instructions
            choices[f"{number}_predictor_instruction"] = 1 if frozen_here else shape.instructions
            if not shape.zeroshot:
                choices[f"{number}_predictor_demos"] = 1 if name in frozen.demos else len(shape.demos)
        space = SearchSpace(choices, self.ready, self.build)
        await TrialSearch(self.task, space, shape.order, plan_of(shape, settings)).run()

    async def demo_set(self, number: int) -> DemoSet:
        return await make_demo_set(self.task, self.program, self.shape.demos[number], number)

    async def propose(self) -> list[list[str]]:
        async def sets() -> list[DemoSet]:
            return [await made for made in self.demos]

        found = await propose(self.task, self.program, self.shape.proposals, sets)
        sizes = {} if self.shape.zeroshot else dict.fromkeys(self.names, len(self.shape.demos))
        planned = plan_of(self.shape, self.settings).reported(len(self.shape.order))
        self.task.space(dict(zip(self.names, found, strict=True)), sizes, planned)
        return found

    def ready(self, params: Params) -> int:
        """0 if a candidate needs no LM call, else what it waits for; proposals wait for demonstrations."""
        if any(value for name, value in params.items() if name.endswith("instruction")):
            return _INSTRUCTIONS_READY
        bootstrapped = any(
            self.shape.demos[value].size for name, value in params.items() if name.endswith("demos")
        )
        return _DEMOS_READY if bootstrapped else 0

    async def build(self, params: Params) -> "dspy.Module":
        instructions = await self.instructions if self.ready(params) == _INSTRUCTIONS_READY else None
        program = self.program.deepcopy()
        for number, predictor in enumerate(program.predictors()):
            if instructions is not None:
                chosen = instructions[number][params[f"{number}_predictor_instruction"]]
                predictor.signature = predictor.signature.with_instructions(chosen)
            if not self.shape.zeroshot:
                predictor.demos = (await self.demos[params[f"{number}_predictor_demos"]])[number]
        return program
