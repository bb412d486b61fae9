"""`agentcore stack`: the secrets that docker-compose.mlflow.yml needs."""

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from agentcore.cli._console import out
from agentcore.errors import ConfigurationError

ENV_FILE = ".env.mlflow"

stack = typer.Typer(
    name="stack", help="The self-hosted MLflow of docker-compose.mlflow.yml.", no_args_is_help=True
)


@stack.callback()
def _root() -> None:
    pass


@stack.command()
def init(
    auth: Annotated[
        bool, typer.Option("--auth", help="Require a user name and password (the auth profile).")
    ] = False,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="For k8s/overlays/local instead of the compose file.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(help="Where to write [default: .env.mlflow, or k8s/overlays/local/secrets.env]."),
    ] = None,
) -> None:
    """Write .env.mlflow with generated passwords, readable only by you."""
    file = file or Path("k8s/overlays/local/secrets.env" if kubernetes else ENV_FILE)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigurationError(
            f"{file} already exists, and the stack's volumes use its passwords: edit it, or remove both"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{file} can't be written: {error.strerror}") from None
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(cluster_secrets() if kubernetes else environment(auth=auth))
    steps = [
        f"docker compose -f docker-compose.mlflow.yml --env-file {file} up -d --wait",
        "agentcore doctor",
    ]
    if kubernetes:
        steps = ["kubectl apply -k k8s/overlays/local"]
    out.print(f"wrote {file}, readable only by you. Next:", soft_wrap=True)
    for step in steps:
        out.print(f"  {step}", soft_wrap=True)


def keys() -> None:
    """Print a new key pair, to sign saved programs and to load only signed ones."""
    from agentcore.tracking import new_keys

    private, public = new_keys()
    out.print("# Keep this one secret, and set it where programs are saved:", soft_wrap=True)
    out.print(f"AGENTCORE_SIGNING_KEY={private}", soft_wrap=True)
    out.print(
        "# Set this one where programs are loaded or served; unsigned ones are then refused:", soft_wrap=True
    )
    out.print(f"AGENTCORE_TRUSTED_KEYS={public}", soft_wrap=True)


def cluster_secrets() -> str:
    """The contents of the Secret `mlflow-stores`; the last two only matter with the auth component."""
    values = {
        "POSTGRES_USER": "mlflow",
        "POSTGRES_PASSWORD": secrets.token_hex(24),
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(24),
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_urlsafe(24),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def environment(*, auth: bool) -> str:
    """The file's text; .env.mlflow.example lists everything it may contain."""
    password = secrets.token_urlsafe(24)
    lines = [
        "# Written by agentcore stack init. Keep it: the stack's volumes use these passwords.",
        f"POSTGRES_PASSWORD={secrets.token_hex(24)}",
        f"S3_ACCESS_KEY_ID={secrets.token_hex(10)}",
        f"S3_SECRET_ACCESS_KEY={secrets.token_hex(24)}",
        "MLFLOW_TRACKING_URI=http://localhost:5000",
    ]
    if auth:
        lines += [
            "COMPOSE_PROFILES=auth",
            f"MLFLOW_AUTH_ADMIN_PASSWORD={password}",
            f"MLFLOW_FLASK_SERVER_SECRET_KEY={secrets.token_hex(32)}",
            "MLFLOW_TRACKING_USERNAME=admin",
            f"MLFLOW_TRACKING_PASSWORD={password}",
        ]
    return "\n".join(lines) + "\n"
