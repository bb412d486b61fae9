"""Options shared by several commands, and parsers for structured arguments."""

import re
from typing import Annotated, Any

import typer

from agentcore.errors import ConfigurationError

Seed = Annotated[int, typer.Option(min=0, help="For the search.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Examples in flight at once.")]
Price = Annotated[
    list[str] | None,
    typer.Option(help="model=input,output: USD per million tokens, overrides litellm's table; repeatable."),
]
LM = Annotated[
    str | None,
    typer.Option(
        help="Model, such as openai/gpt-5-mini, offline/knn or package.module:object [default: AGENTCORE_LM]."
    ),
]
LMBaseURL = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Address of an OpenAI-compatible server, such as http://localhost:8080/v1."
    ),
]
LMArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--lm-arg",
        metavar="KEY=VALUE",
        help="An argument of the LM, such as max_tokens=200 or temperature=0.7; header.NAME=VALUE is an HTTP "
        "header, and env:NAME as the value reads an environment variable; repeatable.",
    ),
]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="Where the program runs: local or ray (RAY_ADDRESS).")
]
Agent = Annotated[str, typer.Option(help="The agent's name, also that of its registered model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")]
AgentRuns = Annotated[
    str | None,
    typer.Option("--agent", help="The agent whose development experiment to use [default: AGENTCORE_AGENT]."),
]
Experiment = Annotated[
    str | None,
    typer.Option(help="MLflow experiment [default: MLFLOW_EXPERIMENT_NAME or dspy-optimization]."),
]


def optimizer_settings(optimizers: list[str], auto: str, pairs: list[str]) -> dict[str, dict[str, Any]]:
    """`--auto` and `--set`, by optimizer; with several, each setting is prefixed with its optimizer."""
    found: dict[str, dict[str, Any]] = {name: {} for name in optimizers}
    if "miprov2" in found:
        found["miprov2"]["auto"] = None if auto == "none" else auto
    for text in pairs:
        name, value = _setting(text)
        owner, _, setting = name.rpartition(".")
        if not owner and len(optimizers) == 1:
            owner = optimizers[0]
        if owner not in found:
            raise ConfigurationError(
                f"--set {text!r}: write optimizer.name=value, for one of {', '.join(optimizers)}"
            )
        found[owner][setting] = value
    return found


def prices_of(pairs: list[str] | None) -> dict[str, Any]:
    found = {}
    for text in pairs or []:
        model, _, pair = text.rpartition("=")
        values = pair.split(",")
        if not model or len(values) != 2:
            raise ConfigurationError(
                f"--price {text!r}: write model=input,output in USD per million tokens, such as "
                "openai/gpt-5-mini=0.25,2"
            )
        found[model] = tuple(values)
    return found


def objective_of(text: str) -> dict[str, Any]:
    name, separator, weight = text.partition(":")
    try:
        return {"metric": name, "weight": float(weight) if separator else 1.0}
    except ValueError:
        raise ConfigurationError(f"--objective {text!r}: the weight is not a number") from None


def slug(program: str) -> str:
    return re.sub(r"\W+", "-", program).strip("-") or "program"


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise ConfigurationError(f"--set {text!r}: write name=value")
    import json

    try:
        return name, json.loads(value)
    except ValueError:
        return name, None if value == "None" else value


def model_of(name: str | None, base_url: str | None = None, arguments: list[str] | None = None) -> Any:
    """A model from its options; see `given_lm`."""
    from agentcore.lm import given_lm

    return given_lm(name, base_url, arguments or ())
