"""The commands, one module per group."""

from typing import Annotated

import typer

from agentcore._version import __version__
from agentcore.cli import (
    _compare,
    _data,
    _doctor,
    _evaluate,
    _experiments,
    _gate,
    _journal,
    _optimize,
    _registry,
    _resume,
    _runs,
    _serve,
    _stack,
    _ui,
)

app = typer.Typer(
    name="agentcore",
    help="Optimize DSPy programs, prove the gain on held-out data, keep every figure in your own MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agentcore {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command()(_optimize.demo)
app.command()(_optimize.optimize)
app.command()(_resume.resume)
app.add_typer(_runs.runs)
app.command()(_runs.best)
app.command()(_runs.show)
app.command()(_registry.promote)
app.command()(_registry.rollback)
app.command()(_registry.history)
app.command()(_registry.verify)
app.add_typer(_gate.gate)
app.add_typer(_experiments.experiments)
app.add_typer(_data.data)
app.command()(_evaluate.evaluate)
app.command()(_evaluate.drift)
app.command()(_evaluate.canary)
app.command()(_compare.compare)
app.command()(_serve.serve)
app.command()(_ui.ui)
app.command()(_journal.sync)
app.command()(_doctor.doctor)
app.add_typer(_journal.journal)
app.add_typer(_stack.stack)
app.command()(_stack.keys)
