"""Starting from the optimized program of an earlier run, without testing it on what it was made from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentcore.data import Dataset, Example, Split, Splits, keys_of
from agentcore.dspy_optimization._entries import TRAINING_DATA
from agentcore.dspy_optimization._program import resolve_program
from agentcore.dspy_optimization._resume import recorded_data
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import dspy

_SHOWN = 3


@dataclass(frozen=True)
class Start:
    """The program to start from, and the split of every example that its run used."""

    run_id: str
    program: "dspy.Module"
    program_path: str | None
    members: Mapping[str, Split]


async def start_from(tracker: MLflowTracker, run_id: str, program: Any, program_path: str | None) -> Start:
    """The optimized program of a run, loaded into `program` if that is given.

    Raises:
        ConfigurationError: there is no such run.
        ArtifactError: it has no optimized program, or none that fits.
        TrackingError: MLflow can't be reached.
    """
    run = await tracker.find_run(run_id)
    known = run.info.run_id
    if isinstance(program, str):
        program, program_path = resolve_program(program)
    elif isinstance(program, type):
        raise ConfigurationError(
            "start_from needs an instance of the program, not its class: pass an instance"
        )
    found = await tracker.load_model_artifact(known, "optimized_model", program=program)
    content = await tracker.read_json(known, TRAINING_DATA)
    kind = type(found)
    _, splits = recorded_data(content, run_id, f"{kind.__module__}:{kind.__qualname__}")
    return Start(known, found, program_path, splits.members())


def with_own_demos(members: Mapping[str, Split], program: "dspy.Module", data: Dataset) -> dict[str, Split]:
    """`members`, and the examples that the program has as demonstrations, as `train`: a program must not be
    tested on its own demonstrations."""
    found = dict(members)
    for item in _demos_of(program, data):
        for key in keys_of(item)[:1]:
            found[key] = "train"
    return found


def check_test(members: Mapping[str, Split], program: "dspy.Module", splits: Splits) -> None:
    """Raise `DataError` if the caller's own test split has examples that the program was made from."""
    known = with_own_demos(members, program, splits.test)
    seen = [
        number
        for number, item in enumerate(splits.test, 1)
        if any(known.get(key) in ("train", "validation") for key in keys_of(item))
    ]
    if seen:
        rows = ", ".join(map(str, seen[:_SHOWN])) + (", …" if len(seen) > _SHOWN else "")
        raise DataError(
            f"{len(seen)} of {len(splits.test)} test examples (rows {rows}) are demonstrations of the "
            "program, or were in the train or validation split of the run to start from: the gain on them "
            "would prove nothing. Remove them from the test split"
        )


def _demos_of(program: "dspy.Module", data: Dataset) -> Iterator[Example]:
    """The program's demonstrations that have all of the data's inputs, as examples."""
    for predictor in program.predictors():
        for demo in predictor.demos:
            values = dict(demo.items())
            if all(name in values for name in data.input_fields):
                yield Example({name: values[name] for name in data.input_fields}, data.input_fields)
