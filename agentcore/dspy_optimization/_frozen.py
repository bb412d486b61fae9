"""Parts of a program that no optimizer may change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentcore.errors import ConfigurationError

PARTS = ("instructions", "demos")


@dataclass(frozen=True)
class Frozen:
    """The names of predictors whose instructions, or demonstrations, stay as they are."""

    instructions: frozenset[str] = frozenset()
    demos: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.instructions or self.demos)

    @classmethod
    def of(cls, names: Sequence[str], program: Any) -> "Frozen":
        """From `instructions`, `demos`, a predictor's name, or `predictor.instructions` and `….demos`.

        Raises:
            ConfigurationError: the program has no such predictor.
        """
        predictors = [name for name, _ in program.named_predictors()]
        found: dict[str, set[str]] = {part: set() for part in PARTS}
        for name in names:
            owner, _, part = name.rpartition(".")
            if name in PARTS:
                found[name].update(predictors)
            elif name in predictors:
                for kind in PARTS:
                    found[kind].add(name)
            elif owner in predictors and part in PARTS:
                found[part].add(owner)
            else:
                raise ConfigurationError(
                    f"freeze {name!r}: the program's predictors are {', '.join(predictors)}. Name one of "
                    "them, with .instructions or .demos for a part of it, or instructions or demos for all"
                )
        return cls(frozenset(found["instructions"]), frozenset(found["demos"]))

    def restore(self, program: Any, original: Any) -> Any:
        """`program` with what is frozen as it is in `original`."""
        given = dict(original.named_predictors())
        for name, predictor in program.named_predictors():
            if name in self.instructions:
                kept = given[name].signature.instructions
                predictor.signature = predictor.signature.with_instructions(kept)
            if name in self.demos:
                predictor.demos = list(given[name].demos)
        return program
