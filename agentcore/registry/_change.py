"""A changed program against the champion, on examples that need not be sealed: for pull requests."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentcore._threads import run_in_thread
from agentcore.data import Dataset, load_dataset
from agentcore.dspy_optimization import fitted, only_outputs, resolve_program
from agentcore.evaluation import Metric, interface_of, resolve_metric
from agentcore.lm import resolve_lm
from agentcore.registry._criteria import Criterion, GateVerdict, Look, judge, verdict_of
from agentcore.registry._measure import Measurement
from agentcore.registry._policy import GatePolicy

if TYPE_CHECKING:
    import dspy

_ALPHA = 0.05
_SHOWN = 10
_LENGTH = 200
_TITLES = {
    "promote": "better than the champion",
    "reject": "rejected",
    "inconclusive": "neither proven better nor rejected",
}


@dataclass(frozen=True)
class Change:
    """A changed program compared with the champion on the same examples.

    These examples aren't sealed, so this decides nothing about production: the gate measures again, on sealed
    ones.

    Attributes:
        verdict: at a significance level of 0.05.
        fixed, broken: the inputs, and both answers, of examples that only one program gets right.
    """

    agent: str
    champion: str
    verdict: GateVerdict
    criteria: tuple[Criterion, ...]
    examples: int
    fixed: tuple[dict[str, Any], ...]
    broken: tuple[dict[str, Any], ...]

    @property
    def rejected(self) -> bool:
        return self.verdict == "reject"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "agent": self.agent,
            "champion": self.champion,
            "verdict": self.verdict,
            "criteria": [item.as_dict() for item in self.criteria],
            "examples": self.examples,
            "fixed": list(self.fixed),
            "broken": list(self.broken),
        }

    def markdown(self) -> str:
        """A comment for a pull request."""
        marks = {"passed": "✅", "failed": "❌", "undecided": "❔"}
        lines = [
            f"### {self.agent}: {_TITLES[self.verdict]}",
            "",
            f"Compared with version {self.champion} (champion) on {self.examples} examples.",
            "",
            *(f"- {marks[item.outcome]} {_code(item.text)}" for item in self.criteria),
        ]
        for title, rows in (("Fixed", self.fixed), ("Broken", self.broken)):
            if rows:
                lines += ["", f"<details><summary>{title}: {len(rows)} examples</summary>", ""]
                lines += ["| input | champion | this change |", "|---|---|---|"]
                lines += [
                    f"| {_cell(row['inputs'])} | {_cell(row['champion'])} | {_cell(row['challenger'])} |"
                    for row in rows[:_SHOWN]
                ]
                lines += ["", "</details>"]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        title = f"{self.agent}: {_TITLES[self.verdict]} (version {self.champion}), {self.examples} examples"
        lines = [title, *(f"  {item}" for item in self.criteria)]
        return "\n".join([*lines, f"  {len(self.fixed)} examples fixed, {len(self.broken)} broken"])


async def compare_change(
    agent: str,
    version: str,
    champion: "dspy.Module",
    program: "dspy.Module | str",
    data: Any,
    *,
    metric: Metric | str | None,
    lm: "dspy.BaseLM | str | None",
    policy: GatePolicy,
    max_concurrency: int,
) -> Change:
    """Measure both programs on the examples, interleaved and uncached, and judge the change."""

    def prepared() -> tuple[Any, Dataset, Any, Any]:
        changed = resolve_program(program)[0] if isinstance(program, str) else program
        names = interface_of(changed).inputs
        loaded = data if isinstance(data, Dataset) else load_dataset(
            data, input_fields=lambda fields: [name for name in fields if name in (names or ())] or None
        )  # fmt: skip
        examples = fitted(changed, loaded)
        scored = only_outputs(resolve_metric(metric), changed, examples)[0]
        return changed, examples, scored, resolve_lm(lm)

    changed, examples, scored, model = await run_in_thread(prepared)
    measurement = Measurement(
        {"challenger": changed, "champion": champion},
        list(examples),
        scored,
        policy,
        model,
        f"change of {agent}",
        max_concurrency,
    )
    sides = await measurement.run()
    clusters = examples.clusters
    look = Look(
        sides["challenger"],
        sides["champion"],
        None,
        tuple(clusters) if clusters else None,
        _ALPHA,
        sealed=False,
    )
    criteria = judge(look, policy)
    fixed, broken = _flipped(look, examples)
    return Change(
        agent, version, verdict_of(criteria), tuple(criteria), len(examples), tuple(fixed), tuple(broken)
    )


def _flipped(look: Look, examples: Dataset) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    fixed, broken = [], []
    threshold = look.champion.report.success_threshold
    records = zip(look.challenger.report.records, look.champion.report.records, examples, strict=True)
    for new, old, item in records:
        if new.score is None or old.score is None:
            continue
        row = {
            "inputs": {name: item.json[name] for name in item.input_fields},
            "champion": old.prediction if old.error is None else old.error,
            "challenger": new.prediction if new.error is None else new.error,
        }
        if old.score < threshold <= new.score:
            fixed.append(row)
        elif new.score < threshold <= old.score:
            broken.append(row)
    return fixed, broken


def _cell(value: Any) -> str:
    """A value in a table of a comment. Data may contain anything, so it is shown as code: no markup, no links
    and no mentions."""
    if isinstance(value, dict):
        value = ", ".join(f"{name}: {item}" for name, item in value.items())
    return _code(str(value))


def _code(text: str) -> str:
    text = " ".join(text.split()).replace("`", "'")
    text = text if len(text) <= _LENGTH else text[: _LENGTH - 1] + "…"
    return "`" + text.replace("\\", "\\\\").replace("|", "\\|") + "`" if text else ""
