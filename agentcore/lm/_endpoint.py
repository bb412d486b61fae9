"""Where a model's calls go, without secrets."""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dspy.clients import execution

_ADDRESSES = ("api_base", "base_url")
_BY_SERVER = "agentcore_endpoint"


def endpoint_of(lm: Any, kwargs: Mapping[str, Any] | None = None) -> str | None:
    """The address that a call, a model or the environment names, without user, password and query; None if
    it is the provider's own."""
    given = {**(getattr(lm, "kwargs", None) or {}), **(kwargs or {})}
    for name in _ADDRESSES:
        if given.get(name):
            return _bare(str(given[name]))
    provider = re.sub(r"\W", "_", str(getattr(lm, "model", "")).partition("/")[0].upper())
    for name in ("API_BASE", "BASE_URL"):
        if value := os.environ.get(f"{provider}_{name}"):
            return _bare(value)
    return None


def described(lm: Any) -> str:
    """A model's name, and where its calls go unless that is the provider's own address."""
    endpoint = endpoint_of(lm)
    return f"{lm.model} at {endpoint}" if endpoint else str(lm.model)


def _bare(address: str) -> str:
    try:
        parts = urlsplit(address.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(not an address)"
    host = f"[{host}]" if ":" in host else host
    where = f"{host}:{port}" if port else host
    return f"{parts.scheme}://{where}{parts.path}".rstrip("/") if parts.scheme else where or parts.path


@dataclasses.dataclass
class _OfOneServer(execution.PreparedCall):  # type: ignore[misc,unused-ignore]
    """A call that is cached per server: DSPy's own cache key could return another server's answer."""

    endpoint: str = ""

    def key(self, lm: Any, asynchronous: bool) -> dict[str, Any]:
        return {**super().key(lm, asynchronous), _BY_SERVER: self.endpoint}


def of_one_server(lm: Any, call: Any) -> Any:
    """The call, cached under its server's address if it isn't the provider's own."""
    endpoint = endpoint_of(lm, call.kwargs) if call.cache and call.managed else None
    if endpoint is None or isinstance(call, _OfOneServer):
        return call
    fields = {item.name: getattr(call, item.name) for item in dataclasses.fields(call)}
    return _OfOneServer(**fields, endpoint=endpoint)
