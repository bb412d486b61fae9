"""The outcomes of promotions, rollbacks and verifications."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agentcore._imports import importing
from agentcore.registry._criteria import Criterion, GateVerdict

if TYPE_CHECKING:
    from mlflow.models import EvaluationResult


@dataclass(frozen=True)
class Promotion:
    """The outcome of `Registry.promote`.

    Attributes:
        run: its id as commands print it.
        verdict: of the gate; `forced` if it was bypassed; `staged` for the alias `staging`, which needs no
            look.
        criteria: each with its figures. If the gate refused, score figures are rounded, because later looks
            use the same examples.
        promoted: whether the alias was moved.
        alpha: significance level that the look cost; 0 without a look.
        looks_left: about how many more looks of this size the budget and the sealed examples allow.
        budget_left, sealed_left: what is left after the look: of the error budget, and of sealed examples if
            the look ends in a promotion.
        planned: whether this was a dry run: what a look would cost, with nothing spent or measured.
    """

    agent: str
    run_id: str
    run: str
    verdict: GateVerdict | Literal["forced", "staged"]
    promoted: bool = False
    criteria: tuple[Criterion, ...] = ()
    alias: str | None = None
    version: str | None = None
    semantic_version: str | None = None
    previous: str | None = None
    look: str | None = None
    examples: int = 0
    alpha: float = 0.0
    looks_left: int | None = None
    budget_left: float | None = None
    sealed_left: int | None = None
    evaluation_run: str | None = None
    deployment_run: str | None = None
    planned: bool = False
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        content = asdict(self)
        content["criteria"] = [item.as_dict() for item in self.criteria]
        content["warnings"] = list(self.warnings)
        return content

    def evaluation_results(self) -> "tuple[EvaluationResult, EvaluationResult]":
        """The figures of the challenger and of the champion, as `mlflow.validate_evaluation_results` takes
        them."""
        with importing():
            from mlflow.models import EvaluationResult
        metrics: dict[str, dict[str, float]] = {"challenger": {}, "reference": {}}
        for item in self.criteria:
            name, _, whom = item.name.partition(" against ")
            if whom in ("", "the champion"):
                for side, values in metrics.items():
                    if side in item.figures:
                        values[name] = item.figures[side]
        run = self.evaluation_run or self.run_id
        challenger, champion = (EvaluationResult(found, {}, run) for found in metrics.values())
        return challenger, champion

    def __str__(self) -> str:
        lines = [headline(self), *(f"  {item}" for item in self.criteria)]
        lines += [f"  note: {text}" for text in self.warnings]
        more = [item.more_examples for item in self.criteria if item.more_examples is not None]
        if self.verdict == "inconclusive" and more:
            lines.append(f"  about {max(more):,} more examples would probably decide it")
        if self.examples and self.budget_left is not None:
            costs = "would cost" if self.planned else "cost"
            lines.append(
                f"  the look at {self.examples} examples {costs} {self.alpha:.4f} of the error budget; "
                f"{self.budget_left:.4f} and {self.sealed_left} unused sealed examples are left"
            )
        return "\n".join(lines)


def headline(promotion: Promotion) -> str:
    """One line on the outcome."""
    run = promotion.run
    if promotion.planned:
        if not promotion.examples:
            return f"dry run: run {run} would be promoted without a look"
        return f"dry run: run {run} would be measured on {promotion.examples} examples"
    if promotion.promoted:
        back = f", was version {promotion.previous}" if promotion.previous else ""
        return (
            f"promoted: {promotion.agent}@{promotion.alias} is version {promotion.version} "
            f"({promotion.semantic_version}){back}"
        )
    reasons = {
        "reject": "rejected by the gate",
        "inconclusive": "not promoted, the evidence is inconclusive",
        "promote": "the gate would let it pass",
    }
    return f"{reasons.get(promotion.verdict, promotion.verdict)}: {promotion.agent}, run {run}"


@dataclass(frozen=True)
class Rollback:
    """The outcome of `Registry.rollback`."""

    agent: str
    alias: str
    version: str
    semantic_version: str
    previous: str | None
    deployment_run: str | None = None
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"rolled back: {self.agent}@{self.alias} is version {self.version} ({self.semantic_version}), "
            f"was version {self.previous}"
        ]
        return "\n".join([*lines, *(f"  note: {text}" for text in self.warnings)])


@dataclass(frozen=True)
class Difference:
    """Something about a version that differs from what was recorded."""

    what: str
    text: str


@dataclass(frozen=True)
class Verification:
    """The outcome of `Registry.verify`.

    Attributes:
        differences: what was changed; the version should not be used.
        notes: what is different here, such as another DSPy version.
    """

    agent: str
    version: str
    semantic_version: str
    differences: tuple[Difference, ...] = ()
    notes: tuple[Difference, ...] = field(default=())

    @property
    def sound(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "sound": self.sound}

    def __str__(self) -> str:
        title = f"{self.agent} version {self.version} ({self.semantic_version})"
        lines = [f"{title}: {'unchanged' if self.sound else 'CHANGED'} since its promotion"]
        lines += [f"  ✗ {item.what}: {item.text}" for item in self.differences]
        return "\n".join([*lines, *(f"  note: {item.what}: {item.text}" for item in self.notes)])
