"""Trials many at a time: asked and told in batches, no result paid for twice, hopeless candidates stopped."""

import asyncio
import math
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import optuna
from scipy import stats

from agentcore._threads import run_in_thread
from agentcore.data import Example
from agentcore.dspy_optimization._history import state_digest
from agentcore.dspy_optimization.optimizers._base import Lead
from agentcore.dspy_optimization.optimizers._task import SearchTask
from agentcore.evaluation import first_error
from agentcore.lm import LIMITS

STARTUP = 10
"""Trials that Optuna's TPE draws at random before it learns from results, the program as given among them."""

_FIRST_LOOK = 6
_LOOKS = 8
_RESAMPLES = 9_999
_SAME = 1e-12
_SMALL_GAIN = 0.05
"""In mean score: what racing may overlook in a candidate that scores the same as the leader."""
_LEFT_OVER = 2
_FINALISTS = 2
"""Candidates that are scored on all examples at the end; DSPy's light search scores as many."""

Params = Mapping[str, int]


@dataclass(frozen=True)
class Space:
    """What candidates are made of.

    Attributes:
        choices: how many values each parameter has, in the order in which they are drawn. All zeros is the
            program as given.
        ready: when a candidate can be made, as the number of the wave of things that have to be there first.
        build: the candidate's program; waits until it can be made.
    """

    choices: Mapping[str, int]
    ready: Callable[[Params], int]
    build: Callable[[Params], Awaitable[Any]]


@dataclass(frozen=True)
class Plan:
    """How much to search.

    Attributes:
        seed: of the draws.
        trials: combinations to draw besides the program as given.
        minibatch: examples on which each is scored; as many as there are where no minibatches are wanted.
        at_once: trials asked for at once after the random ones, about.
        racing_level: see `Race`.
    """

    seed: int
    trials: int
    minibatch: int
    at_once: int
    racing_level: float

    def rounds(self) -> tuple[int, int]:
        """Trials of the first round, and how many rounds follow."""
        wanted = self.trials + 1
        # A round for one or two trials more would take as long as one for all of them.
        first = wanted if wanted <= STARTUP + _LEFT_OVER else STARTUP
        left = wanted - first
        return first, max(1, round(left / self.at_once)) if left else 0

    def reported(self, examples: int) -> int:
        """Trials that are reported at most: full evaluations of some are reported too."""
        full = self.rounds()[1] + _FINALISTS if self.minibatch < examples else 0
        return self.trials + 1 + full


@dataclass
class _Candidate:
    """One program and its scores on a prefix of the examples' order."""

    number: int
    params: Params
    program: Any
    scores: list[float | None] = field(default_factory=list)
    stopped: bool = False

    def mean(self, size: int | None = None) -> float:
        scored = [score for score in self.scores[:size] if score is not None]
        return sum(scored) / len(scored) if scored else 0.0


class Race:
    """Candidates that answer the same examples in the same order, so that any two are compared in pairs.

    No example is asked of a candidate twice, and a candidate that falls behind the leader is stopped.
    Decisions depend on results and on the limit of what is in flight, never on timing.

    Args:
        order: the examples.
        level: a candidate stops once the one-sided paired sign-flip test against the leader, on the examples
            that both have answered, falls below it; 0 for no racing. At each look, a candidate that is in
            truth as good as the leader it is compared with is stopped with at most this probability. One
            that scored the same as the leader on every example stops once a candidate that wins one example
            in 20 from the leader and loses none would look like that with at most this probability (21
            examples at 0.35). Neither is a bound over all looks together, nor for a lucky leader.
    """

    def __init__(self, task: SearchTask, order: Sequence[Example], level: float) -> None:
        self.task = task
        self.order = order
        self.level = level
        self.candidates: dict[str, _Candidate] = {}
        self.duplicates = 0
        task.leads.append(self.lead)

    def lead(self) -> Lead | None:
        """Who is ahead of the fullest scored candidate, on the examples that both have answered."""
        scored = [item for item in self.candidates.values() if item.scores and not item.stopped]
        fullest = max(scored, key=lambda item: (len(item.scores), item.mean(), -item.number), default=None)
        if fullest is None:
            return None

        def gain(item: _Candidate) -> float:
            size = min(len(item.scores), len(fullest.scores))
            return item.mean(size) - fullest.mean(size)

        ahead = max(scored, key=lambda item: (gain(item), len(item.scores), -item.number))
        if gain(ahead) <= 0:
            return None
        return Lead(ahead.program, gain(ahead), len(ahead.scores), fullest.mean())

    async def enter(
        self, programs: Sequence[Any], params: Sequence[Params] | None = None
    ) -> list["_Candidate"]:
        """The candidates of programs; a program that was there before is the same candidate."""
        found = []
        for number, program in enumerate(programs):
            key = await run_in_thread(partial(state_digest, program))
            if key in self.candidates:
                self.duplicates += 1
            else:
                given = {} if params is None else params[number]
                self.candidates[key] = _Candidate(len(self.candidates), given, program)
            found.append(self.candidates[key])
        return found

    async def race(self, contenders: Sequence[_Candidate], size: int) -> None:
        """Bring contenders to `size` examples, in step, but for those that fall behind the leader."""
        # Another race may go on beside this one: what it finds meanwhile must not matter here.
        others = [
            replace(item, scores=list(item.scores))
            for item in self.candidates.values()
            if item not in contenders
        ]
        running = [item for item in contenders if len(item.scores) < size]
        at = min((len(item.scores) for item in running), default=size)
        while running and at < size:
            stride = self.stride(len(running), size, at)
            at = size if size - at < 1.5 * stride else at + stride
            try:
                async with asyncio.TaskGroup() as group:
                    for item in running:
                        group.create_task(self.extend(item, at))
            except BaseException as error:
                if self.task.guard.stopped is not None and self.task.guard.stopped.reason in LIMITS:
                    self.report_partly(running, others)
                if isinstance(error, BaseExceptionGroup):
                    raise first_error(error) from None
                raise
            if at < size:
                running = await self.survivors(running, [*others, *running], at)

    def stride(self, running: int, size: int, at: int) -> int:
        """Examples until the next look: as many as fill the allowed number in flight, or twice that, …"""
        if not self.level:
            return size
        least, limit = _FIRST_LOOK if at == 0 else math.ceil(size / _LOOKS), self.task.max_concurrency
        return max(least, math.ceil(least * running / limit) * limit // running)

    async def extend(self, item: _Candidate, size: int) -> None:
        missing = self.order[len(item.scores) : size]
        if missing:
            report = await self.task.measure(item.program, missing)
            item.scores += report.scores

    async def survivors(
        self, running: Sequence[_Candidate], rivals: Sequence[_Candidate], size: int
    ) -> list[_Candidate]:
        able = [item for item in rivals if len(item.scores) >= size]
        leader = max(able, key=lambda item: (item.mean(size), -item.number))
        kept = []
        for item in running:
            if item is not leader and await run_in_thread(partial(self.beaten, item, leader, size)):
                item.stopped = True
            else:
                kept.append(item)
        return kept

    def beaten(self, item: _Candidate, leader: _Candidate, size: int) -> bool:
        pairs = zip(item.scores[:size], leader.scores[:size], strict=True)
        differences = [own - other for own, other in pairs if own is not None and other is not None]
        if all(abs(value) <= _SAME for value in differences):
            return (1 - _SMALL_GAIN) ** len(differences) <= self.level
        return behind(differences) < self.level

    def same(self, item: _Candidate, other: _Candidate, size: int) -> bool:
        """Whether two candidates scored the same on each of `size` examples, which are enough to stop one."""
        return item.scores[:size] == other.scores[:size] and self.beaten(item, other, size)

    def report(self, item: _Candidate, size: int) -> None:
        """Report a candidate as a trial, with what it answered of the first `size` examples."""
        scored = min(size, len(item.scores))
        self.task.report(
            item.program, item.mean(scored), scored, full=scored == len(self.order), stopped=item.stopped
        )

    def report_partly(self, running: Sequence[_Candidate], others: Sequence[_Candidate]) -> None:
        """A limit was reached: what all contenders have answered says which is the best so far.

        One that is not ahead of all others on the same examples counts as stopped.
        """
        size = min(len(item.scores) for item in running)
        able = [item.mean(size) for item in others if len(item.scores) >= size]
        for item in running if size else ():
            item.stopped = item.stopped or item.mean(size) <= max(able, default=-1.0)
            self.report(item, size)

    def tell_racing(self, size: int) -> None:
        """What racing and kept results saved, in examples of the first `size` that were not asked."""
        stopped = [item for item in self.candidates.values() if item.stopped]
        self.task.details["racing"] = {
            "level": self.level,
            "stopped": len(stopped),
            "examples_saved": sum(max(0, size - len(item.scores)) for item in stopped),
            "combinations_drawn_again": self.duplicates,
        }


class TrialSearch(Race):
    """MIPROv2's search: TPE over combinations, each scored on a minibatch, leaders on all examples.

    The same seed and limit give the same trials; a fuller evaluation asks only for what is missing.
    """

    def __init__(self, task: SearchTask, space: Space, order: Sequence[Example], plan: Plan) -> None:
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
        """Search; the best candidate is the task's."""
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
        self.tell_racing(self.plan.minibatch)

    def ask(self, count: int) -> list[optuna.trial.Trial]:
        return [self.study.ask(fixed_distributions=self.distributions) for _ in range(count)]

    async def round(self, batch: Sequence[optuna.trial.Trial], *, promoting: int = 0) -> None:
        """Score a batch of trials on the minibatch; what is drawn again is answered from what is known.

        Args:
            promoting: how many of the best candidates of earlier rounds are meanwhile scored on all examples.
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

    def next_promoted(self) -> list[_Candidate]:
        """Candidates that are not fully scored and may be the best of all, the best first."""
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
        promoted: list[_Candidate] = []
        for item in sorted(rivals, key=lambda item: (-item.mean(size), item.number)):
            if not any(self.same(item, other, size) for other in [*full, *promoted]):
                promoted.append(item)
        return promoted


def behind(differences: Sequence[float]) -> float:
    """One-sided p-value of the paired sign-flip test that the mean difference is 0 against that it is
    negative; exact for differences of one size (the sign test) and for up to 13 that are not 0."""
    changed = np.asarray([value for value in differences if abs(value) > _SAME])
    if not changed.size:
        return 1.0
    if np.ptp(np.abs(changed)) <= _SAME:
        return float(stats.binom.cdf(int((changed > 0).sum()), changed.size, 0.5))
    if changed.size < 2:
        return 0.5
    result = stats.permutation_test(
        (changed,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        alternative="less",
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)
