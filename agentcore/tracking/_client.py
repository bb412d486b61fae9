"""`MlflowClient` in threads: bounded, with time limits of our own, its errors translated."""

import asyncio
import atexit
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agentcore._threads import start_in_thread
from agentcore.errors import ConfigurationError, TrackingError, first_line
from agentcore.settings import MLflowConfig, shown_uri

T = TypeVar("T")

# One uvicorn worker saturates at about four clients (docs/architecture.md).
MAX_REQUESTS = 4


class TrackingClient:
    """Runs functions of an `MlflowClient` in daemon threads, at most four at once (one on SQLite)."""

    def __init__(self, config: MLflowConfig) -> None:
        self.config = config
        self._client: Any = None
        self._gate: asyncio.Semaphore | None = None
        self._gate_loop: asyncio.AbstractEventLoop | None = None

    async def call(self, work: Callable[[Any], T]) -> T:
        """`work(client)` in a thread.

        Raises:
            TrackingError: the server or its stores can't be reached, or refuse.
        """
        slots = self._slots()
        await slots.acquire()
        sent = start_in_thread(lambda: self._translated(work))

        def done(future: asyncio.Future[T]) -> None:
            slots.release()
            if not future.cancelled():
                future.exception()  # whoever was cancelled meanwhile doesn't ask

        sent.add_done_callback(done)
        # A cancelled caller leaves its request under way: what is sent next must come after it.
        return await asyncio.shield(sent)

    def _slots(self) -> asyncio.Semaphore:
        # A semaphore belongs to one event loop; a script may use the tracker from several in turn.
        loop = asyncio.get_running_loop()
        if self._gate is None or self._gate_loop is not loop:
            local = self.config.tracking_uri.startswith("sqlite:")
            self._gate, self._gate_loop = asyncio.Semaphore(1 if local else MAX_REQUESTS), loop
        return self._gate

    def _translated(self, work: Callable[[Any], T]) -> T:
        set_client_environment(self.config)
        import requests
        import sqlalchemy.exc
        from mlflow.exceptions import MlflowException

        try:
            if self._client is None:
                self._client = self._connect()
            return work(self._client)
        except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            raise TrackingError(
                f"MLflow at {shown_uri(self.config.tracking_uri)}: {self._explain(error)}"
            ) from None

    def _connect(self) -> Any:
        from mlflow import MlflowClient

        # Its first use of a new SQLite file would log every migration.
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        create_sqlite_store(self.config.tracking_uri)
        return MlflowClient(tracking_uri=self.config.tracking_uri, registry_uri=self.config.registry_uri)

    def _explain(self, error: Exception) -> str:
        message = first_line(error)
        if "Connection refused" in str(error) or "Max retries exceeded" in str(error):
            message = (
                "can't be reached. Start it, or set MLFLOW_TRACKING_URI (sqlite:///mlflow.db needs no server)"
            )
        elif "timed out" in str(error).lower():
            message = f"gave no answer within {self.config.request_timeout:g} s"
        return message


def create_sqlite_store(uri: str) -> None:
    """Make a new SQLite store whole or not at all: one stopped in its migrations would never open again."""
    from sqlalchemy.engine import make_url

    if not uri.startswith("sqlite:"):
        return
    path = make_url(uri).database
    if not path or path == ":memory:" or Path(path).exists():
        return
    from mlflow import MlflowClient

    scratch = tempfile.mkdtemp(prefix=".new-", dir=Path(path).absolute().parent)
    # A daemon thread gets to no finally when the process ends.
    atexit.register(_remove, scratch)
    draft = Path(scratch, "store.db")
    MlflowClient(tracking_uri=f"sqlite:///{draft}").search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):  # another process was faster: its runs are in it
        os.link(draft, path)
    _remove(scratch)


def _remove(directory: str) -> None:
    """Remove a directory into which a thread may still be writing: a file that it adds between keeps it."""
    for _ in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not Path(directory).exists():
            return
        time.sleep(0.01)


def set_client_environment(config: MLflowConfig) -> None:
    """MLflow takes these from the environment only. Of the first, what the user has set stays; credentials
    in the configuration win.

    Raises:
        ConfigurationError: another configuration of this process has other credentials.
    """
    values = {
        # Its defaults block for 4 to 20 minutes when the server is gone.
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(config.request_timeout))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        # A presigned URL names a host that a client outside of the stack's network can't reach.
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # It would print the URI, and a password in it.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in values.items():
        if os.environ.get(name) in (None, _ours.get(name)):
            os.environ[name] = _ours[name] = value
    for name, value in _credentials(config).items():
        if os.environ.get(name) == _ours.get(name, value) != value:
            raise ConfigurationError(
                f"{name} was set for another MLflow server in this process, and MLflow reads it from the "
                "environment for all: use one process for each set of credentials"
            )
        os.environ[name] = _ours[name] = value


_ours: dict[str, str] = {}
"""What was set here, as against by the user."""


def _credentials(config: MLflowConfig) -> dict[str, str]:
    found = {}
    if config.tracking_username:
        found["MLFLOW_TRACKING_USERNAME"] = config.tracking_username
    if config.tracking_password:
        found["MLFLOW_TRACKING_PASSWORD"] = config.tracking_password.get_secret_value()
    if config.tracking_token:
        found["MLFLOW_TRACKING_TOKEN"] = config.tracking_token.get_secret_value()
    return found
