"""Accepts a reply only if it is MLflow's own.

An identity proxy answers an upload with a redirect to its sign-in page, and the page with status 200:
MLflow's client would take that for success. A small compressed reply can also become gigabytes."""

import json
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import requests

from agentcore import _process

NOT_MLFLOW = "did not come from MLflow"
"""Marks these errors: MLflow's client raises its own, with the text of ours."""
_API = ("/api/", "/ajax-api/")
_MAX_API_BYTES = 128 * 2**20
_CHUNK = 2**16
_ADVICE = (
    "A proxy or a sign-in page in front of it may have answered: check MLFLOW_TRACKING_URI, the credentials "
    "and the proxy"
)


class ForeignReplyError(requests.RequestException):
    """A reply that is not MLflow's, or too large."""


def check_reply(reply: requests.Response, *_: Any, **how: Any) -> requests.Response:
    """A response hook of requests: reads a reply up to a limit, and raises `ForeignReplyError` unless it is
    MLflow's."""
    request = reply.request
    method = (request.method or "GET").upper()
    if reply.is_redirect:
        if method not in ("GET", "HEAD"):
            raise ForeignReplyError(
                f"the reply to {method} {_place(reply)} {NOT_MLFLOW}: it redirects elsewhere. {_ADVICE}"
            )
        return reply
    if how.get("stream"):
        _bound_stream(reply)
        return reply
    _read(reply, _MAX_API_BYTES)
    # MLflow answers an upload with nothing; whether the store has it is checked after it.
    silent = method == "PUT" and not reply.content
    speaks = reply.ok and method != "HEAD" and _speaks_json(reply, method)
    if speaks and not (silent or _is_object(reply.content)):
        kind = reply.headers.get("Content-Type", "without a content type") if reply.content else "empty"
        raise ForeignReplyError(
            f"the reply to {method} {_place(reply)} {NOT_MLFLOW}: it is {kind}. {_ADVICE}"
        )
    return reply


def is_mlflows(reply: requests.Response) -> bool:
    """Whether an error reply is MLflow's own, with an error code."""
    try:
        return isinstance(reply.json(), dict) and "error_code" in reply.json()
    except ValueError:
        return False


def _speaks_json(reply: requests.Response, method: str) -> bool:
    """Whether MLflow answers this request with a JSON object: all but downloads and plain pages."""
    path = urlsplit(reply.url).path
    if not any(part in path for part in _API):
        return False
    return method != "GET" or not ("/mlflow-artifacts/artifacts/" in path or "get-artifact" in path)


def _is_object(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


def _read(reply: requests.Response, limit: int) -> None:
    chunks, size = [], 0
    for chunk in reply.iter_content(_CHUNK):
        size += len(chunk)
        if size > limit:
            reply.close()
            raise ForeignReplyError(_too_large(reply, limit))
        chunks.append(chunk)
    reply._content = b"".join(chunks)


def _bound_stream(reply: requests.Response) -> None:
    """Limit what a download may become once it is decompressed."""
    limit, plain = _process.max_download_bytes, cast("Callable[..., Any]", reply.iter_content)

    def bounded(chunk_size: int | None = 1, decode_unicode: bool = False) -> Any:
        size = 0
        for chunk in plain(chunk_size, decode_unicode):
            size += len(chunk)
            if size > limit:
                reply.close()
                raise ForeignReplyError(
                    _too_large(reply, limit) + ": set AGENTCORE_MAX_ARTIFACT_MB to allow it"
                )
            yield chunk

    reply.iter_content = bounded  # type: ignore[method-assign]


def _too_large(reply: requests.Response, limit: int) -> str:
    return f"the reply to {_place(reply)} is over {limit / 2**20:.0f} MiB: it is too large, or {NOT_MLFLOW}"


def _place(reply: requests.Response) -> str:
    return str(urlsplit(reply.url).path)
