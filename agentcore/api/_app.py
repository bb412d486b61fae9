"""`create_app`: the FastAPI application."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from agentcore._version import __version__
from agentcore.api import _pages, _routes
from agentcore.api._agents import Agents, read_agents
from agentcore.api._guard import Guard, is_loopback, problem
from agentcore.api._service import Service
from agentcore.api._tokens import Tokens
from agentcore.errors import (
    AgentCoreError,
    ArtifactError,
    ConfigurationError,
    ConflictError,
    DataError,
    NotFoundError,
    PredictionError,
    TooBusyError,
)
from agentcore.settings import ApiSettings, MLflowConfig

_logger = logging.getLogger("agentcore")

_SHOWN = 10

_DESCRIPTION = """Evaluate, optimize, promote and serve the agents that `agents.toml` lists.

Send `Authorization: Bearer TOKEN`. The role of the token says what it allows: `read` to see, `run` to
predict, evaluate and optimize, `promote` to move aliases as well. Errors are `application/problem+json` (RFC
9457).

What takes longer than a request is an *operation*: it is recorded before the reply, carried out once by
whichever replica is free, and continued by another one if that replica dies."""


def create_app(
    agents: str | Path | Mapping[str, Any] | Agents = "agents.toml",
    *,
    config: MLflowConfig | None = None,
    settings: ApiSettings | None = None,
    tokens: Tokens | None = None,
    open_to_all: bool = False,
) -> FastAPI:
    """The HTTP API and its page, for any ASGI server; `agentcore serve` runs it with uvicorn.

    Args:
        agents: what requests may use: a TOML file, or its content.
        config: the MLflow server; default: from the environment.
        settings: default: from the environment (`AGENTCORE_API_…`).
        tokens: who may do what; default: `AGENTCORE_API_TOKENS`.
        open_to_all: ask nobody for a token; only for an address that nobody else reaches.

    Raises:
        ConfigurationError: the file or a setting is wrong, or there are no tokens.
    """
    settings = settings or ApiSettings()
    if open_to_all and not is_loopback(settings.host):
        raise ConfigurationError(
            f"everybody who reaches {settings.host} could move aliases and spend your budget: set "
            "AGENTCORE_API_TOKENS, or listen on 127.0.0.1"
        )
    if tokens is None and not open_to_all:
        if settings.tokens is None:
            raise ConfigurationError(
                "AGENTCORE_API_TOKENS is not set: give name:role:token, such as "
                "ci:run:$(openssl rand -hex 24)"
            )
        tokens = Tokens.parse(settings.tokens)
    service = Service(read_agents(agents), config or MLflowConfig(), settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="AgentCore",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # it would load its scripts from a CDN
        redoc_url=None,
    )
    app.state.service = service
    app.state.tokens = tokens
    app.include_router(_routes.router)
    app.include_router(_routes.api)
    app.include_router(_pages.router, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=str(resources.files("agentcore.api") / "static")))
    app.add_exception_handler(AgentCoreError, _known)
    app.add_exception_handler(TimeoutError, _too_slow)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unknown)
    app.add_middleware(Guard, tokens=tokens, settings=settings)
    return app


_STATUSES: tuple[tuple[type[AgentCoreError], int, str], ...] = (
    (NotFoundError, 404, "Not Found"),
    (ConflictError, 409, "Conflict"),
    (TooBusyError, 429, "Too Many Requests"),
    (ConfigurationError, 422, "Unprocessable Content"),
    (DataError, 422, "Unprocessable Content"),
    (PredictionError, 500, "Internal Server Error"),
    (ArtifactError, 500, "Internal Server Error"),
    (AgentCoreError, 503, "Service Unavailable"),
)


async def _known(request: Request, error: Exception) -> Response:
    _, status, title = next(item for item in _STATUSES if isinstance(error, item[0]))
    if status >= 500:
        _logger.warning("%s %s: %s", request.method, request.url.path, error)
    retry = {"Retry-After": "5"} if status in (429, 503) else None
    return problem(status, title, str(error), retry)


async def _too_slow(request: Request, error: Exception) -> Response:
    return problem(504, "Gateway Timeout", str(error) or "it took too long")


async def _invalid(request: Request, error: Exception) -> Response:
    """What is wrong with a request, without repeating what was sent."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    told = []
    for item in found[:_SHOWN]:
        where = item["loc"][1:] if item["loc"][:1] == ("body",) else item["loc"]
        if item["type"] == "json_invalid":
            reason = item.get("ctx", {}).get("error")
            told.append(f"the body is not JSON: {reason}, at character {where[-1]}")
        elif not where:
            told.append("send a JSON body" if item["type"] == "missing" else str(item["msg"]))
        else:
            told.append(f"{'.'.join(str(part)[:60] for part in where)}: {item['msg']}")
    if len(found) > _SHOWN:
        told.append(f"and {len(found) - _SHOWN} more")
    return problem(422, "Unprocessable Content", "; ".join(told))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    from http import HTTPStatus

    headers = dict(error.headers) if error.headers else None
    return problem(error.status_code, HTTPStatus(error.status_code).phrase, error.detail, headers)


async def _unknown(request: Request, error: Exception) -> Response:
    return problem(500, "Internal Server Error", "unexpected error: see the server's log")
