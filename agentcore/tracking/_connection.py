"""A connection to an MLflow server or store, with bounded concurrency, timeouts and classified errors."""

import atexit
import base64
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
from agentcore._imports import importing
from agentcore._process import exiting, set_authorization, set_mlflow_environment
from agentcore._redaction import first_line
from agentcore.errors import TrackingError
from agentcore.settings import MLflowConfig, shown_uri
from agentcore.tracking._replies import NOT_MLFLOW, ForeignReplyError, is_mlflows

T = TypeVar("T")

# One uvicorn worker saturates at about four clients (docs/architecture.md).
MAX_REQUESTS = 4


class Unreachable(TrackingError):
    """The server did not answer, or answered with a temporary error."""


class Held(TrackingError):
    """The server refuses all requests: wrong credentials or address, or a deleted experiment."""


class Rejected(TrackingError):
    """The server permanently refuses this request."""


_REJECTIONS = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
)
_REFUSALS = frozenset(
    {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"}
)


_CAUSES = 10
_WRONG_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


_DETERMINISTIC = (TypeError, OverflowError, UnicodeError)
"""Raised by MLflow's client for values that it will never accept."""


def _kind_of_reply(reply: Any) -> type[TrackingError]:
    status = int(reply.status_code)
    if status in (401, 403, 407):
        return Held
    if "sqlalche.me" in reply.text or status in (404, 408, 425, 429) or not 400 <= status < 500:
        return Unreachable
    # A proxy refuses what an operator can allow: a size (413), a method (405).
    return Rejected if is_mlflows(reply) else Held


class Connection:
    """One MLflow. Blocking, for use in threads. At most four requests are in flight; one for SQLite."""

    def __init__(self, config: MLflowConfig) -> None:
        self.config = config
        self.local = config.tracking_uri.startswith("sqlite:")
        self.slots = 1 if self.local else MAX_REQUESTS
        self._slots = threading.BoundedSemaphore(self.slots)
        self._client: Any = None
        self._prepared = False
        self._connecting = threading.Lock()

    def run(self, work: Callable[[Any], T]) -> T:
        """Return `work(client)`.

        Raises:
            Unreachable, Held, Rejected: see there; each is a `TrackingError`.
        """
        prepare_environment(self.config)
        import_mlflow()
        import requests
        import sqlalchemy.exc
        from mlflow.exceptions import MlflowException

        try:
            self.prepare()
            # Only SQLite's locks could hang a forked child, so forks don't wait for a server's answer.
            with self._slots, not_forked() if self.local else contextlib.nullcontext():
                return work(self._connected())
        except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            kind = self._kind(error)
            raise kind(f"MLflow at {shown_uri(self.config.tracking_uri)}: {self._explain(error)}") from None
        except _DETERMINISTIC as error:
            raise Rejected(f"MLflow's client refuses it: {first_line(error)}") from None

    def prepare(self) -> None:
        """Import MLflow and create a local store. Takes seconds, none of them due to the server."""
        with not_forked(), self._connecting:
            if self._prepared:
                return
            prepare_environment(self.config)
            import_mlflow()
            # Otherwise every migration of a new SQLite file would be logged.
            for name in ("alembic", "mlflow.store.db.utils"):
                logging.getLogger(name).setLevel(logging.WARNING)
            create_sqlite_store(self.config.tracking_uri)
            self._prepared = True

    def _connected(self) -> Any:
        """The client. Creating it connects to a database, which MLflow would retry for minutes."""
        with self._connecting:
            if self._client is None:
                from mlflow import MlflowClient

                for uri in filter(None, (self.config.tracking_uri, self.config.registry_uri)):
                    if not uri.startswith(("http", "sqlite:", "databricks")):
                        _try_database(uri, self.config.request_timeout)
                self._client = MlflowClient(
                    tracking_uri=self.config.tracking_uri, registry_uri=self.config.registry_uri
                )
            return self._client

    def _kind(self, error: Exception) -> type[TrackingError]:
        import requests
        from mlflow.exceptions import MlflowException, RestException

        if isinstance(error, requests.HTTPError) and error.response is not None:
            return _kind_of_reply(error.response)  # raised by the artifact routes
        if NOT_MLFLOW in _whole_text(error):
            return Held
        if not isinstance(error, MlflowException):
            # A file name or path that the file system will never accept.
            lasting = isinstance(error, OSError) and error.errno in _WRONG_NAMES
            return Rejected if lasting else Unreachable
        if error.error_code in _REFUSALS:
            return Held
        # A response that is not MLflow's JSON comes from something in front of it, such as a proxy; an error
        # without a request was raised by the client.
        own = isinstance(error, RestException) or "API request to" not in str(error)
        if error.error_code not in _REJECTIONS or not own:
            return Unreachable
        # The server reports its own exhausted connection pool as a client error.
        database = error.error_code == "BAD_REQUEST" and "sqlalche.me" in str(error)
        lasting = any(word in str(error) for word in ("IntegrityError", "DataError"))
        return Unreachable if database and not lasting else Rejected

    def _explain(self, error: Exception) -> str:
        message, text = first_line(error), str(error)
        if NOT_MLFLOW in (whole := _whole_text(error)):
            start = whole.index("the reply to")
            message = first_line(ForeignReplyError(whole[start:])).partition(": ")[2]
        elif "CERTIFICATE_VERIFY_FAILED" in text:
            message = (
                "its certificate is signed by an unknown authority. Set "
                "MLFLOW_TRACKING_SERVER_CERT_PATH to that authority's certificate"
            )
        elif "error code 401" in text or "401 Client Error" in text:
            message = (
                "rejected the credentials. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "or MLFLOW_TRACKING_TOKEN"
            )
        elif (failed := re.search(r"too many (\d{3}) error responses", text)) is not None:
            message = f"keeps answering with status {failed[1]}: see the server's log"
        elif "Connection refused" in text or "Max retries exceeded" in text:
            message = (
                "can't be reached. Start it, or set MLFLOW_TRACKING_URI (sqlite:///mlflow.db needs no server)"
            )
        elif "timed out" in text.lower():
            message = f"did not answer within {self.config.request_timeout:g} s"
        return message


def _whole_text(error: BaseException | None) -> str:
    """The messages of an error and of what caused it: MLflow's client hides some."""
    texts: list[str] = []
    while error is not None and len(texts) < _CAUSES:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return " | ".join(texts)


def import_mlflow() -> None:
    """Import MLflow's client, alone: two threads that import it at once break its Protobuf definitions."""
    with importing():
        from mlflow import MlflowClient  # noqa: F401


def _try_database(uri: str, seconds: float) -> None:
    """Connect once, so that a database that is away is noticed within seconds.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: it can't be reached.
    """
    import sqlalchemy as sa

    engine = sa.create_engine(uri, connect_args={"connect_timeout": max(2, round(seconds))})
    try:
        engine.connect().close()
    finally:
        engine.dispose()


_connections: dict[str, Connection] = {}
_lock = threading.Lock()


def connection_to(config: MLflowConfig) -> Connection:
    """The connection to a server, shared by everything in this process so that its request limit holds."""
    shared = config.model_dump(exclude={"experiment_name", "artifact_location"})
    key = f"{shared} {_authorization(config)} {os.getpid()}"
    with not_forked(), _lock:
        if key not in _connections:
            _connections[key] = Connection(config)
        return _connections[key]


def prepare_environment(config: MLflowConfig) -> None:
    """Make MLflow's client use this configuration; see `agentcore._process`.

    Raises:
        ConfigurationError: this process uses other credentials for the same server.
    """
    set_mlflow_environment(config.request_timeout)
    header = _authorization(config)
    if header is not None:
        for uri in filter(None, (config.tracking_uri, config.registry_uri)):
            if uri.startswith("http"):
                set_authorization(uri, header)


def _authorization(config: MLflowConfig) -> str | None:
    """The Authorization header. As in MLflow, name and password take precedence over a token."""
    if config.tracking_username and config.tracking_password:
        pair = f"{config.tracking_username}:{config.tracking_password.get_secret_value()}"
        return "Basic " + base64.b64encode(pair.encode()).decode()
    if config.tracking_token:
        return f"Bearer {config.tracking_token.get_secret_value()}"
    return None


def create_sqlite_store(uri: str) -> None:
    """Create a new SQLite store atomically: a store whose migrations were interrupted could never be opened
    again."""
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
        raise Unreachable("the process is ending")
    scratch.mkdir(mode=0o700)
    draft = scratch / "store.db"
    MlflowClient(tracking_uri=f"sqlite:///{draft}").search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):  # another process was faster: keep its store
        os.link(draft, path)
    _remove(scratch)
    _unfinished.discard(scratch)


_unfinished: set[Path] = set()


def remove_unfinished() -> None:
    """Remove unfinished stores, since daemon threads don't run `finally` blocks when the process ends."""
    for scratch in list(_unfinished):
        _remove(scratch)


def _remove(directory: Path) -> None:
    """Remove a directory, retrying because a thread may still be adding files to it."""
    for _ in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.01)
