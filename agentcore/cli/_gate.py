"""`agentcore gate check` and `show`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from agentcore.cli._console import confirm, import_from_here, out, run
from agentcore.cli._options import (
    LM,
    Agent,
    AsJson,
    Concurrency,
    LMArguments,
    LMBaseURL,
    Yes,
    model_of,
)
from agentcore.cli._tracking import tracking_config

gate = typer.Typer(
    name="gate", help="The promotion gate: compare a change, or show a look.", no_args_is_help=True
)


@gate.command()
def check(
    program: Annotated[str, typer.Argument(help="The changed program: package.module:object.")],
    agent: Agent,
    data: Annotated[str, typer.Option(help="Labelled examples; they need not be sealed.")],
    metric: Annotated[str, typer.Option(help="exact_match or package.module:function.")] = "exact_match",
    policy: Annotated[str | None, typer.Option(help="The gate's criteria, a TOML file.")] = None,
    lm: LM = None,
    lm_base_url: LMBaseURL = None,
    lm_arg: LMArguments = None,
    max_concurrency: Concurrency = 8,
    report: Annotated[
        Path | None, typer.Option(help="Write the comparison as Markdown, for a comment on a pull request.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a changed program with the champion, in CI. Exits with 1 if the change is rejected."""
    import_from_here()
    from agentcore.registry import Registry

    found = run(
        Registry(agent, tracking_config(), max_concurrency=max_concurrency).compare(
            program,
            data,
            metric=metric,
            lm=model_of(lm, lm_base_url, lm_arg),
            policy=policy,
        )
    )
    if report is not None:
        report.write_text(found.markdown(), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2, default=str))
    else:
        out.print(str(found), soft_wrap=True, markup=False)
    if found.rejected:
        raise typer.Exit(1)


@gate.command()
def show(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    look: Annotated[
        str, typer.Argument(help="A look's id, or the start of it; see agentcore history --json.")
    ],
    yes: Yes = False,
) -> None:
    """Print every example of a look as JSON lines. That retires these examples: the gate never uses them
    again."""
    from agentcore.registry import Registry

    registry = Registry(agent, tracking_config())
    whole = run(registry.find_look(look))
    confirm("Show individual sealed examples? The gate will never use them again.", yes=yes)
    for row in run(registry.reveal(whole)):
        typer.echo(json.dumps(row, ensure_ascii=False, default=str))
