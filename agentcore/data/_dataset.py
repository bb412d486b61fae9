"""`Dataset`: examples with named input fields, a digest, and splits that never share an example."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from agentcore.data._check import InputFields, check_inputs, check_rows, resolve_input_fields
from agentcore.errors import DataError

Split = Literal["train", "validation", "test"]

DEFAULT_FRACTIONS = (0.3, 0.3, 0.4)
MIN_TRAIN = 2
MIN_VALIDATION = 2
MIN_TEST = 6
"""With fewer than 6 pairs, no sign-flip test can reach p < 0.05: 2 · 2⁻⁵ = 0.0625."""


def canonical_json(value: Any) -> str:
    """Canonical JSON, the same for equal data: sorted keys, no spaces, no NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class Example:
    """One labelled example. `digest` covers all fields, `input_digest` the inputs only."""

    values: Mapping[str, Any]
    input_fields: tuple[str, ...]

    @property
    def inputs(self) -> dict[str, Any]:
        return {name: self.values[name] for name in self.input_fields}

    @property
    def labels(self) -> dict[str, Any]:
        return {name: value for name, value in self.values.items() if name not in self.input_fields}

    @cached_property
    def digest(self) -> str:
        return _sha256(dict(self.values))

    @cached_property
    def input_digest(self) -> str:
        return _sha256(self.inputs)

    @cached_property
    def dspy(self) -> Any:
        """The same example as a `dspy.Example`."""
        import dspy

        return dspy.Example(**self.values).with_inputs(*self.input_fields)


class Splits(NamedTuple):
    """Three datasets that share no example. The optimizer never sees `test`."""

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(part) for name, part in self._asdict().items()}


@dataclass(frozen=True)
class Dataset(Sequence[Example]):
    """Examples that all have the same fields.

    Build one with `Dataset.from_rows` or `load_dataset`; the constructor checks only the inputs' names.
    """

    name: str
    examples: tuple[Example, ...]
    input_fields: tuple[str, ...]
    description: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_inputs(self.input_fields, self.name)

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping[str, Any]],
        *,
        input_fields: InputFields = None,
        name: str = "data",
        description: str = "",
    ) -> "Dataset":
        """Check rows and build a dataset from them.

        Without `input_fields`, the fields named like a label (answer, label, output, target, …) are the
        outputs and all others are inputs.

        Raises:
            DataError: no rows, rows whose fields differ, missing values, names that aren't Python
                identifiers, or values that can't be stored as JSON.
        """
        check_rows(rows, name)
        inputs = resolve_input_fields(tuple(rows[0]), input_fields, name)
        return cls(name, tuple(Example(dict(row), inputs) for row in rows), inputs, description)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __getitem__(self, index: Any) -> Any:
        return self.examples[index]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.examples[0].values) if self.examples else self.input_fields

    @property
    def output_fields(self) -> tuple[str, ...]:
        return tuple(name for name in self.fields if name not in self.input_fields)

    @cached_property
    def digest(self) -> str:
        """sha256 over the canonical JSON of all examples, in their order, and the input fields."""
        return _sha256(
            {"inputs": list(self.input_fields), "examples": [dict(item.values) for item in self.examples]}
        )

    def rows(self) -> list[dict[str, Any]]:
        """The examples as dicts, one per example, with inputs and labels."""
        return [dict(item.values) for item in self.examples]

    def dspy(self) -> list[Any]:
        """The examples as `dspy.Example`s with their inputs marked."""
        return [item.dspy for item in self.examples]

    def with_inputs(self, input_fields: Sequence[str]) -> "Dataset":
        """The same examples with other input fields.

        Raises:
            DataError: a name is not a field, or no field remains as an output.
        """
        return Dataset.from_rows(
            self.rows(), input_fields=input_fields, name=self.name, description=self.description
        )

    def part(self, suffix: str, examples: Sequence[Example]) -> "Dataset":
        """A dataset of some of the examples, named `{name}-{suffix}`."""
        return Dataset(f"{self.name}-{suffix}", tuple(examples), self.input_fields, self.description)

    def split(self, *, seed: int = 0, fractions: tuple[float, float, float] = DEFAULT_FRACTIONS) -> Splits:
        """Split into train, validation and test. The same examples and seed give the same splits, whatever
        the order of the examples.

        Examples are sorted by the sha256 of seed and input digest, so rows with equal inputs stay together
        and the same input is never in two splits.

        Raises:
            DataError: `fractions` aren't three positive numbers that sum to 1, or there are too few
                examples; the message says how many are needed.
        """
        if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1.0):
            raise DataError(f"split fractions {fractions} must be three positive numbers that sum to 1")
        groups: dict[str, list[Example]] = {}
        for item in self.examples:
            groups.setdefault(item.input_digest, []).append(item)
        needed = _least_total(fractions)
        if len(groups) < needed:
            what = "example" if len(groups) == 1 else "examples"
            raise DataError(
                f"{self.name}: {len(groups)} distinct {what}, but at least {needed} are needed for a "
                f"{'/'.join(f'{part:.0%}' for part in fractions)} split (train ≥ {MIN_TRAIN}, "
                f"validation ≥ {MIN_VALIDATION}, test ≥ {MIN_TEST})"
            )
        order = sorted(groups, key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())
        train_end, validation_end = _cuts(len(order), fractions)
        chunks = order[:train_end], order[train_end:validation_end], order[validation_end:]
        parts = [[item for digest in chunk for item in groups[digest]] for chunk in chunks]
        return Splits(
            self.part("train", parts[0]), self.part("validation", parts[1]), self.part("test", parts[2])
        )


def given_splits(train: Dataset, validation: Dataset, test: Dataset) -> Splits:
    """Check splits made by the caller.

    Raises:
        DataError: two splits share an example's inputs, or a split is too small.
    """
    splits = Splits(train, validation, test)
    least = {"train": MIN_TRAIN, "validation": MIN_VALIDATION, "test": MIN_TEST}
    for name, part in splits._asdict().items():
        if len(part) < least[name]:
            raise DataError(f"the {name} split has {len(part)} examples, but needs at least {least[name]}")
    seen: dict[str, str] = {}
    for name, part in splits._asdict().items():
        for position, item in enumerate(part):
            other = seen.setdefault(item.input_digest, name)
            if other != name:
                raise DataError(
                    f"row {position + 1} of the {name} split is also in the {other} split "
                    f"({_short(item.inputs)}): remove it from one of them"
                )
    return splits


def _cuts(total: int, fractions: tuple[float, float, float]) -> tuple[int, int]:
    train = max(MIN_TRAIN, round(total * fractions[0]))
    return train, train + max(MIN_VALIDATION, round(total * fractions[1]))


def _least_total(fractions: tuple[float, float, float]) -> int:
    total = MIN_TRAIN + MIN_VALIDATION + MIN_TEST
    while total - _cuts(total, fractions)[1] < MIN_TEST:
        total += 1
    return total


def _short(value: Any, limit: int = 80) -> str:
    text = canonical_json(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
