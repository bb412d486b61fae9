"""Racing: candidates answer the same examples in the same order, and losing ones are stopped early."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from agentcore._threads import run_in_thread
from agentcore.data import Example
from agentcore.dspy_optimization._history import state_digest
from agentcore.dspy_optimization.optimizers._task import Lead, SearchTask
from agentcore.evaluation import first_error
from agentcore.lm import LIMITS

if TYPE_CHECKING:
    import dspy

_FIRST_LOOK = 6
_LOOKS = 8
_RESAMPLES = 9_999
_SAME = 1e-12
"""Smaller score differences count as rounding errors."""
_SMALL_GAIN = 0.05
"""Gain in mean score that racing may miss in a candidate that ties with the leader."""
_TIE_LEVEL = 0.35

Params = Mapping[str, int]


@dataclass
class Candidate:
    """One program and its scores on a prefix of the examples' order."""

    number: int
    params: Params
    program: "dspy.Module"
    scores: list[float | None] = field(default_factory=list)
    stopped: bool = False

    def mean(self, size: int | None = None) -> float:
        scored = [score for score in self.scores[:size] if score is not None]
        return sum(scored) / len(scored) if scored else 0.0


class Race:
    """Candidates that answer the same examples in the same order, so that any two are compared in pairs.

    No candidate answers an example twice, and a candidate that falls behind the leader is stopped. Decisions
    depend on results and on the concurrency limit, never on timing.

    Args:
        order: the examples.
        level: a candidate stops once the p-value of the one-sided paired sign-flip test against the leader,
            on the examples that both have answered, falls below it; 0 turns racing off. The leader is the
            best of several, so its score is partly luck: a candidate that is really as good is stopped more
            often than this level says. docs/performance.md has what that costs. One that scored the same as
            the leader on every example stops once a candidate that wins one example in 20 from the leader and
            loses none would look like that with a probability of at most 0.35 (21 examples).
    """

    def __init__(self, task: SearchTask, order: Sequence[Example], level: float) -> None:
        self.task = task
        self.order = order
        self.level = level
        self.candidates: dict[str, Candidate] = {}
        self.duplicates = 0
        task.leads.append(self.lead)

    def lead(self) -> Lead | None:
        """The candidate furthest ahead of the most fully scored one, on the examples both have answered."""
        scored = [item for item in self.candidates.values() if item.scores and not item.stopped]
        fullest = max(scored, key=lambda item: (len(item.scores), item.mean(), -item.number), default=None)
        if fullest is None:
            return None

        def gain(item: Candidate) -> float:
            size = min(len(item.scores), len(fullest.scores))
            return item.mean(size) - fullest.mean(size)

        ahead = max(scored, key=lambda item: (gain(item), len(item.scores), -item.number))
        if gain(ahead) <= 0:
            return None
        return Lead(ahead.program, gain(ahead), len(ahead.scores), fullest.mean())

    async def enter(
        self, programs: Sequence[Any], params: Sequence[Params] | None = None
    ) -> list["Candidate"]:
        """Turn programs into candidates; a program that entered before is the same candidate."""
        found = []
        for number, program in enumerate(programs):
            key = await run_in_thread(partial(state_digest, program))
            if key in self.candidates:
                self.duplicates += 1
            else:
                values = {} if params is None else params[number]
                self.candidates[key] = Candidate(len(self.candidates), values, program)
            found.append(self.candidates[key])
        return found

    async def race(self, contenders: Sequence[Candidate], size: int) -> None:
        """Score contenders on `size` examples, in step, stopping those that fall behind the leader."""
        # Another race may run concurrently: its results must not influence this one.
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
        """Examples until the next look, rounded to fill the concurrency limit."""
        if not self.level:
            return size
        least, limit = _FIRST_LOOK if at == 0 else math.ceil(size / _LOOKS), self.task.max_concurrency
        return max(least, math.ceil(least * running / limit) * limit // running)

    async def extend(self, item: Candidate, size: int) -> None:
        missing = self.order[len(item.scores) : size]
        if missing:
            report = await self.task.measure(item.program, missing)
            item.scores += report.scores

    async def survivors(
        self, running: Sequence[Candidate], rivals: Sequence[Candidate], size: int
    ) -> list[Candidate]:
        able = [item for item in rivals if len(item.scores) >= size]
        leader = max(able, key=lambda item: (item.mean(size), -item.number))
        contenders = []
        for item in running:
            if item is not leader and await run_in_thread(partial(self.beaten, item, leader, size)):
                item.stopped = True
            else:
                contenders.append(item)
        return contenders

    def beaten(self, item: Candidate, leader: Candidate, size: int) -> bool:
        pairs = zip(item.scores[:size], leader.scores[:size], strict=True)
        differences = [own - other for own, other in pairs if own is not None and other is not None]
        if all(abs(value) <= _SAME for value in differences):
            return (1 - _SMALL_GAIN) ** len(differences) <= _TIE_LEVEL
        return behind(differences) < self.level

    def same(self, item: Candidate, other: Candidate, size: int) -> bool:
        """Whether two candidates scored the same on each of `size` examples, and these are enough to stop
        one."""
        return item.scores[:size] == other.scores[:size] and self.beaten(item, other, size)

    def report(self, item: Candidate, size: int) -> None:
        """Report a candidate as a trial, scored on the first `size` examples."""
        scored = min(size, len(item.scores))
        self.task.report(
            item.program, item.mean(scored), scored, full=scored == len(self.order), stopped=item.stopped
        )

    def report_partly(self, running: Sequence[Candidate], others: Sequence[Candidate]) -> None:
        """Report contenders after a limit was reached, scored on the examples that all of them have answered.

        A contender that is not ahead of all other candidates on those examples counts as stopped.
        """
        size = min(len(item.scores) for item in running)
        able = [item.mean(size) for item in others if len(item.scores) >= size]
        for item in running if size else ():
            item.stopped = item.stopped or item.mean(size) <= max(able, default=-1.0)
            self.report(item, size)

    def report_racing(self, size: int) -> None:
        """Report how many of the first `size` examples racing and cached results saved."""
        stopped = [item for item in self.candidates.values() if item.stopped]
        self.task.details["racing"] = {
            "level": self.level,
            "stopped": len(stopped),
            "examples_saved": sum(max(0, size - len(item.scores)) for item in stopped),
            "combinations_drawn_again": self.duplicates,
        }


def behind(differences: Sequence[float]) -> float:
    """One-sided p-value of the paired sign-flip test of a mean difference of 0 against a negative one; exact
    if all differences have the same size (the sign test), and for up to 13 that are not 0."""
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
