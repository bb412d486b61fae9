"""Connects this process to a Ray cluster, or starts one on this machine."""

import logging
import os
import secrets
import socket
import sys
import threading
from concurrent.futures import Future
from typing import Any

from agentcore._redaction import first_line
from agentcore.errors import ConfigurationError, ExecutorError

_logger = logging.getLogger(__name__)
_PATIENCE = 10.0
_connecting = threading.Lock()


def connect(address: str | None, runtime_env: dict[str, Any] | None = None) -> Any:
    """Connect to Ray and return the `ray` module. Anything started here ends with this process.

    Args:
        address: the cluster's address; None uses RAY_ADDRESS if set, and otherwise starts Ray locally.

    Raises:
        ExecutorError: there is no cluster at the address, or Ray can't be started.
        ConfigurationError: this process is already connected, to another cluster or without `runtime_env`.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    with _connecting:
        if not address:
            _settle_own()
        import ray

        if ray.is_initialized():
            _check_same(ray, address, runtime_env)
        else:
            # Ray's processes end with the thread that started them, so it must stay alive.
            begun: Future[None] = Future()

            def stay() -> None:
                try:
                    _init(ray, address, runtime_env)
                except BaseException as error:  # noqa: BLE001 - re-raised in the calling thread
                    begun.set_exception(error)
                else:
                    begun.set_result(None)
                    threading.Event().wait()

            threading.Thread(target=stay, name="agentcore-ray", daemon=True).start()
            begun.result()
    return ray


def _settle_own() -> None:
    """Set the environment variables that Ray reads on import. Ray listens on every interface, so a token is
    required to submit code."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a FutureWarning
    if os.environ.get("RAY_AUTH_MODE"):
        return
    if "ray" in sys.modules:
        if not sys.modules["ray"].is_initialized():
            _logger.warning(
                "Ray was imported without RAY_AUTH_MODE=token: anyone who can reach this machine's ports can "
                "run code on it"
            )
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_same(ray: Any, address: str | None, runtime_env: dict[str, Any] | None) -> None:
    context = ray.get_runtime_context()
    if address and address not in ("auto", "local", context.gcs_address) and "://" not in address:
        raise ConfigurationError(
            f"this process is connected to the Ray cluster at {context.gcs_address}, not {address}: "
            "ray.shutdown() first, or use another process"
        )
    if runtime_env and any(context.runtime_env.get(name) is None for name in runtime_env):
        raise ConfigurationError(
            "runtime_env only takes effect when a process connects to Ray, and this one already has: "
            "ray.shutdown() first, or use another process"
        )


def _init(ray: Any, address: str | None, runtime_env: dict[str, Any] | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": runtime_env or None}
    try:
        if address:
            _probe(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(include_dashboard=False, **quiet)
    except Exception as error:
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise ExecutorError(
            f"{where} can't be reached or started: {first_line(error)}. Check RAY_ADDRESS, or run with "
            "executor='local'"
        ) from error


def _probe(address: str) -> None:
    """Raise `OSError` if nothing listens there: Ray would wait a minute, then kill the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
