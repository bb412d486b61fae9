"""`agentcore experiments init` and `check`."""

import json
from typing import Annotated

import typer

from agentcore.cli._console import counted, out, run
from agentcore.cli._options import AsJson
from agentcore.cli._tracking import tracking_config

experiments = typer.Typer(
    name="experiments",
    help="An agent's development, evaluation and deployment experiments.",
    no_args_is_help=True,
)

AgentName = Annotated[str, typer.Argument(help="The agent's name.")]
Template = Annotated[
    str,
    typer.Option(help="The experiments' names; another common layout is /Shared/{agent}/{stage}."),
]
_TEMPLATE = "/Shared/{agent}_{stage}"


@experiments.command()
def init(agent: AgentName, template: Template = _TEMPLATE) -> None:
    """Create the three experiments; existing ones are left alone."""
    from agentcore.tracking import Experiments

    found = Experiments(agent, tracking_config(), template=template)
    ids = run(found.create())
    for stage, experiment_id in ids.items():
        name = getattr(found, stage)
        out.print(f"{stage:<12} {name}  (experiment {experiment_id})", soft_wrap=True)


@experiments.command()
def check(agent: AgentName, template: Template = _TEMPLATE, as_json: AsJson = False) -> None:
    """List what breaks the layout: missing experiments, runs that don't belong, wrong names and tags,
    evaluations without a data set. Exits with 1 if anything does."""
    from agentcore.tracking import Experiments

    found = run(Experiments(agent, tracking_config(), template=template).check())
    if as_json:
        typer.echo(json.dumps([item.as_dict() for item in found], indent=2))
    else:
        for item in found:
            where = f"{item.run_id[:8]}  " if item.run_id else ""
            out.print(f"{item.rule:<14} {where}{item.message}", soft_wrap=True, markup=False)
        out.print(counted(len(found), "violation") if found else "the experiments follow the layout")
    if found:
        raise typer.Exit(1)
