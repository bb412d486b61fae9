"""`Dataset`: examples with named input fields, a digest, and splits that never share an example."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from agentcore._json import json_value, kind_of, restored
from agentcore._types import type_text
from agentcore.data._canonical import canonical_json, sha256
from agentcore.data._check import InputFields, check_rows, resolve_input_fields
from agentcore.data._example import Example
from agentcore.data._split import MINIMUM, SPLITS, Fractions, Split, divide, keys_of
from agentcore.errors import DataError

__all__ = ["Dataset", "Example", "Split", "Splits", "given_splits"]


@dataclass(frozen=True)
class Splits:
    """Datasets that share no example. Iterating gives train, validation and test.

    Attributes:
        test: the optimizer never sees it.
        sealed: examples that no run has used yet, for later tests; None if there are none.
        inherited: the splits of earlier runs that this one started from, as `members` gives them.
    """

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    sealed: "Dataset | None" = None
    inherited: Mapping[str, Split] = field(default_factory=dict, compare=False, repr=False)

    def __iter__(self) -> "Iterator[Dataset]":
        return iter((self.train, self.validation, self.test))

    @property
    def parts(self) -> dict[Split, "Dataset"]:
        """The splits that have examples, by name."""
        every = (*self, self.sealed)
        return {name: part for name, part in zip(SPLITS, every, strict=True) if part is not None}

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(part) for name, part in self.parts.items()}

    def members(self) -> dict[str, Split]:
        """The split of each example's folded inputs and of each cluster, by digest; sealed ones are left
        out, since nothing has seen them. Includes those of earlier runs; what any of them trained on stays
        in train."""
        known: dict[str, Split] = {}
        for name in ("train", "validation", "test"):
            known |= {
                key: name for key, split in self.inherited.items() if split == name and key not in known
            }
            for item in self.parts[name]:
                for key in keys_of(item):
                    known.setdefault(key, name)
        return known


@dataclass(frozen=True, repr=False)
class Dataset(Sequence[Example]):
    """Examples that all have the same fields.

    Build one with `Dataset.from_rows` or `load_dataset`; the constructor checks nothing.

    Attributes:
        cluster_field: the field that names each example's cluster, such as a conversation or a document.
        from_file: whether the values are as a file or a table has them, without the types of the program's
            fields.
    """

    name: str
    examples: tuple[Example, ...]
    input_fields: tuple[str, ...]
    description: str = field(default="", compare=False)
    cluster_field: str | None = None
    from_file: bool = field(default=False, compare=False)

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping[str, Any]],
        *,
        input_fields: InputFields = None,
        name: str = "data",
        description: str = "",
        cluster: str | None = None,
        from_file: bool = False,
    ) -> "Dataset":
        """Check rows and build a dataset from them. The program and the metric get the values
        unchanged: JSON is only used to digest and record them.

        Without `input_fields`, the fields named like a label (answer, label, output, target, …) are the
        outputs and all others are inputs.

        Args:
            cluster: the field that names each example's cluster. It is an input only if `input_fields`
                says so.

        Raises:
            DataError: no rows, rows whose fields differ, names that aren't Python identifiers, values that
                Pydantic can't write as JSON, or no field `cluster`.
        """
        check_rows(rows, name)
        if cluster is not None and cluster not in rows[0]:
            raise DataError(f"{name}: no field {cluster!r} for cluster; it has {', '.join(rows[0])}")
        named = isinstance(input_fields, (list, tuple)) and cluster in input_fields
        fields = tuple(item for item in rows[0] if item != cluster or named)
        inputs = resolve_input_fields(fields, input_fields, name)
        examples = tuple(Example(dict(row), inputs, cluster) for row in rows)
        return cls(name, examples, inputs, description, cluster, from_file)

    def __repr__(self) -> str:
        fields = f"inputs {', '.join(self.input_fields)}; labels {', '.join(self.output_fields)}"
        return f"Dataset({self.name!r}, {len(self)} examples, {fields})"

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
        known = (*self.input_fields, self.cluster_field)
        return tuple(name for name in self.fields if name not in known)

    @property
    def clusters(self) -> list[str] | None:
        """The cluster of each example; None if they are independent."""
        return None if self.cluster_field is None else [str(item.cluster) for item in self.examples]

    @cached_property
    def digest(self) -> str:
        """sha256 over the canonical JSON of all examples, in their order, and the input fields."""
        return sha256(
            {"inputs": list(self.input_fields), "examples": [dict(item.values) for item in self.examples]}
        )

    def rows(self) -> list[dict[str, Any]]:
        """The examples as dicts, one per example, with all fields."""
        return [dict(item.values) for item in self.examples]

    def types(self) -> dict[str, str]:
        """The types of the fields whose values JSON doesn't have, as text; see `type_text`."""
        found = {}
        for name in self.fields:
            values = [item.values[name] for item in self.examples]
            if (kind := kind_of(values)) is not None:
                found[name] = (
                    type_text(kind) if _come_back(values, kind) else "Any  # more than its JSON says"
                )
        return found

    def dspy(self) -> list[Any]:
        """The examples as `dspy.Example`s with their inputs marked."""
        return [item.dspy for item in self.examples]

    def with_inputs(self, input_fields: Sequence[str]) -> "Dataset":
        """The same examples with other input fields.

        Raises:
            DataError: a name is not a field, or no field remains as an output.
        """
        return Dataset.from_rows(
            self.rows(),
            input_fields=list(input_fields),
            name=self.name,
            description=self.description,
            cluster=self.cluster_field,
            from_file=self.from_file,
        )

    def with_cluster(self, cluster: str) -> "Dataset":
        """The same examples, clustered by a field.

        Raises:
            DataError: there is no such field.
        """
        inputs = [name for name in self.input_fields if name != cluster] or list(self.input_fields)
        return Dataset.from_rows(
            self.rows(),
            input_fields=inputs,
            name=self.name,
            description=self.description,
            cluster=cluster,
            from_file=self.from_file,
        )

    def with_values(self, rows: Sequence[Mapping[str, Any]]) -> "Dataset":
        """The same examples with values of other types; their inputs and clusters stay.

        Raises:
            DataError: see `from_rows`.
        """
        return Dataset.from_rows(
            rows,
            input_fields=self.input_fields,
            name=self.name,
            description=self.description,
            cluster=self.cluster_field,
        )

    def part(self, suffix: str, examples: Sequence[Example]) -> "Dataset":
        """A dataset of some of the examples, named `{name}-{suffix}`."""
        return replace(self, name=f"{self.name}-{suffix}", examples=tuple(examples))

    def split(
        self,
        *,
        seed: int = 0,
        fractions: Fractions | None = None,
        keep: Mapping[str, Split] | None = None,
        sealed: int = 0,
    ) -> Splits:
        """Split into train, validation, test and a sealed rest. The same examples and seed give the same
        splits, whatever the order of the examples; adding examples moves few others.

        Examples whose inputs differ only in case, spaces or punctuation at the ends stay together, and so do
        those of one cluster. If the labels are few values, every split has them in proportion.

        Args:
            seed: the split's own seed.
            fractions: of train, validation and test, which then use all examples. By default 30/30/40 for
                small sets; in large sets, smaller shares for train (at most 150) and validation (at
                most 300), at most 600 for test, and the rest is sealed.
            keep: `Splits.members()` of an earlier run: its examples stay where they were.
            sealed: minimum number of examples to keep sealed, for the promotion gate.

        Raises:
            DataError: `fractions` aren't three positive numbers that sum to 1, or there are too few
                examples; the message says how many are needed.
        """
        if fractions is not None and (
            len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1.0)
        ):
            raise DataError(f"split fractions {fractions} must be three positive numbers that sum to 1")
        if not 0 <= sealed < len(self):
            raise DataError(f"sealed={sealed}: use 0 to {len(self) - 1}; {self.name} has {len(self)} rows")
        found = divide(self.examples, seed, fractions, keep or {}, self.name, sealed)
        train, validation, test = (self.part(name, found[name]) for name in SPLITS[:3])
        rest = self.part("sealed", found["sealed"]) if found["sealed"] else None
        return Splits(train, validation, test, rest)


def given_splits(train: Dataset, validation: Dataset, test: Dataset) -> Splits:
    """Check splits made by the caller.

    Raises:
        DataError: two splits share an example's inputs, or a split is too small.
    """
    splits = Splits(train, validation, test)
    for name, part in splits.parts.items():
        if len(part) < MINIMUM[name]:
            raise DataError(f"the {name} split has {len(part)} examples, but needs at least {MINIMUM[name]}")
    seen: dict[str, str] = {}
    for name, part in splits.parts.items():
        for position, item in enumerate(part):
            other = seen.setdefault(item.input_digest, name)
            if other != name:
                raise DataError(
                    f"row {position + 1} of the {name} split is also in the {other} split "
                    f"({_short(item.inputs)}): remove it from one of them"
                )
    return splits


def shared_questions(splits: Splits) -> list[str]:
    """Warnings about test examples whose question, apart from case, spaces and final punctuation, or whose
    cluster is also in another split."""
    others = {key for part in (splits.train, splits.validation) for item in part for key in keys_of(item)}
    shared = sum(any(key in others for key in keys_of(item)) for item in splits.test)
    if not shared:
        return []
    return [
        f"{shared} of {len(splits.test)} test examples have a twin in the train or validation split (the "
        "same inputs apart from case, spaces or punctuation at the ends, or the same cluster): the gain may "
        "be too high"
    ]


def too_few_clusters(splits: Splits) -> list[str]:
    """A warning if the test split has too few clusters for any claim."""
    clusters = splits.test.clusters
    if clusters is None or len(set(clusters)) >= MINIMUM["test"]:
        return []
    count = len(set(clusters))
    what = "1 cluster" if count == 1 else f"{count} clusters"
    return [f"the test split has {what}: fewer than {MINIMUM['test']} can't prove a gain"]


def _come_back(values: Sequence[Any], kind: Any) -> bool:
    """Whether values of a type are the same after a journey through JSON."""
    try:
        return all(_same(restored(json_value(value), kind), value) for value in values)
    except ValueError:
        return False


def _same(one: Any, other: Any) -> bool:
    kind: Any = type(other)
    if kind.__eq__ is object.__eq__:  # only the same object would be equal
        return canonical_json(one) == canonical_json(other)
    return bool(one == other)


def _short(value: Any, limit: int = 80) -> str:
    text = canonical_json(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
