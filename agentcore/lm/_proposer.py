"""The offline engine's answers to MIPROv2's proposer, built from the data in its prompts."""

import ast
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from agentcore.lm._prompt import PARSING, Prompt

_EXAMPLE = re.compile(r"Example\((\{.*?\})\) \(input_keys=(\{.*?\})\)", re.DOTALL)
_MAX_LABELS = 10
_MAX_FIELDS = 6


def proposal(prompt: Prompt) -> str | None:
    """The answer if the prompt is one of the proposer's, else None."""
    answer = _ANSWERS.get(tuple(field.name for field in prompt.outputs))
    return answer(prompt.query) if answer else None


def _observations(query: dict[str, str]) -> str:
    rows, inputs = _shown_examples(query.get("examples", ""))
    if not rows:
        return "COMPLETE" if "prior_observations" in query else "No example could be read."
    labels = [name for name in rows[0] if name not in inputs]
    prior = query.get("prior_observations", "")
    if prior and all(str(row[name]) in prior for row in rows for name in labels):
        return "COMPLETE"
    parts = [f"Seen: {len(rows)} examples."]
    parts += [_describe(rows, name) for name in list(inputs)[:_MAX_FIELDS]]
    parts += [_describe(rows, name) for name in labels]
    parts += [text for name in labels if (text := _separating(rows, inputs, name))]
    return " ".join(parts)


def _summary(query: dict[str, str]) -> str:
    text = query.get("observations", "")
    sentences = re.split(r"(?<=\.)\s*(?=[A-Za-z_]+ )", text)
    telling = [item for item in sentences if "takes the values" in item or "averages" in item]
    return " ".join(list(dict.fromkeys(telling or sentences))[:3]).strip()


def _program_description(query: dict[str, str]) -> str:
    names = re.findall(r"\b(\w+)\s*(?::|=\s*InputField|=\s*OutputField)", query.get("program_code", ""))
    shown = ", ".join(dict.fromkeys(names)) if names else "its fields"
    return f"A program of language model calls over {shown}."


def _module_description(query: dict[str, str]) -> str:
    return f"The step {query.get('module', 'of the program')} of the program."


def _instruction(query: dict[str, str]) -> str:
    parts = [query.get("basic_instruction", "").strip()]
    summary = query.get("dataset_description", "").strip()
    if summary and summary not in ("None", "Not available"):
        parts.append(f"About the data: {summary}")
    if "No task demos" not in query.get("task_demos", "No task demos"):
        parts.append("Answer as the most similar demonstration is answered.")
    if tip := query.get("tip", "").strip():
        parts.append(f"({tip})")
    return " ".join(part for part in parts if part)


_ANSWERS: dict[tuple[str, ...], Callable[[dict[str, str]], str]] = {
    ("observations",): _observations,
    ("summary",): _summary,
    ("program_description",): _program_description,
    ("module_description",): _module_description,
    ("proposed_instruction",): _instruction,
}


def _shown_examples(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    inputs: set[str] = set()
    for match in _EXAMPLE.finditer(text):
        try:
            with PARSING:
                row, keys = ast.literal_eval(match[1]), ast.literal_eval(match[2])
        except (ValueError, SyntaxError):
            continue
        if not rows or row.keys() == rows[0].keys():
            rows.append(row)
            inputs |= set(keys)
    return rows, [name for name in (rows[0] if rows else {}) if name in inputs]


def _values_text(rows: Sequence[dict[str, Any]], name: str) -> str:
    values = sorted({str(row[name]) for row in rows})
    return f"{name} takes the values {', '.join(values)}."


def _describe(rows: Sequence[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return f"{name} is a number from {min(values):g} to {max(values):g}."
    distinct = Counter(map(str, values))
    if len(distinct) <= min(_MAX_LABELS, max(2, len(values) // 2)):
        return _values_text(rows, name)
    words = sum(len(str(value).split()) for value in values) / len(values)
    return f"{name} is text of about {words:.0f} words."


def _separating(rows: Sequence[dict[str, Any]], inputs: Sequence[str], label: str) -> str:
    """Describes the numeric input whose mean differs most between labels, with its mean for each label."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row[label]), []).append(row)
    if not 2 <= len(groups) <= _MAX_LABELS or len(groups) == len(rows):
        return ""
    best: tuple[float, str] = (0.0, "")
    for name in inputs:
        values = [row[name] for row in rows]
        if not all(isinstance(value, (int, float)) for value in values) or max(values) == min(values):
            continue
        means = {key: sum(row[name] for row in group) / len(group) for key, group in sorted(groups.items())}
        spread = (max(means.values()) - min(means.values())) / (max(values) - min(values))
        shown = ", ".join(f"{mean:.3g} for {key}" for key, mean in means.items())
        best = max(best, (spread, f"{name} averages {shown}."))
    return best[1]
