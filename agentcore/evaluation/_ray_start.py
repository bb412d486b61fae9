"""Connects this process to a Ray cluster, or starts one on this machine."""

import logging
import os
import secrets
import socket
import sys
import threading
from concurrent.futures import Future
from typing import Any

from agentcore.errors import ConfigurationError, ExecutorError, first_line

_logger = logging.getLogger(__name__)
_PATIENCE = 10.0
_connecting = threading.Lock()


def connect(address: str | None, runtime_env: dict[str, Any] | None = None) -> Any:
    """The connected module `ray`. What is started ends with this process.

    Args:
        address: of the cluster; None takes RAY_ADDRESS, and without one starts Ray on this machine.

    Raises:
        ExecutorError: there is no cluster there, or Ray can't be started.
        ConfigurationError: this process is connected already, to another cluster or without `runtime_env`.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    with _connecting:
        if not address:
            _settle_own()
        import ray

        if ray.is_initialized():
            _check_same(ray, address, runtime_env)
        else:
            # Ray's processes end with the thread that started them: it has to stay.
            begun: Future[None] = Future()

            def stay() -> None:
                try:
                    _init(ray, address, runtime_env)
                except BaseException as error:  # noqa: BLE001 - handed to the one who waits
                    begun.set_exception(error)
                else:
                    begun.set_result(None)
                    threading.Event().wait()

            threading.Thread(target=stay, name="agentcore-ray", daemon=True).start()
            begun.result()
    return ray


def _settle_own() -> None:
    """What Ray reads when it is imported. It listens on every interface: only who has the token may hand it
    code to run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of its own future
    if "RAY_AUTH_MODE" in os.environ:
        return
    if "ray" in sys.modules:
        if not sys.modules["ray"].is_initialized():
            _logger.warning(
                "Ray was imported without RAY_AUTH_MODE=token: who reaches this machine's ports can run code"
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
            "runtime_env counts when a process connects to Ray, and this one is connected already: "
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
    """Raise `OSError` where nobody listens: Ray itself would wait for a minute, then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
