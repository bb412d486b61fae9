"""One labelled example."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from agentcore._json import json_value
from agentcore.data._canonical import canonical_json, folded_digest, sha256


@dataclass(frozen=True)
class Example:
    """One labelled example. `digest` covers all fields, `input_digest` the inputs only.

    Attributes:
        cluster_field: the field that names the example's cluster, which is no label; it may be an input.
    """

    values: Mapping[str, Any]
    input_fields: tuple[str, ...]
    cluster_field: str | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        return {name: self.values[name] for name in self.input_fields}

    @property
    def labels(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.values.items()
            if name not in self.input_fields and name != self.cluster_field
        }

    @property
    def json(self) -> dict[str, Any]:
        """All fields as JSON has them."""
        return {name: json_value(value) for name, value in self.values.items()}

    @property
    def cluster(self) -> str | None:
        """The cluster, as JSON; None if examples are independent."""
        return None if self.cluster_field is None else canonical_json(self.values[self.cluster_field])

    @cached_property
    def digest(self) -> str:
        return sha256(dict(self.values))

    @cached_property
    def input_digest(self) -> str:
        return sha256(self.inputs)

    @cached_property
    def folded_digest(self) -> str:
        """Digest of the inputs without case, spaces and punctuation at the ends."""
        return folded_digest(self.inputs)

    @cached_property
    def dspy(self) -> Any:
        """Inputs and labels as a `dspy.Example`."""
        import dspy

        return dspy.Example(**{**self.labels, **self.inputs}).with_inputs(*self.input_fields)
