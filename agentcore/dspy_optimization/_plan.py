"""What an optimization will take, before it takes anything."""

import math
from dataclasses import dataclass, field
from typing import Any

import dspy

from agentcore.data import Example
from agentcore.dspy_optimization._prepare import Job
from agentcore.dspy_optimization.optimizers import Work
from agentcore.evaluation import gain_that_can_show
from agentcore.lm import Prices, price_of

_CHARACTERS_PER_TOKEN = 4
_REASONING = 240
"""Characters of an answer's field that no label shows, such as a chain of thought."""
_SAMPLE = 20
_PROMPT = 3000
"""Characters of a proposer's question, and of its answer a sixth."""
ASSUMED_LATENCY = 1.5
"""Seconds of an LM call, where nobody said better."""


@dataclass(frozen=True)
class Estimate:
    """About what a run takes. Calls are what it makes at most if no answer fails to parse and each predictor
    is called once per example; stopped candidates and cache hits make it less."""

    calls: dict[str, int]
    """By stage."""
    tokens: int
    cost_usd: float | None
    """None where a price is not known; `unpriced` says of which models."""
    seconds: float
    latency: float
    """Seconds of one LM call, as given or assumed."""
    smallest_gain: float
    """The smallest gain in mean score that the test split will show, if a quarter of its examples change."""
    test_examples: int
    unpriced: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def total_calls(self) -> int:
        return sum(self.calls.values())


def estimate(job: Job, prices: Prices, max_concurrency: int, latency: float | None) -> Estimate:
    """Without any LM call: from the sizes, the program's own prompts and the models' prices."""
    splits, predictors = job.splits, len(job.program.predictors())
    work, notes = _work(job)
    tests = len(splits.test) * predictors
    calls = {
        "baseline": tests,
        "bootstrap": work.bootstrap * predictors,
        "proposals": work.proposals,
        "trials": work.trials * predictors,
        "winner": tests,
    }
    asked, answered = _tokens(job)
    demos = work.demos * (asked + answered) / 2  # each repeats an example's inputs and outputs
    own = {name: count for name, count in calls.items() if name != "proposals"}
    without = calls["baseline"] / predictors
    runs = sum(own.values()) / predictors
    taken = round(runs * asked + (runs - without) * demos)
    given = round(runs * answered)
    proposed = (round(work.proposals * _PROMPT / 4), round(work.proposals * _PROMPT / 24))
    task, proposer = price_of(job.lm, prices), price_of(job.prompt_lm, prices)
    unpriced = tuple(
        dict.fromkeys(str(lm.model) for lm, price in ((job.lm, task), (job.prompt_lm, proposer)) if not price)
    )
    cost = None
    if task is not None and proposer is not None:
        cost = task.of(taken, given) + proposer.of(*proposed)
    each = latency if latency is not None else getattr(getattr(job.lm, "engine", None), "latency", None)
    each = ASSUMED_LATENCY if each is None else float(each)
    total = sum(calls.values())
    return Estimate(
        calls={name: count for name, count in calls.items() if count},
        tokens=taken + given + sum(proposed),
        cost_usd=cost,
        seconds=total * each / max_concurrency + (work.chain + 2 * predictors) * each,
        latency=each,
        smallest_gain=gain_that_can_show(len(splits.test)),
        test_examples=len(splits.test),
        unpriced=unpriced,
        notes=tuple(notes),
    )


def _work(job: Job) -> tuple[Work, list[str]]:
    found, notes = Work(), []
    for optimizer in getattr(job.optimizer, "optimizers", [job.optimizer]):
        work = getattr(optimizer, "work", None)
        if work is None:
            notes.append(f"what {optimizer.name} takes can't be told: it is not in these figures")
        else:
            found = found.plus(work(job.splits.train, job.splits.validation, len(job.program.predictors())))
    return found, notes


def _tokens(job: Job) -> tuple[float, float]:
    """Tokens asked and answered by one run of the program without demonstrations, about."""
    examples = job.splits.train.examples[:_SAMPLE]
    asked = sum(_prompt(job.program, item) for item in examples) / len(examples)
    answered = sum(_answer(job.program, item) for item in examples) / len(examples)
    return math.ceil(asked / _CHARACTERS_PER_TOKEN), math.ceil(answered / _CHARACTERS_PER_TOKEN)


def _prompt(program: Any, example: Example) -> int:
    known = {**example.inputs, **example.labels}
    size = 0
    for predictor in program.predictors():
        signature = predictor.signature
        inputs = {name: known.get(name, "x" * _REASONING) for name in signature.input_fields}
        messages = dspy.ChatAdapter().format(signature=signature, demos=predictor.demos, inputs=inputs)
        size += sum(len(str(message["content"])) for message in messages)
    return size


def _answer(program: Any, example: Example) -> int:
    return sum(
        len(str(example.labels.get(name, "x" * _REASONING))) + len(f"[[ ## {name} ## ]]\n\n")
        for predictor in program.predictors()
        for name in predictor.signature.output_fields
    )
