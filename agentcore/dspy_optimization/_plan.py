"""Estimates the cost of an optimization before it starts."""

import math
from dataclasses import dataclass, field
from html import escape

import dspy

from agentcore.data import Example
from agentcore.dspy_optimization import _summary
from agentcore.dspy_optimization._job import Job
from agentcore.evaluation import gain_that_can_show
from agentcore.lm import Prices, price_of

_CHARACTERS_PER_TOKEN = 4
_REASONING = 240
"""Assumed length in characters of an output field without a label, such as a chain of thought."""
_SAMPLE = 20
_PROMPT = 3000
"""Assumed length in characters of a proposer's prompt; its answer has a sixth of that."""
ASSUMPTION = "estimate, assuming that every answer parses and each predictor is called once per example"
ASSUMED_LATENCY = 1.5
"""Seconds per LM call, if the caller passes no latency."""


@dataclass(frozen=True)
class Estimate:
    """Approximate cost of a run, if every answer parses and each predictor is called once per example.

    Answers that don't parse are asked for again, and tools and retries add calls; stopped candidates and
    cache hits save some."""

    calls: dict[str, int]
    """By stage."""
    tokens: int
    cost_usd: float | None
    """None if a price is unknown; `unpriced` names the models."""
    seconds: float
    latency: float
    """Seconds per LM call, given or assumed."""
    smallest_gain: float | None
    """The gain in mean score that the test split shows with 80% power if a quarter of its examples change;
    None if it shows none that reliably."""
    test_examples: int
    clusters: int | None = None
    """Number of clusters in the test split, if the examples come in clusters."""
    max_calls: int | None = None
    """The cap on LM calls, which holds."""
    unpriced: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def total_calls(self) -> int:
        return sum(self.calls.values())

    def rows(self) -> list[tuple[str, str]]:
        """Stages and their LM calls, with their sum."""
        found = [(stage, f"{calls:,}") for stage, calls in self.calls.items()]
        found.append(("total, about", f"{self.total_calls:,}"))
        return found if self.max_calls is None else [*found, ("total, at most", f"{self.max_calls:,}")]

    def lines(self) -> list[str]:
        """Tokens, cost, time and what the test split can show, a line each."""
        known = self.cost_usd is not None
        price = f"cost {_summary.cost(self.cost_usd)}" if known else _summary.cost(None)
        if self.unpriced:
            price += f" (no price known for {', '.join(self.unpriced)}: pass prices= or --price)"
        of_clusters = "" if self.clusters is None else f" in {self.clusters} clusters"
        tested = f"{self.test_examples} test examples{of_clusters}"
        if self.smallest_gain is None:
            shown = (
                f"{tested} can't show any gain reliably, even if a quarter of them improved and none "
                "got worse: add examples"
            )
        else:
            gain = f"a gain of {self.smallest_gain:.3f} in 4 of 5 runs"
            shown = f"{tested} would show {gain} (if a quarter of them change)"
        time = f"time {_summary.duration(self.seconds)} at {self.latency:g} s per call"
        return [f"{self.tokens:,} tokens, {price}", time, shown, *(f"note: {note}" for note in self.notes)]

    def __str__(self) -> str:
        width = max(len(stage) for stage, _ in self.rows())
        table = [f"{stage.ljust(width)}  {calls.rjust(8)} LM calls" for stage, calls in self.rows()]
        return "\n".join([ASSUMPTION, *table, *self.lines(), "no LM call was made"])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(stage)}</td><td>{escape(calls)}</td></tr>" for stage, calls in self.rows()
        )
        lines = "".join(f"<li>{escape(line)}</li>" for line in self.lines())
        table = f"<table><tr><th>stage</th><th>LM calls</th></tr>{rows}</table>"
        return f"<p>{ASSUMPTION}</p>{table}<ul>{lines}</ul>"


def estimate(job: Job, prices: Prices, max_concurrency: int, latency: float | None) -> Estimate:
    """Estimate from the split sizes, the program's prompts and the models' prices. Makes no LM call."""
    splits, predictors = job.splits, len(job.program.predictors())
    work = job.optimizer.work(splits.train, splits.validation, predictors)
    notes = [f"{name} can't estimate its work: it is not included" for name in work.unknown]
    tests = len(splits.test) * predictors * job.repeats
    clusters = splits.test.clusters
    number = None if clusters is None else len(set(clusters))
    calls = {
        "warmup": predictors,
        "baseline": tests,
        "bootstrap": work.bootstrap * predictors,
        "proposals": work.proposals,
        "trials": work.trials * predictors,
        "winner": (2 if job.interleaved else 1) * tests,
    }
    asked, answered = _tokens(job)
    demos = work.demos * (asked + answered) / 2  # each repeats an example's inputs and outputs
    programs = {name: count for name, count in calls.items() if name != "proposals"}
    without = calls["baseline"] / predictors
    runs = sum(programs.values()) / predictors
    taken = round(runs * asked + (runs - without) * demos)
    written = round(runs * answered)
    proposed = (round(work.proposals * _PROMPT / 4), round(work.proposals * _PROMPT / 24))
    task, proposer = price_of(job.lm, prices), price_of(job.prompt_lm, prices)
    unpriced = tuple(
        dict.fromkeys(str(lm.model) for lm, price in ((job.lm, task), (job.prompt_lm, proposer)) if not price)
    )
    cost = None
    if task is not None and proposer is not None:
        cost = task.of(taken, written) + proposer.of(*proposed)
    each = latency if latency is not None else getattr(getattr(job.lm, "engine", None), "latency", None)
    each = ASSUMED_LATENCY if each is None else float(each)
    total = sum(calls.values())
    return Estimate(
        calls={name: count for name, count in calls.items() if count},
        tokens=taken + written + sum(proposed),
        cost_usd=cost,
        seconds=total * each / max_concurrency + (work.chain + 2 * predictors) * each,
        latency=each,
        smallest_gain=gain_that_can_show(len(splits.test), repeats=job.repeats, clusters=number),
        clusters=number,
        max_calls=job.request.constraints.max_lm_calls,
        test_examples=len(splits.test),
        unpriced=unpriced,
        notes=(*job.warnings, *notes),
    )


def _tokens(job: Job) -> tuple[float, float]:
    """Approximate input and output tokens of one run of the program without demonstrations."""
    examples = job.splits.train.examples[:_SAMPLE]
    asked = sum(_prompt(job.program, item) for item in examples) / len(examples)
    answered = sum(_answer(job.program, item) for item in examples) / len(examples)
    return math.ceil(asked / _CHARACTERS_PER_TOKEN), math.ceil(answered / _CHARACTERS_PER_TOKEN)


def _prompt(program: dspy.Module, example: Example) -> int:
    known = {**example.inputs, **example.labels}
    size = 0
    for predictor in program.predictors():
        signature = predictor.signature
        inputs = {name: known.get(name, "x" * _REASONING) for name in signature.input_fields}
        messages = dspy.ChatAdapter().format(signature=signature, demos=predictor.demos, inputs=inputs)
        size += sum(len(str(message["content"])) for message in messages)
    return size


def _answer(program: dspy.Module, example: Example) -> int:
    return sum(
        len(str(example.labels.get(name, "x" * _REASONING))) + len(f"[[ ## {name} ## ]]\n\n")
        for predictor in program.predictors()
        for name in predictor.signature.output_fields
    )
