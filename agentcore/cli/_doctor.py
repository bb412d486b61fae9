"""`agentcore doctor`."""

from typing import Annotated

import typer

from agentcore.cli._console import out, run
from agentcore.cli._tracking import tracking_config

_MARKS = {"ok": "[green]ok[/]     ", "failed": "[bold red]failed[/] ", "skipped": "[dim]skipped[/]"}


def doctor(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="settings, tracking, clock, artifacts, database, s3, lm or journal; repeatable "
            "[default: all]."
        ),
    ] = None,
    lm: Annotated[
        str | None, typer.Option(help="Model to test with a one-word request [default: AGENTCORE_LM].")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="MLflow's database [default: MLFLOW_BACKEND_STORE_URI].")
    ] = None,
    s3: Annotated[
        str | None,
        typer.Option(help="s3://bucket with MLflow's artifacts [default: MLFLOW_ARTIFACTS_DESTINATION]."),
    ] = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(help="S3 endpoint, if not AWS [default: MLFLOW_S3_ENDPOINT_URL].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per finding.")] = False,
) -> None:
    """Check everything that a run needs, and say how to fix problems. Exits 3 if a check fails."""
    import json

    from pydantic import SecretStr
    from rich.markup import escape

    from agentcore.doctor import Places, diagnose
    from agentcore.settings import StackSettings

    stack = StackSettings()
    given = {
        "mlflow_backend_store_uri": SecretStr(database) if database else None,
        "mlflow_artifacts_destination": s3,
        "mlflow_s3_endpoint_url": s3_endpoint,
    }
    stack = stack.model_copy(update={name: value for name, value in given.items() if value})
    places = Places(tracking_config(), lm, stack)
    failed: set[str] = set()

    async def tell() -> None:
        async for finding in diagnose(places, only or ()):
            if finding.status == "failed":
                failed.add(finding.check)
            if as_json:
                typer.echo(json.dumps(finding.as_dict()))
                continue
            out.print(
                f"{_MARKS[finding.status]} {finding.check:<9} {escape(finding.message)}", soft_wrap=True
            )
            if finding.advice:
                out.print(f"                  → {escape(finding.advice)}", soft_wrap=True)

    run(tell())
    if failed:
        raise typer.Exit(2 if failed == {"settings"} else 3)
