"""`agentcore ui`."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentcore.cli._console import err, fail, note, out, run
from agentcore.cli._tracking import LOCAL_TRACKING, tracking_config
from agentcore.errors import TrackingError

if TYPE_CHECKING:
    from agentcore.settings import MLflowConfig


def _runs_page(config: "MLflowConfig") -> str:
    """The path of the page with the experiment's runs; empty if MLflow can't say."""
    from agentcore.dspy_optimization import MLflowTracker

    try:
        return f"/#/experiments/{run(MLflowTracker(config).gateway.experiment_id())}"
    except TrackingError:
        return ""


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
    page = f"http://127.0.0.1:{port}{_runs_page(config)}"
    err.print(f"the runs are at {page} (ready in about 10 s; Ctrl-C to stop)", soft_wrap=True)
    environment = {
        **os.environ,
        "PYTHONWARNINGS": "ignore",  # MLflow's own, which nobody here can act on
        # The job runner takes about 2.8 GB and is unused here; telemetry would need a network.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", config.tracking_uri),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]
    # In a session of its own, Ctrl-C doesn't reach the server, which would print where it was.
    server = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 - no shell
    stop = signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    try:
        code = server.wait()
    except KeyboardInterrupt:
        code = 0
    finally:
        server.terminate()
        server.wait()
        signal.signal(signal.SIGTERM, stop)
    if code > 0:
        fail("MLflow's server ended by itself. Is the port taken? Choose another with --port", 3)
