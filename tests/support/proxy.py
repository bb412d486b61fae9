"""An HTTP proxy before MLflow that makes it slow, mute or forgetful, and counts what passes."""

import http.client
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Fault = Callable[[str, str], str | None]
"""Of method and path: `lose` the reply, `hang`, `drop` the request, answer `pool` (MLflow's HTTP 400 for its
own exhausted pool), redirect to a `signin` page as an identity proxy does, answer with its `page`, with
`nothing`, with a small reply that is a `bomb` once it is decompressed, or with a status such as `503`; None
passes it on."""

BOMB = 300 * 2**20
"""Bytes of a bomb."""
_POOL = (
    b'{"error_code": "BAD_REQUEST", "message": "QueuePool limit of size 5 overflow 10 reached, connection '
    b'timed out, timeout 30.00 (Background on this error at: https://sqlalche.me/e/21/3o7r)"}'
)


@cache
def bomb() -> bytes:
    """300 MiB of spaces, compressed piece by piece."""
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(b" " * 2**20) for _ in range(BOMB // 2**20)]
    return b"".join([*parts, packer.flush()])


class Proxy(ThreadingHTTPServer):
    """Forwards to `target`. `latency` is in seconds per request."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self.target = (parts.hostname or "", parts.port or 80)
        self.latency = 0.0
        self.fault: Fault = lambda method, path: None
        self.seen: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that gave up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *arguments: object) -> None:
        pass

    def do_request(self) -> None:
        proxy = self.server
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = urlsplit(self.path).path
        with proxy.lock:
            proxy.seen[path.rpartition("/mlflow/")[2] or path] += 1
            proxy.in_flight += 1
            proxy.most_in_flight = max(proxy.most_in_flight, proxy.in_flight)
            fault = proxy.fault(self.command, path)
        try:
            self.forward(fault, body)
        finally:
            with proxy.lock:
                proxy.in_flight -= 1

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_request

    def forward(self, fault: str | None, body: bytes) -> None:
        proxy = self.server
        if fault == "hang":
            proxy.released.wait()
        if fault in ("hang", "drop"):
            self.hang_up()
            return
        if fault == "pool":
            self.reply(400, {}, _POOL)
            return
        if fault == "signin":
            self.reply(302, {"Location": f"{proxy.url}/signin"}, b"")
            return
        if fault == "page" or self.path.startswith("/signin"):
            self.reply(200, {"Content-Type": "text/html"}, b"<!doctype html><title>Sign in</title>")
            return
        if fault == "nothing":
            self.reply(200, {"Content-Type": "application/json"}, b"")
            return
        if fault == "bomb":
            headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
            self.reply(200, headers, bomb())
            return
        if fault and fault.isdigit():
            self.reply(int(fault), {}, b"{}")
            return
        time.sleep(proxy.latency)
        connection = http.client.HTTPConnection(*proxy.target, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "lose":
            self.hang_up()
            return
        self.reply(answer.status, dict(answer.getheaders()), content)

    def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()
