"""The page: agents, their latest evaluations and drift, and what is running. It works without scripts, which
only keep it up to date."""

import asyncio
from collections.abc import AsyncIterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse, Response

from agentcore._version import __version__
from agentcore.api._arms import ArmsReply
from agentcore.api._guard import COOKIE
from agentcore.api._models import OperationReply
from agentcore.api._routes import TheService
from agentcore.api._service import Service
from agentcore.dspy_optimization import STAGES
from agentcore.errors import JournalError, NotFoundError, TrackingError

router = APIRouter()

_LIVE_SECONDS = 1.0
_SHOWN = 15
_templates = Environment(
    loader=PackageLoader("agentcore.api"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def _when(text: str | None) -> str:
    """An ISO time as people read it."""
    if text is None:
        return "–"
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return text


def _outcome(item: OperationReply) -> str:
    """What came of an operation, in a few words. Others may have written its result."""
    result = item.result or {}
    if item.error is not None:
        return item.error[:200]
    if item.status != "completed":
        return ""
    if item.kind == "optimization":
        trials = f", {item.progress.trials} trials" if item.progress is not None else ""
        return f"{result.get('verdict')}{trials}"
    if item.kind == "evaluation":
        metrics = result.get("metrics")
        accuracy = metrics.get("accuracy") if isinstance(metrics, dict) else None
        return f"accuracy {_percent(accuracy if isinstance(accuracy, float) else None)}"
    if item.kind == "drift":
        return "drift" if result.get("has_drift") else "no drift"
    if item.kind == "promotion":
        return "promoted" if result.get("promoted") else "not promoted"
    return f"back to version {str(result.get('version'))[:20]}"


_templates.filters |= {"number": _number, "outcome": _outcome, "percent": _percent, "when": _when}


def _page(name: str, request: Request, status: int = 200, **values: Any) -> Response:
    signed_in = request.app.state.tokens is not None and getattr(request.state, "caller", None) is not None
    text = _templates.get_template(name).render(version=__version__, signed_in=signed_in, **values)
    return HTMLResponse(text, status)


async def _operations(service: Service) -> list[OperationReply]:
    """Those that go on, and the newest others."""
    found = await service.operations.recent(_SHOWN, unfinished=True)
    known = {item.id for item in found}
    found += [item for item in await service.operations.recent(_SHOWN) if item.id not in known]
    return [await service.operations.shown(item) for item in found]


def _fragment(operations: list[OperationReply]) -> str:
    return _templates.get_template("_operations.html").render(operations=operations, stages=STAGES)


@router.get("/")
async def overview(request: Request, service: TheService) -> Response:
    """All agents and operations."""
    operations: list[OperationReply] = []
    error = None
    try:
        operations = await _operations(service)
    except JournalError as failed:
        error = str(failed)
    return _page(
        "overview.html",
        request,
        agents=service.overview.agents(),
        problems={name: item.problem for name, item in service.serving.items()},
        operations=operations,
        stages=STAGES,
        error=error,
    )


@router.get("/agents/{name}")
async def agent(name: str, request: Request, service: TheService) -> Response:
    """One agent: evaluations, drift, history, and its two versions."""
    try:
        view = service.overview.agent(name)
    except NotFoundError as error:
        return _page("message.html", request, 404, title="No such agent", message=str(error))
    arms: ArmsReply | None = None
    if service.agents.get(name).traffic.share > 0:
        try:
            arms = await service.serving_of(name).arms()
        except (NotFoundError, TrackingError, JournalError):
            arms = None
    return _page("agent.html", request, agent=view, arms=arms)


@router.get("/live", response_class=EventSourceResponse)
async def live(service: TheService) -> AsyncIterable[ServerSentEvent]:
    """The table of operations, each time that it changes."""
    before = ""
    while not service.stopping.is_set():
        text = _fragment(await _operations(service))
        if text != before:
            before = text
            yield ServerSentEvent(data=text, event="operations")
        await asyncio.sleep(_LIVE_SECONDS)


@router.get("/login")
async def login(request: Request) -> Response:
    """Asks for a token."""
    if getattr(request.state, "caller", None) is not None:
        return RedirectResponse("/", 303)
    return _page("login.html", request, error=None)


@router.post("/login")
async def sign_in(request: Request) -> Response:
    """Begins a session that only allows reading."""
    given = parse_qs((await request.body()).decode("utf-8", "replace")).get("token", [""])[0].strip()
    tokens = request.app.state.tokens
    session = tokens.session(given) if tokens is not None else None
    if session is None:
        return _page("login.html", request, 401, error="This token is unknown.")
    reply = RedirectResponse("/", 303)
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    reply.set_cookie(COOKIE, session, max_age=12 * 3600, httponly=True, samesite="strict", secure=secure)
    return reply


@router.post("/logout")
async def sign_out() -> Response:
    """Ends the session in this browser."""
    reply = RedirectResponse("/login", 303)
    reply.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return reply
