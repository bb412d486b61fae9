"""Tasks shared by all search benchmarks."""

import contextlib
import io
import logging
import math
import os
import random
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("DSPY_CACHEDIR", "/dev/null/agentcore-benchmarks")

import dspy

from agentcore.data import SPLITS, Dataset, Splits, load_dataset
from agentcore.dspy_optimization import OptimizationPipeline, OptimizationResult
from agentcore.lm.offline import AsyncOfflineEngine, OfflineEngine

METRIC_NAME = "exact_match"


class TwoSteps(dspy.Module):
    """Reads the measurements, then classifies them based on that reading."""

    def __init__(self, inputs: str, output: str, choices: str) -> None:
        super().__init__()
        self.read = dspy.Predict(f"{inputs} -> reading")
        self.classify = dspy.Predict(f"{inputs}, reading -> {output}: Literal[{choices}]")

    def forward(self, **given: Any) -> Any:
        return self.classify(**given, reading=self.read(**given).reading)

    async def aforward(self, **given: Any) -> Any:
        return await self.classify.acall(**given, reading=(await self.read.acall(**given)).reading)


class Engine(OfflineEngine):
    """The offline engine, with a fraction of requests ten times slower."""

    def __init__(self, latency: float, slow: float) -> None:
        super().__init__()
        self.seconds, self.slow = latency, slow
        self._draws = random.Random(0)

    @property
    def latency(self) -> float:  # type: ignore[override]
        return self.seconds * (10 if self._draws.random() < self.slow else 1)

    @latency.setter
    def latency(self, value: float) -> None:
        pass


def make_lm(latency: float = 0.0, slow: float = 0.0) -> Any:
    engine = Engine(latency, slow)
    return dspy.LM(
        "offline/knn", engine=engine, async_engine=AsyncOfflineEngine(engine), cache=False, max_tokens=1000
    )


@dataclass(frozen=True)
class Task:
    """A data set in three splits, and a program for it."""

    data: Dataset
    splits: Splits
    steps: int
    """Predictors of the program."""

    def program(self) -> Any:
        (output,) = self.data.output_fields
        choices = ", ".join(sorted({repr(str(item.labels[output])) for item in self.data}))
        inputs = ", ".join(self.data.input_fields)
        if self.steps == 2:
            return TwoSteps(inputs, output, choices)
        return dspy.ChainOfThought(f"{inputs} -> {output}: Literal[{choices}]")


def task(name: str, seed: int, *, steps: int = 1, train: int = 60, validation: int = 100) -> Task:
    """Up to the given number of train and validation examples, if available; the rest is for testing."""
    data = means() if name == "breast_cancer means" else load_dataset(name)
    examples = list({item.digest: item for item in data}.values())  # iris contains a duplicate
    random.Random(seed).shuffle(examples)
    train, validation = min(train, len(examples) // 4), min(validation, len(examples) // 3)
    parts = (examples[:train], examples[train : train + validation], examples[train + validation :])
    named = zip(SPLITS, parts, strict=False)
    return Task(data, Splits(*(data.part(part, tuple(found)) for part, found in named)), steps)


def means() -> Dataset:
    """Breast cancer with ten of its thirty fields, the means: DSPy's CPU time grows with the fields."""
    known = load_dataset("breast_cancer")
    (label,) = known.output_fields
    kept = [name for name in known.input_fields if name.startswith("mean")]
    rows = [{**{name: item.inputs[name] for name in kept}, label: item.labels[label]} for item in known]
    return Dataset.from_rows(rows, input_fields=kept, name="breast_cancer means")


def match(example: Any, prediction: Any, trace: Any = None) -> bool:
    return all(str(prediction.get(name)) == str(value) for name, value in example.labels().items())


@dataclass
class Outcome:
    seconds: float
    calls: int
    program: Any
    cpu: float
    details: dict[str, Any]


def stock(given: Task, lm: Any, *, auto: str, concurrency: int, seed: int) -> Outcome:
    """DSPy's MIPROv2 as its users run it."""
    before, began, cpu = lm.engine.calls, time.monotonic(), time.process_time()
    optimizer = dspy.MIPROv2(
        metric=match,
        prompt_model=lm,
        task_model=lm,
        auto=auto,
        num_threads=concurrency,
        seed=seed + 1,
    )
    with quiet(), dspy.context(lm=lm):
        found = optimizer.compile(
            given.program(),
            trainset=given.splits.train.dspy(),
            valset=given.splits.validation.dspy(),
            seed=seed + 1,
        )
    return Outcome(time.monotonic() - began, lm.engine.calls - before, found, time.process_time() - cpu, {})


def ours(
    given: Task,
    lm: Any,
    *,
    algorithm: str = "miprov2",
    concurrency: int,
    seed: int,
    settings: dict[str, Any],
    constraints: dict[str, Any] | None = None,
) -> tuple[Outcome, OptimizationResult]:
    """Measure the search alone: from the end of the baseline to the start of the winner."""
    marks: dict[str, tuple[float, int, float]] = {}

    def follow(event: Any) -> None:
        if event.kind == "stage_started":
            marks[event.stage] = (time.monotonic(), lm.engine.calls, time.process_time())

    pipeline = OptimizationPipeline(
        given.program(),
        match,
        lm,
        enable_tracking=False,
        max_concurrency=concurrency,
        seed=seed,
        on_event=follow,
    )
    with quiet():
        result = pipeline.sync.run_optimization(
            {
                "target": {"id": "benchmark"},
                "algorithms": [algorithm],
                "optimizer_settings": {algorithm: settings},
                "constraints": constraints or {},
            },
            training_data=given.splits.train,
            validation_data=given.splits.validation,
            test_data=given.splits.test,
        )
    start, end = marks["search"], marks.get("winner", marks["logging"])
    return (
        Outcome(
            end[0] - start[0],
            end[1] - start[1],
            result.program,
            end[2] - start[2],
            result.optimization_details,
        ),
        result,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence DSPy's progress bars, prints and logs, which would clutter the output and cost time."""
    logging.disable(logging.WARNING)
    streams = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), streams[0], streams[1]:
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def median(values: list[float]) -> float:
    return statistics.median(values)


def views(train: int) -> int:
    """Number of dependent LM calls of the data summary, including the summary itself."""
    return min(10, math.ceil(train / 10)) + 1
