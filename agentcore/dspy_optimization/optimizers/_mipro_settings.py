"""MIPROv2's settings, for our search and for DSPy's own."""

from typing import Literal

from pydantic import Field, model_validator

from agentcore.dspy_optimization.optimizers._base import OptimizerSettings

_MINIBATCH = 35


class MIPROv2Settings(OptimizerSettings):
    """DSPy's names and defaults, plus settings of our own search."""

    auto: Literal["light", "medium", "heavy"] | None = "light"
    """How much to search; None uses `num_candidates` and `num_trials` instead."""
    num_candidates: int | None = Field(default=None, ge=2)
    num_trials: int | None = Field(default=None, ge=1)
    max_bootstrapped_demos: int = Field(default=4, ge=0)
    max_labeled_demos: int = Field(default=4, ge=0)
    minibatch: bool = True
    minibatch_size: int = Field(default=_MINIBATCH, ge=1)
    minibatch_full_eval_steps: int = Field(default=5, ge=1)
    """Number of trials between full evaluations of the leader."""
    racing: bool = True
    """Whether a candidate that can no longer win is stopped before the end of its minibatch."""
    racing_level: float = Field(default=0.1, gt=0, lt=0.5)
    """The p-value at which a candidate counts as behind the leader; see `Race`."""
    mode: Literal["concurrent", "dspy"] = "concurrent"
    """`dspy`: DSPy's own sequential compile, for comparison."""

    @model_validator(mode="after")
    def _one_way_to_say_how_much(self) -> "MIPROv2Settings":
        sizes = self.num_candidates is not None, self.num_trials is not None
        if self.auto is not None and any(sizes):
            raise ValueError("num_candidates and num_trials need auto=None")
        if self.auto is None and not all(sizes):
            raise ValueError("auto=None needs num_candidates and num_trials")
        if self.max_labeled_demos and not self.max_bootstrapped_demos:
            raise ValueError(
                "max_bootstrapped_demos=0 needs max_labeled_demos=0 (DSPy draws a number from 1 to it)"
            )
        return self
