"""`serve`: the application behind uvicorn."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from agentcore.errors import AddressInUseError

_GRACE_SECONDS = 10
"""How long open connections may take to end after a signal."""


class _Server(uvicorn.Server):
    """Ends with exit code 0 on SIGINT and SIGTERM, and tells the service at once: event streams would
    otherwise keep their connections open."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_stop()
        super().handle_exit(sig, frame)


async def serve(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    reuse_port: bool = False,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGINT or SIGTERM. Operations that run are then left to other replicas, or to the
    next start.

    Args:
        port: 0 for any free one.
        reuse_port: whether other processes may listen on the same port, and share the connections.
        on_ready: called with the address once connections are accepted.

    Raises:
        AddressInUseError: the address can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048, reuse_port=reuse_port)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AddressInUseError(
            f"can't listen on {host}:{port}: {reason}. Choose another port with --port (AGENTCORE_API_PORT)"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    on_ready(f"http://{shown}:{listening.getsockname()[1]}")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # anybody could write them, to be counted as somebody else
        timeout_graceful_shutdown=_GRACE_SECONDS,
        lifespan="on",
    )
    server = _Server(config, app.state.service.stopping.set)
    try:
        await server.serve(sockets=[listening])
    finally:
        listening.close()
