"""`MlflowClient`: bounded, with time limits of our own, its errors told apart."""

import asyncio
import atexit
import contextlib
import errno
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agentcore._forks import not_forked
from agentcore._threads import exiting, start_in_thread
from agentcore.errors import ConfigurationError, TrackingError, first_line
from agentcore.settings import MLflowConfig, shown_uri

T = TypeVar("T")

# One uvicorn worker saturates at about four clients (docs/architecture.md).
MAX_REQUESTS = 4


class Unreachable(TrackingError):
    """No answer, or one that says: later."""


class Held(TrackingError):
    """The server refuses this client, whatever it sends: credentials, wrong address, deleted experiment."""


class Rejected(TrackingError):
    """The server refuses this request for good."""


_REJECTIONS = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
)
_REFUSALS = frozenset(
    {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"}
)


_WRONG_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


def _kind_of_reply(reply: Any) -> type[TrackingError]:
    status = int(reply.status_code)
    if status in (401, 403, 407):
        return Held
    if "sqlalche.me" in reply.text:
        return Unreachable
    return Rejected if 400 <= status < 500 and status not in (404, 408, 425, 429) else Unreachable


class Connection:
    """One MLflow. Blocking, for use in threads: at most four requests are in flight, one on SQLite."""

    def __init__(self, config: MLflowConfig) -> None:
        self.config = config
        self.local = config.tracking_uri.startswith("sqlite:")
        self.slots = 1 if self.local else MAX_REQUESTS
        self._slots = threading.BoundedSemaphore(self.slots)
        self._client: Any = None
        self._connecting = threading.Lock()

    def run(self, work: Callable[[Any], T]) -> T:
        """`work(client)`.

        Raises:
            Unreachable, Held, Rejected: see there; each is a `TrackingError`.
        """
        set_client_environment(self.config)
        import requests
        import sqlalchemy.exc
        from mlflow.exceptions import MlflowException

        try:
            self.prepare()
            # Only SQLite's own locks would hang a child: a server's answer is not waited for.
            with self._slots, not_forked() if self.local else contextlib.nullcontext():
                return work(self._client)
        except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            kind = self._kind(error)
            raise kind(f"MLflow at {shown_uri(self.config.tracking_uri)}: {self._explain(error)}") from None

    def prepare(self) -> None:
        """Import MLflow and make a local store: what takes seconds and is no answer of a server's."""
        with not_forked(), self._connecting:
            if self._client is None:
                set_client_environment(self.config)
                from mlflow import MlflowClient

                # Its first use of a new SQLite file would log every migration.
                for name in ("alembic", "mlflow.store.db.utils"):
                    logging.getLogger(name).setLevel(logging.WARNING)
                create_sqlite_store(self.config.tracking_uri)
                self._client = MlflowClient(
                    tracking_uri=self.config.tracking_uri, registry_uri=self.config.registry_uri
                )

    def _kind(self, error: Exception) -> type[TrackingError]:
        import requests
        from mlflow.exceptions import MlflowException, RestException

        if isinstance(error, requests.HTTPError) and error.response is not None:
            return _kind_of_reply(error.response)  # what artifacts' routes raise
        if not isinstance(error, MlflowException):
            # A file's name or place that the file system will never take.
            lasting = isinstance(error, OSError) and error.errno in _WRONG_NAMES
            return Rejected if lasting else Unreachable
        if error.error_code in _REFUSALS:
            return Held
        # A page that is not MLflow's JSON comes from something before it.
        own = isinstance(error, RestException) or not self.config.tracking_uri.startswith("http")
        if error.error_code not in _REJECTIONS or not own:
            return Unreachable
        # The server calls its own exhausted pool the client's fault.
        database = error.error_code == "BAD_REQUEST" and "sqlalche.me" in str(error)
        lasting = any(word in str(error) for word in ("IntegrityError", "DataError"))
        return Unreachable if database and not lasting else Rejected

    def _explain(self, error: Exception) -> str:
        message, text = first_line(error), str(error)
        if "CERTIFICATE_VERIFY_FAILED" in text:
            message = (
                "its certificate is signed by an authority that is not known here. Set "
                "MLFLOW_TRACKING_SERVER_CERT_PATH to that authority's certificate"
            )
        elif "error code 401" in text or "401 Client Error" in text:
            message = (
                "refuses this name and password. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "or MLFLOW_TRACKING_TOKEN"
            )
        elif (failed := re.search(r"too many (\d{3}) error responses", text)) is not None:
            message = f"answers with {failed[1]}: look at the server's log"
        elif "Connection refused" in text or "Max retries exceeded" in text:
            message = (
                "can't be reached. Start it, or set MLFLOW_TRACKING_URI (sqlite:///mlflow.db needs no server)"
            )
        elif "timed out" in text.lower():
            message = f"gave no answer within {self.config.request_timeout:g} s"
        return message


class TrackingClient:
    """A connection for the event loop: each call runs in a daemon thread."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def call(self, work: Callable[[Any], T]) -> T:
        """`work(client)` in a thread; raises `TrackingError`."""
        sent = start_in_thread(lambda: self.connection.run(work))
        # Whoever was cancelled meanwhile doesn't ask; the request stays under way.
        sent.add_done_callback(lambda future: future.cancelled() or future.exception())
        return await asyncio.shield(sent)


_connections: dict[str, Connection] = {}
_lock = threading.Lock()


def connection_to(config: MLflowConfig) -> Connection:
    """The connection to a server, which all that use it in this process share with its bound."""
    shared = config.model_dump(exclude={"experiment_name", "artifact_location"})
    key = f"{shared} {_credentials(config)} {os.getpid()}"
    with not_forked(), _lock:
        if key not in _connections:
            _connections[key] = Connection(config)
        return _connections[key]


def create_sqlite_store(uri: str) -> None:
    """Make a new SQLite store whole or not at all: one stopped in its migrations would never open again."""
    from sqlalchemy.engine import make_url

    if not uri.startswith("sqlite:"):
        return
    path = make_url(uri).database
    if not path or path == ":memory:" or Path(path).exists():
        return
    from mlflow import MlflowClient

    scratch = Path(path).absolute().with_name(f".new-{uuid.uuid4().hex[:8]}")
    if not _unfinished:
        atexit.register(remove_unfinished)
    _unfinished.add(scratch)
    if exiting.is_set():
        raise Unreachable("the process ends")
    scratch.mkdir(mode=0o700)
    draft = scratch / "store.db"
    MlflowClient(tracking_uri=f"sqlite:///{draft}").search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):  # another process was faster: its runs are in it
        os.link(draft, path)
    _remove(scratch)
    _unfinished.discard(scratch)


_unfinished: set[Path] = set()


def remove_unfinished() -> None:
    """Remove the stores that are being made: a daemon thread gets to no `finally` when the process ends."""
    for scratch in list(_unfinished):
        _remove(scratch)


def _remove(directory: Path) -> None:
    """Remove a directory into which a thread may still be writing: a file that it adds between keeps it."""
    for _ in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.01)


def set_client_environment(config: MLflowConfig) -> None:
    """MLflow takes these from the environment only. Of the first, what the user has set stays; credentials
    in the configuration win.

    Raises:
        ConfigurationError: another configuration of this process has other credentials.
    """
    values = {
        # Its defaults block for 4 to 20 minutes when the server is gone. One retry, since a pooled
        # connection may be reset after a failed upload; all further ones are the delivery's.
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(config.request_timeout))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
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
