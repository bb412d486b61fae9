"""Process-wide state. No other module of AgentCore sets any.

Some settings can't be scoped to a pipeline: MLflow and litellm read them only from `os.environ`, a process
exits once, and DSPy prints to stdout. Everything that can be scoped (models, caps, credentials) is, and lives
elsewhere. The exception is the table in which MLflow's requests look up the credentials of their server."""

import os
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from agentcore.errors import ConfigurationError

exiting = threading.Event()
"""Set when the process is about to exit without Python's finalization. From then on, threads must not create
anything that needs cleaning up."""

exit_seconds: float | None = 10.0
"""How long process exit may wait for deliveries; None if the program takes care of them itself."""

max_download_bytes = 256 * 2**20
"""The most bytes that a downloaded artifact may have once decompressed."""

_ours: dict[str, str] = {}
"""Environment variables set by AgentCore rather than by the user."""
_authorization: dict[str, str] = {}
"""Authorization headers, keyed by server."""
_lent: list[tuple[str, str | None]] = []
"""Runs lent to MLflow's fluent API, and what MLFLOW_RUN_ID was before."""
_lock = threading.Lock()


def limit_downloads(most_bytes: int) -> None:
    """Set `max_download_bytes`."""
    global max_download_bytes
    max_download_bytes = most_bytes


def limit_exit(seconds: float | None) -> None:
    """Set `exit_seconds`."""
    global exit_seconds
    exit_seconds = seconds


def keep_litellm_offline() -> None:
    """Stop litellm from downloading its price map on import, which takes seconds without a network.

    Must run before litellm is imported.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


def set_mlflow_environment(request_timeout: float) -> None:
    """Set what MLflow reads only from the environment. Variables set by the user are left alone."""
    values = {
        # MLflow's defaults block for 4 to 20 minutes if the server is down. One retry, since a pooled
        # connection may be reset after a failed upload; delivery handles any further retries.
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(request_timeout))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        # A presigned URL names a host that a client outside the stack's network can't reach.
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # MLflow would print the URI, including any password in it.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        # Names the plugin `agentcore.tracking._auth`, unless the user has chosen another.
        "MLFLOW_TRACKING_AUTH": "agentcore",
    }
    for name, value in values.items():
        if os.environ.get(name, "") in ("", _ours.get(name)):
            os.environ[name] = _ours[name] = value


def set_authorization(uri: str, header: str) -> None:
    """Send `header` as Authorization with MLflow's requests to the server at `uri`.

    Raises:
        ConfigurationError: this process already uses other credentials for that server.
    """
    with _lock:
        if _authorization.setdefault(_server(uri), header) != header:
            raise ConfigurationError(
                f"this process already uses other credentials for MLflow at {_server(uri)}: "
                "use a separate process for each set of credentials"
            )


def authorization_for(url: str) -> str | None:
    """The Authorization header for a request; None if no credentials are set for its server."""
    return _authorization.get(_server(url))


def lend_run(tracking_uri: str, run_id: str) -> None:
    """Let a user's calls of MLflow's fluent API log to a run, if they go to the same server."""
    import sys

    fluent = sys.modules.get("mlflow")
    known = os.environ.get("MLFLOW_TRACKING_URI") if fluent is None else fluent.get_tracking_uri()
    if known is not None and known.rstrip("/") == tracking_uri.rstrip("/"):
        _lent.append((run_id, os.environ.get("MLFLOW_RUN_ID")))
        os.environ["MLFLOW_RUN_ID"] = run_id


def take_back_run(run_id: str) -> None:
    """Undo `lend_run`: otherwise MLflow would log what comes later to the ended run."""
    import sys

    before = next((known for lent, known in reversed(_lent) if lent == run_id), None)
    _lent[:] = [item for item in _lent if item[0] != run_id]
    if os.environ.get("MLFLOW_RUN_ID") in (run_id, None) and before is not None:
        os.environ["MLFLOW_RUN_ID"] = before
    elif os.environ.get("MLFLOW_RUN_ID") == run_id:
        del os.environ["MLFLOW_RUN_ID"]
    fluent = sys.modules.get("mlflow.tracking.fluent")
    if fluent is None:
        return
    stack = fluent._active_run_stack.get()
    stack[:] = [item for item in stack if item.info.run_id != run_id]


def silence_dspy_source_listing() -> None:
    """Stop `get_dspy_source_code` from printing the signatures that it reads. Remove once DSPy is fixed."""
    from dspy.propose import utils

    silent: Callable[..., None] = lambda *_: None  # noqa: E731
    utils.print = silent


def _server(uri: str) -> str:
    """A URI's server, spelled as requests does: with a lower-case host, in ASCII."""
    parts = urlsplit(uri)
    host = parts.hostname or ""
    if not host.isascii():
        host = host.encode("idna").decode()
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}:{port}"
