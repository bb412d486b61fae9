"""The gate's decision: what the measured examples say about each criterion."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy import stats

from agentcore.evaluation import EvaluationReport, ExampleRecord
from agentcore.registry._policy import GatePolicy
from agentcore.registry._tests import (
    betting_p_value,
    gain_interval,
    gain_p_value,
    increase_p_value,
    loss_p_value,
)

Outcome = Literal["passed", "failed", "undecided"]
GateVerdict = Literal["promote", "reject", "inconclusive"]
Guarded = Literal["avg_cost", "avg_latency_ms"]
_GUARDED: tuple[Guarded, ...] = ("avg_cost", "avg_latency_ms")
_DOUBT = 0.05
"""Significance level at which a criterion counts as failed, not only as undecided."""
_MOST = 1_000_000
_MARKS: Mapping[Outcome, str] = {"passed": "✓", "failed": "✗", "undecided": "?"}


@dataclass(frozen=True)
class Criterion:
    """One criterion of the gate.

    Attributes:
        name: such as `quality_score`, `avg_cost`, `integrity`.
        outcome: undecided if the examples prove neither that it holds nor that it doesn't.
        text: for people.
        figures: for programs.
        more_examples: if undecided: about how many more examples would decide; None if that can't be said.
    """

    name: str
    outcome: Outcome
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)
    more_examples: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return {
            "name": self.name,
            "outcome": self.outcome,
            "text": self.text,
            "figures": dict(self.figures),
            "more_examples": self.more_examples,
        }

    def __str__(self) -> str:
        return f"{_MARKS[self.outcome]} {self.text}"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Criterion":
        """The inverse of `as_dict`."""
        return cls(**content)


@dataclass(frozen=True)
class Side:
    """One program on the sealed examples.

    Attributes:
        extra: scores by further metric and by position; None where the LM failed.
    """

    report: EvaluationReport
    extra: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """All that was measured in one look, over the same examples in the same order.

    Attributes:
        champion: the program in production, or before the first promotion the original program.
        first: whether nothing is in production yet: there is no cost and no latency to protect.
        sealed: whether the examples were sealed until this look.
        anchor: the first champion, unless that is `champion`.
        clusters: the cluster of each example; None for independent examples.
        alpha: the look's significance level.
    """

    challenger: Side
    champion: Side
    anchor: Side | None
    clusters: tuple[Hashable, ...] | None
    alpha: float
    first: bool = False
    sealed: bool = True

    @property
    def examples(self) -> int:
        return len(self.challenger.report.records)


def verdict_of(criteria: Sequence[Criterion]) -> GateVerdict:
    """`promote` if all passed, `reject` if one failed, else `inconclusive`."""
    if any(item.outcome == "failed" for item in criteria):
        return "reject"
    return "promote" if all(item.outcome == "passed" for item in criteria) else "inconclusive"


def judge(look: Look, policy: GatePolicy, *, coarse: bool = False) -> list[Criterion]:
    """The criteria that the examples decide.

    Args:
        coarse: round score figures to multiples of 1/√n and leave out p-values, so that a refusal
            reveals little about the sealed examples, which later looks use again (Blum and Hardt 2015).
    """
    judging = _Judging(look, policy, 1 / math.sqrt(look.examples) if coarse else None)
    found = [judging.gain()]
    if look.anchor is not None:
        found.append(judging.no_loss(policy.figure, look.anchor, policy.anchor_loss, "the first champion"))
    for name in policy.metrics:
        found.append(judging.no_loss(name, look.champion, policy.delta[name], "the champion"))
    for figure in _GUARDED:
        if figure in policy.delta and not look.first:
            found.append(judging.no_increase(figure, look.champion, "the champion"))
            if look.anchor is not None:
                found.append(judging.no_increase(figure, look.anchor, "the first champion"))
    return [*found, *judging.objectives()]


@dataclass(frozen=True)
class _Judging:
    look: Look
    policy: GatePolicy
    grid: float | None

    def gain(self) -> Criterion:
        """Whether the challenger is better than the champion."""
        look, policy = self.look, self.policy
        differences = self.differences(policy.figure, look.champion)
        p = gain_p_value(differences, look.clusters)
        mean = sum(differences) / len(differences)
        low = gain_interval(differences, 1 - 2 * look.alpha, look.clusters).low
        high = gain_interval(differences, 0.95, look.clusters).high
        passed = p <= look.alpha and mean > 0
        outcome: Outcome = "passed" if passed else "failed" if high < policy.margin else "undecided"
        low = max(0.0, low) if passed else low
        what = _word(policy.figure)
        whom = "the original program" if look.first else "the champion"
        conclusion = {
            "passed": f"better than {whom}, by at least {self.signed(low)} with "
            f"{1 - look.alpha:.2%} confidence",
            "failed": f"a gain of {policy.margin:g} or more is ruled out",
            "undecided": "not proven to be better",
        }[outcome]
        better, worse = _count(differences)
        unseen = "unseen " if look.sealed else ""
        counted = f" ({better} better, {worse} worse)" if self.grid is None else ""
        return Criterion(
            policy.figure,
            outcome,
            f"{what}: {self.signed(mean)} on {len(differences)} {unseen}examples{counted}: {conclusion}",
            self.figures(
                {**self.levels(policy.figure), "gain": mean, "gain_low": low, "gain_high": high},
                {"p_value": p},
            ),
            None if outcome != "undecided" else self.more_for_gain(mean, high, p),
        )

    def no_loss(self, name: str, reference: Side, margin: float, whom: str) -> Criterion:
        """Whether a loss of `margin` against a reference is ruled out."""
        differences = self.differences(name, reference)
        p = loss_p_value(differences, margin, self.look.clusters)
        against = betting_p_value([-(value + margin) / (1 + margin) for value in differences])
        mean = sum(differences) / len(differences)
        outcome: Outcome = (
            "passed" if p <= self.look.alpha else "failed" if against <= _DOUBT else "undecided"
        )
        conclusion = {
            "passed": f"a loss of {margin:g} is ruled out",
            "failed": f"it loses more than {margin:g}",
            "undecided": f"a loss of {margin:g} is not ruled out",
        }[outcome]
        return Criterion(
            f"{name} against {whom}",
            outcome,
            f"{_word(name)}: {self.signed(mean)} against {whom}: {conclusion}",
            self.figures({"gain": mean}, {"p_value": p}) | {"margin": margin},
            self.more(p) if outcome == "undecided" else None,
        )

    def no_increase(self, name: Guarded, side: Side, whom: str) -> Criterion:
        """Whether cost or latency rises by less than its `delta`."""
        allowed = self.policy.delta[name]
        unit, value = _measure(name, [self.look.challenger, side])
        records = zip(self.look.challenger.report.records, side.report.records, strict=True)
        rows = [(value(new), value(old), number) for number, (new, old) in enumerate(records)]
        known = [(new, old, number) for new, old, number in rows if new is not None and old is not None]
        title = f"{_word(name)} against {whom}"
        if len(known) < 2 or not any(old for _, old, _ in known):
            if unit == "none":
                return Criterion(f"{name} against {whom}", "passed", f"{title}: neither costs anything")
            return Criterion(f"{name} against {whom}", "undecided", f"{title}: could not be measured")
        new, old = [row[0] for row in known], [row[1] for row in known]
        clusters = None if self.look.clusters is None else [self.look.clusters[row[2]] for row in known]
        of_logs = name == "avg_latency_ms"
        p = increase_p_value(new, old, allowed, logarithms=of_logs, clusters=clusters)
        before, after = _middle(old, logarithms=of_logs), _middle(new, logarithms=of_logs)
        outcome: Outcome = "passed" if p <= self.look.alpha else "failed" if 1 - p <= _DOUBT else "undecided"
        conclusion = {
            "passed": f"an increase of {allowed:.0%} is ruled out",
            "failed": f"that is more than the {allowed:.0%} allowed",
            "undecided": f"an increase of {allowed:.0%} is not ruled out",
        }[outcome]
        change = f"{(after - before) / before:+.1%}" if before else "unknown"
        return Criterion(
            f"{name} against {whom}",
            outcome,
            f"{title}: {_amount(before, unit)} → {_amount(after, unit)} ({change}): {conclusion}",
            {"reference": before, "challenger": after, "allowed": allowed}
            | ({"p_value": p} if self.grid is None else {}),
            self.more(p) if outcome == "undecided" else None,
        )

    def objectives(self) -> list[Criterion]:
        """The challenger's own figures against the policy's bounds."""
        metrics, found = self.look.challenger.report.metrics, []
        for name, bound in self.policy.slo.items():
            value = getattr(metrics, name)
            most = name in ("avg_cost", "avg_latency_ms")
            wanted = f"at {'most' if most else 'least'} {bound:g}"
            if value is None:
                text = f"{_word(name)} objective: must be {wanted}, but could not be measured"
                found.append(Criterion(f"slo {name}", "failed", text, {"bound": bound}))
                continue
            met = value <= bound if most else value >= bound
            shown = value if most else self.rounded(value)
            about = "about " if self.grid is not None and not most else ""
            text = f"{_word(name)} objective: {about}{shown:.4g}{_UNITS.get(name, '')}, must be {wanted}"
            found.append(
                Criterion(
                    f"slo {name}", "passed" if met else "failed", text, {"value": shown, "bound": bound}
                )
            )
        return found

    def differences(self, name: str, reference: Side) -> list[float]:
        """Challenger minus reference by example. Where the LM failed, the challenger's score counts as 0 and
        the reference's as 1, so that an outage can't help the challenger."""
        new, old = self.scores(name, self.look.challenger, 0.0), self.scores(name, reference, 1.0)
        return [mine - other for mine, other in zip(new, old, strict=True)]

    def levels(self, name: str) -> dict[str, float]:
        """The mean of each program; see `differences` for failures of the LM."""
        new, old = self.scores(name, self.look.challenger, 0.0), self.scores(name, self.look.champion, 1.0)
        return {"reference": sum(old) / len(old), "challenger": sum(new) / len(new)}

    def scores(self, name: str, side: Side, missing: float) -> list[float]:
        """A program's scores, in which every run that the LM failed counts as `missing`."""
        known = side.extra.get(name, side.report.scores)
        found = []
        for score, record in zip(known, side.report.records, strict=True):
            share = 0.0 if score is None else record.answered / record.draws
            found.append((score or 0.0) * share + missing * (1 - share))
        if name == "success_rate":
            return [float(score >= side.report.success_threshold) for score in found]
        return found

    def figures(self, of_scores: Mapping[str, float], exact: Mapping[str, float]) -> dict[str, float]:
        if self.grid is None:
            return {**of_scores, **exact}
        return {name: self.rounded(value) for name, value in of_scores.items()}

    def rounded(self, value: float) -> float:
        return value if self.grid is None else round(round(value / self.grid) * self.grid, 6)

    def signed(self, value: float) -> str:
        return f"{value:+.3f}" if self.grid is None else f"about {self.rounded(value):+.2f}"

    def more_for_gain(self, mean: float, high: float, p: float) -> int | None:
        """More examples needed to prove the observed gain or to rule out the margin, whichever is fewer."""
        n, margin = self.look.examples, self.policy.margin
        rule_out = n * ((high - mean) / (margin - mean)) ** 2 - n if mean < margin else math.inf
        prove = self.more(p)
        needed = min(rule_out, math.inf if prove is None else prove)
        return None if not math.isfinite(needed) else self.about(needed)

    def more(self, p: float) -> int | None:
        """More examples needed if the observed effect holds: n·((z₁₋α + z_power) / z_observed)² − n."""
        observed = float(stats.norm.isf(min(max(p, 1e-12), 1.0))) if p < 1 else 0.0
        if observed <= 0:
            return None
        wanted = float(stats.norm.isf(self.look.alpha) + stats.norm.ppf(self.policy.power))
        n = self.look.examples
        return self.about(n * (wanted / observed) ** 2 - n)

    def about(self, number: float) -> int:
        """A number of examples, rounded up to two significant digits: the estimate is no better. A refusal
        shows quarters, halves and multiples by 2 of those used: more would tell the p-value."""
        number = max(1.0, min(float(_MOST), number))
        if self.grid is not None:
            n = self.look.examples
            return math.ceil(n * 2.0 ** max(-2, math.ceil(math.log2(number / n))))
        step = int(10 ** max(0, math.floor(math.log10(number)) - 1))
        return math.ceil(number / step) * step


def _count(differences: Sequence[float]) -> tuple[int, int]:
    return sum(value > 0 for value in differences), sum(value < 0 for value in differences)


def _word(name: str) -> str:
    words = {
        "quality_score": "quality",
        "success_rate": "success rate",
        "avg_cost": "cost per task",
        "avg_latency_ms": "latency",
    }
    return words.get(name, name)


_UNITS: Mapping[str, str] = {"avg_cost": " USD", "avg_latency_ms": " ms"}


def _measure(name: str, sides: Sequence[Side]) -> tuple[str, Any]:
    """The unit of a figure and its value in a record: if a price is unknown, cost is counted in tokens."""
    if name == "avg_latency_ms":
        return "ms", lambda record: None if record.cache_hits else record.latency_ms
    records = [item for side in sides for item in side.report.records if item.failed != "lm"]
    if all(item.cost_usd is not None for item in records) and any(item.cost_usd for item in records):
        return "USD", lambda record: _per_draw(record, record.cost_usd)
    if any(item.input_tokens + item.output_tokens for item in records):
        return "tokens", lambda record: _per_draw(record, record.input_tokens + record.output_tokens)
    return "none", lambda record: None


def _per_draw(record: ExampleRecord, amount: float | None) -> float | None:
    return None if not record.answered or amount is None else amount / record.answered


def _middle(values: Sequence[float], *, logarithms: bool) -> float:
    """The mean, or the geometric mean."""
    if logarithms:
        return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))
    return sum(values) / len(values)


def _amount(value: float, unit: str) -> str:
    if unit == "USD":
        return f"${value:,.4g}"
    return f"{value:,.1f} ms" if unit == "ms" else f"{value:,.0f} {unit}"
