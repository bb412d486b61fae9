"""MIPROv2's trials, run in batches with Optuna's ask and tell; no result is paid for twice."""

import asyncio
import math
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from agentcore.data import Example
from agentcore.dspy_optimization.optimizers._racing import Candidate, Params, Race
from agentcore.dspy_optimization.optimizers._task import SearchTask

STARTUP = 10
"""Trials that Optuna's TPE draws at random before it learns from results, including the original program."""

_LEFT_OVER = 2
_FINALISTS = 2
"""Candidates scored on all examples at the end, as many as in DSPy's light search."""


@dataclass(frozen=True)
class SearchSpace:
    """The parameters of candidates, and how to build one.

    Attributes:
        choices: how many values each parameter has, in the order in which they are drawn. All zeros is the
            original program.
        ready: number of the wave of prerequisites that a candidate waits for.
        build: builds a candidate's program, waiting for its prerequisites.
    """

    choices: Mapping[str, int]
    ready: Callable[[Params], int]
    build: Callable[[Params], Awaitable[Any]]


@dataclass(frozen=True)
class SearchPlan:
    """How much to search.

    Attributes:
        seed: for drawing combinations.
        trials: combinations to draw besides the original program.
        minibatch: number of examples each one is scored on; all of them without minibatches.
        at_once: approximate batch size after the random trials.
        racing_level: see `Race`.
    """

    seed: int
    trials: int
    minibatch: int
    at_once: int
    racing_level: float

    def rounds(self) -> tuple[int, int]:
        """Number of trials in the first round, and number of rounds after it."""
        wanted = self.trials + 1
        # A round for one or two more trials would take as long as a round for all of them.
        first = wanted if wanted <= STARTUP + _LEFT_OVER else STARTUP
        left = wanted - first
        return first, max(1, round(left / self.at_once)) if left else 0

    def reported(self, examples: int) -> int:
        """Upper bound on reported trials, including full evaluations."""
        full = self.rounds()[1] + _FINALISTS if self.minibatch < examples else 0
        return self.trials + 1 + full


class TrialSearch(Race):
    """MIPROv2's search: TPE over combinations, each scored on a minibatch, leaders on all examples.

    The same seed and concurrency give the same trials. Full evaluations run only the missing examples.
    """

    def __init__(
        self, task: SearchTask, space: SearchSpace, order: Sequence[Example], plan: SearchPlan
    ) -> None:
        super().__init__(task, order, plan.racing_level)
        self.space = space
        self.plan = plan
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.CategoricalDistribution(range(count))
            for name, count in space.choices.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=plan.seed, multivariate=True, n_startup_trials=STARTUP, constant_liar=True
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)

    async def run(self) -> None:
        """Run the search; the best candidate is `task.best`."""
        self.study.enqueue_trial(dict.fromkeys(self.space.choices, 0))
        first = self.ask(self.plan.rounds()[0])
        for wave in sorted({self.space.ready(trial.params) for trial in first}):
            await self.round([trial for trial in first if self.space.ready(trial.params) == wave])
        left = self.plan.trials + 1 - len(first)
        for rounds in range(self.plan.rounds()[1], 0, -1):
            batch = self.ask(math.ceil(left / rounds))
            left -= len(batch)
            await self.round(batch, promoting=1)
        await self.round([], promoting=_FINALISTS)
        self.report_racing(self.plan.minibatch)

    def ask(self, count: int) -> list[optuna.trial.Trial]:
        return [self.study.ask(fixed_distributions=self.distributions) for _ in range(count)]

    async def round(self, batch: Sequence[optuna.trial.Trial], *, promoting: int = 0) -> None:
        """Score a batch of trials on the minibatch; a repeated combination reuses its known results.

        Args:
            promoting: how many of the best earlier candidates to score on all examples meanwhile.
        """
        programs = [await self.space.build(trial.params) for trial in batch]
        promoted = self.next_promoted()[:promoting]
        drawn = await self.enter(programs, [trial.params for trial in batch])
        new = list({item.number: item for item in drawn if not item.scores and not item.stopped}.values())
        async with asyncio.TaskGroup() as group:
            group.create_task(self.race(new, self.plan.minibatch))
            group.create_task(self.race(promoted, len(self.order)))
        for trial, found in zip(batch, drawn, strict=True):
            self.study.tell(trial, found.mean(self.plan.minibatch))
            self.report(found, self.plan.minibatch)
        for item in promoted:
            self.study.add_trial(
                optuna.trial.create_trial(
                    params=dict(item.params), distributions=self.distributions, value=item.mean()
                )
            )
            self.report(item, len(self.order))
        await self.task.durable()

    def next_promoted(self) -> list[Candidate]:
        """Candidates not fully scored yet that may be the best overall, best first."""
        whole, size = len(self.order), self.plan.minibatch
        full = [item for item in self.candidates.values() if len(item.scores) == whole]
        best = max(full, key=lambda item: (item.mean(), -item.number), default=None)
        rivals = [
            item
            for item in self.candidates.values()
            if not item.stopped
            and size <= len(item.scores) < whole
            and (best is None or item.mean(size) >= best.mean(size))
        ]
        promoted: list[Candidate] = []
        for item in sorted(rivals, key=lambda item: (-item.mean(size), item.number)):
            if not any(self.same(item, other, size) for other in [*full, *promoted]):
                promoted.append(item)
        return promoted
