"""Everything between a socket and the routes: hosts, tokens, rates, sizes, time-outs, headers."""

import asyncio
import contextlib
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentcore.api._tokens import Caller, Role, Tokens
from agentcore.settings import ApiSettings

COOKIE = "agentcore_session"
_PUBLIC = ("/health", "/ready", "/login", "/logout")
_DIGITS = 18
_BODY_SECONDS = 30.0
"""How long a client may take to send a body."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SAFE = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """An error, after RFC 9457."""
    content = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return JSONResponse(content, status, headers=headers, media_type="application/problem+json")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host in _LOOPBACK or host.startswith("127.")


class Guard:
    """Lets through what may come in. A caller's name and role are in `request.state.caller`.

    Args:
        tokens: who may do what; None: anybody, anything.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens | None, settings: ApiSettings) -> None:
        self.app = app
        self.tokens = tokens
        self.largest = round(settings.max_body_mb * 2**20)
        self._hosts = {name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip()}
        if self._hosts or is_loopback(settings.host):
            self._hosts |= set(_LOOPBACK)
        self._rate = RateLimitItemPerMinute(settings.rate)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if not scope["path"].startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refused(scope, Headers(scope=scope))
        if refused is not None:
            await refused(scope, receive, answer)
            return
        await self.app(scope, self._bounded(scope, receive), answer)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        path, method = scope["path"], scope["method"]
        if self._hosts and _host_in(headers) not in self._hosts:
            return problem(421, "Misdirected Request", "this host name isn't in AGENTCORE_API_ALLOWED_HOSTS")
        if method not in _SAFE and _of_another_page(headers):
            return problem(403, "Forbidden", "a page of another origin sent this request")
        caller = self._caller(scope, headers)
        scope.setdefault("state", {})["caller"] = caller
        who = f"token {caller.name}" if caller is not None else f"address {(scope.get('client') or ('',))[0]}"
        if path != "/health" and not self._limiter.hit(self._rate, who):
            reset = self._limiter.get_window_stats(self._rate, who).reset_time
            wait = str(max(1, round(reset - time.time())))
            return problem(
                429,
                "Too Many Requests",
                f"more than {self._rate.amount} requests a minute: try again in {wait} s",
                {"Retry-After": wait},
            )
        if caller is None and path not in _PUBLIC and not path.startswith("/static/"):
            if path == "/" or path.startswith("/agents/"):
                return RedirectResponse("/login", 303)
            why = "send the header Authorization: Bearer TOKEN, with one of AGENTCORE_API_TOKENS"
            if headers.get("authorization", "").lower().startswith("bearer "):
                why = "this token is unknown: AGENTCORE_API_TOKENS of the server has the known ones"
            return problem(401, "Unauthorized", why, {"WWW-Authenticate": "Bearer"})
        if path.startswith("/api/") and method == "POST" and not _is_json(headers):
            why = "send the body as JSON, with the header Content-Type: application/json"
            return problem(415, "Unsupported Media Type", why)
        return self._too_large(headers.get("content-length"))

    def _caller(self, scope: Scope, headers: Headers) -> Caller | None:
        if self.tokens is None:
            return Caller("anybody", Role.promote)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return self.tokens.caller(token.strip())
        if scope["method"] in _SAFE and not scope["path"].startswith("/api/"):
            with contextlib.suppress(CookieError):
                cookies: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
                if COOKIE in cookies:
                    return self.tokens.caller_of_session(cookies[COOKIE].value)
        return None

    def _too_large(self, length: str | None) -> Response | None:
        digits = (length or "0").lstrip("0")
        if len(digits) < _DIGITS and (not digits.isdigit() or int(digits) <= self.largest):
            return None
        return problem(413, "Content Too Large", self._limit())

    def _limit(self) -> str:
        return f"a body may have at most {self.largest:,} bytes (AGENTCORE_API_MAX_BODY_MB)"

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, with a limit for the body's size and for the time that it takes."""
        received, deadline, complete = 0, time.monotonic() + _BODY_SECONDS, False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:  # only a disconnect can follow
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {_BODY_SECONDS:g} s") from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.largest:
                raise HTTPException(413, self._limit())
            return message

        return bounded


def _is_json(headers: Headers) -> bool:
    """Whether there is no body, or it is said to be JSON: a page's form can't say so."""
    kind = headers.get("content-type")
    if kind is None:
        return headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    return kind.partition(";")[0].strip().lower() == "application/json"


def _host_in(headers: Headers) -> str:
    """The host name that the client asked for, without its port."""
    try:
        return (urlsplit(f"//{headers.get('host', '')}").hostname or "").lower()
    except ValueError:
        return ""


def _of_another_page(headers: Headers) -> bool:
    """Whether a browser says that a page of another origin sent the request."""
    site: Any = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True
