"""`agentcore ui`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from agentcore.cli._console import err, note, out
from agentcore.cli._tracking import LOCAL_TRACKING, tracking_config


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Serve MLflow's UI for the local SQLite file on 127.0.0.1, or print the configured server's URL."""
    from agentcore.settings import shown_uri

    config = tracking_config()
    if config.tracking_uri.startswith("http"):
        out.print(f"runs are tracked on a server: open {shown_uri(config.tracking_uri)} in a browser")
        return
    if config.tracking_uri == LOCAL_TRACKING and not Path("mlflow.db").exists():
        note("there is no run here yet. Make one with: agentcore demo")
    err.print(f"MLflow on http://127.0.0.1:{port} (ready in about 10 s; Ctrl-C to stop)")
    environment = {
        **os.environ,
        # The job runner takes about 2.8 GB and is unused here; telemetry would need a network.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", config.tracking_uri),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]
    sys.stderr.flush()
    os.execve(sys.executable, command, environment)  # noqa: S606 - our own interpreter, no shell
