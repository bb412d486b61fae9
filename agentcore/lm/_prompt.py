"""Parses prompts made by DSPy's chat, JSON and XML adapters back into the task, and renders replies."""

import ast
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal
from xml.sax.saxutils import escape, unescape

PARSING = threading.Lock()
"""Python 3.11's parser fails now and then if several threads use it at once. Remove with support for 3.11."""
Style = Literal["chat", "json", "xml"]

_FIELD_LINE = re.compile(r"^\d+\. `(?P<name>[^`]+)` \((?P<type>.+?)\):(?:\s|$)", re.MULTILINE)
_HEADER = re.compile(r"^\[\[ ## (?P<name>\w+) ## \]\]$", re.MULTILINE)
_OBJECTIVE = "In adhering to this structure, your objective is:"
_NOT_SUPPLIED = "Not supplied for this particular example."
_INCOMPLETE = "This is an example of the task, though some input or output fields are not supplied."


@dataclass(frozen=True)
class Field:
    name: str
    type: str

    @property
    def allowed(self) -> tuple[str, ...]:
        """The values that the type allows, as text; empty if it doesn't list them."""
        if self.type == "bool":
            return ("True", "False")
        if self.type.startswith("Literal[") and self.type.endswith("]"):
            return _literals(self.type[8:-1])
        return ()


@dataclass(frozen=True)
class Prompt:
    """One request: fields, instruction, demonstrations (field → text) and the query's inputs."""

    style: Style
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    instruction: str
    demos: tuple[dict[str, str], ...]
    query: dict[str, str]


def parse_prompt(system: str, messages: Sequence[tuple[str, str]]) -> Prompt | None:
    """The task in `system` and (role, text) `messages`, or None if no supported adapter made them."""
    before, found, after = system.partition("Your output fields are:")
    if not found or "Your input fields are:" not in before or not messages or messages[-1][0] != "user":
        return None
    inputs = _fields(before)
    output_block, _, rest = after.partition("All interactions will be structured")
    outputs = _fields(output_block)
    style = _style(system)
    if not outputs or style is None:
        return None
    demos = []
    for (role, text), (next_role, reply) in pairwise(messages):
        if role == "user" and next_role == "assistant":
            demo = {**_values(text, style, inputs), **_values(reply, style, outputs, reply=True)}
            demos.append({name: value for name, value in demo.items() if value != _NOT_SUPPLIED})
    query = _values(_without_request(messages[-1][1]), style, inputs)
    instruction = rest.partition(_OBJECTIVE)[2]
    return Prompt(style, inputs, outputs, " ".join(instruction.split()), tuple(demos), query)


def render(prompt: Prompt, values: dict[str, str]) -> str:
    """A reply in the format that the prompt's adapter expects."""
    types = {field.name: field.type for field in prompt.outputs}
    if prompt.style == "json":
        return json.dumps({name: _typed(value, types[name]) for name, value in values.items()})
    if prompt.style == "xml":
        shown = {name: escape(value) if _is_plain(types[name]) else value for name, value in values.items()}
        return "\n\n".join(f"<{name}>\n{value}\n</{name}>" for name, value in shown.items())
    blocks = [f"[[ ## {name} ## ]]\n{value}" for name, value in values.items()]
    return "\n\n".join([*blocks, "[[ ## completed ## ]]"])


@lru_cache(maxsize=1024)
def _literals(text: str) -> tuple[str, ...]:
    try:
        with PARSING:
            return tuple(str(value) for value in ast.literal_eval(f"[{text}]"))
    except (ValueError, SyntaxError):
        return ()


def _is_plain(type_name: str) -> bool:
    """Whether the XML adapter writes the type as escaped text rather than as nested elements."""
    return type_name in ("str", "int", "float", "bool") or type_name.startswith("Literal[")


def _fields(text: str) -> tuple[Field, ...]:
    return tuple(Field(match["name"], match["type"]) for match in _FIELD_LINE.finditer(text))


def _style(system: str) -> Style | None:
    if "Outputs will be a JSON object" in system:
        return "json"
    if "[[ ## completed ## ]]" in system:
        return "chat"
    if re.search(r"^</\w+>$", system, re.MULTILINE):
        return "xml"
    return None


def _without_request(text: str) -> str:
    """The last user message without its closing "Respond with …" paragraph."""
    head, found, _ = text.rpartition("\n\nRespond with ")
    return head if found else text


def _values(text: str, style: Style, fields: Sequence[Field], *, reply: bool = False) -> dict[str, str]:
    text = text.removeprefix(_INCOMPLETE)
    if style == "xml":
        return _xml_values(text, fields, reply)
    names = [field.name for field in fields]
    if style == "json" and reply:
        return _json_values(text, names)
    marks = [match for match in _HEADER.finditer(text) if match["name"] in (*names, "completed")]
    found = {}
    for position, mark in enumerate(marks):
        end = marks[position + 1].start() if position + 1 < len(marks) else len(text)
        if mark["name"] != "completed":
            found[mark["name"]] = text[mark.end() : end].strip()
    return found


def _xml_values(text: str, fields: Sequence[Field], reply: bool) -> dict[str, str]:
    """Extract values from XML, which is escaped in replies only."""
    found = {}
    for field in fields:
        name = re.escape(field.name)
        match = re.search(rf"<{name}\s*/>|<{name}>(.*?)</{name}>", text, re.DOTALL)
        if match:
            value = (match[1] or "").strip()
            found[field.name] = unescape(value) if reply and _is_plain(field.type) else value
    return found


def _json_values(text: str, names: Sequence[str]) -> dict[str, str]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: _as_text(value) for name, value in values.items() if name in names}


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, bool) else json.dumps(value)


def _typed(value: str, type_name: str) -> Any:
    if type_name == "str" or type_name.startswith("Literal["):
        return value
    if type_name == "bool":
        return value == "True"
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
