"""Parts of a program that no optimizer may change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentcore.errors import ConfigurationError

if TYPE_CHECKING:
    import dspy

PARTS = ("instructions", "demos")


@dataclass(frozen=True)
class Frozen:
    """Names of the predictors whose instructions or demonstrations must not change."""

    instructions: frozenset[str] = frozenset()
    demos: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.instructions or self.demos)

    @classmethod
    def of(cls, names: Sequence[str], program: "dspy.Module") -> "Frozen":
        """Parse names: `instructions`, `demos`, a predictor, `predictor.instructions` or `predictor.demos`.

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
                    f"freeze {name!r}: no such part; the program's predictors are {', '.join(predictors)}. "
                    "Append .instructions or .demos to freeze one part, or use instructions or demos for all"
                )
        return cls(frozenset(found["instructions"]), frozenset(found["demos"]))

    def restore(self, program: "dspy.Module", original: "dspy.Module") -> "dspy.Module":
        """`program` with its frozen parts restored from `original`."""
        originals = dict(original.named_predictors())
        for name, predictor in program.named_predictors():
            if name in self.instructions:
                instructions = originals[name].signature.instructions
                predictor.signature = predictor.signature.with_instructions(instructions)
            if name in self.demos:
                predictor.demos = list(originals[name].demos)
        return program
