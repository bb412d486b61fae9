"""The routes under `/api/v1`, `/health` and `/ready`."""

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response, Security
from fastapi.security import HTTPBearer
from fastapi.sse import EventSourceResponse, ServerSentEvent

from agentcore._threads import run_in_thread
from agentcore.api._arms import ArmsReply
from agentcore.api._carry_out import optimization_request
from agentcore.api._events import Kind
from agentcore.api._models import (
    ChampionReply,
    DriftRequest,
    EvaluateRequest,
    FeedbackRequest,
    OperationReply,
    OptimizeRequest,
    PredictReply,
    PredictRequest,
    Problem,
    PromoteRequest,
    ReadyReply,
    RollbackRequest,
)
from agentcore.api._operations import Operation
from agentcore.api._overview import champion_of
from agentcore.api._service import Service
from agentcore.api._tokens import Caller, Role
from agentcore.dspy_optimization.optimizers import make_optimizer
from agentcore.errors import DataError, NotFoundError
from agentcore.registry import Registry

_LONGEST_WAIT = 300.0
_POLL = 0.5
_bearer = HTTPBearer(auto_error=False, description="One of AGENTCORE_API_TOKENS.")

Errors = dict[int | str, dict[str, Any]]


def _errors(*more: int) -> Errors:
    """The errors that a route answers with, for the OpenAPI document."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    told = {
        400: "The body isn't JSON.",
        401: "No token, or an unknown one.",
        403: "The token's role doesn't allow it.",
        404: "There is no such agent, data set, version or operation.",
        408: "The body took too long to arrive.",
        409: "It has already ended, or the key was used for another request.",
        413: "The body is too large.",
        415: "The body isn't JSON, or isn't said to be.",
        422: "A field is wrong; the detail says which.",
        429: "Too many requests: try again after Retry-After seconds.",
        503: "MLflow, the journal or the language model can't be reached.",
        504: "The program took too long.",
    }
    every = (400, 401, 403, 408, 413, 415, 422, 429, 503)
    return {code: {"description": told[code], "content": content} for code in sorted({*every, *more})}


_AWAITED: Errors = {202: {"model": OperationReply, "description": "Not finished yet."}, **_errors(404, 409)}


def service_of(request: Request) -> Service:
    """The service of the server that answers a request."""
    found: Service = request.app.state.service
    return found


def needs(role: Role) -> Callable[..., Caller]:
    """The caller, who must have a role."""

    def checked(request: Request, _: Annotated[Any, Security(_bearer)] = None) -> Caller:
        caller: Caller = request.state.caller
        if caller.role < role:
            raise HTTPException(
                403, f"token {caller.name!r} has the role {caller.role.name}: this needs {role.name}"
            )
        return caller

    return checked


TheService = Annotated[Service, Depends(service_of)]
Reader = Annotated[Caller, Depends(needs(Role.read))]
Runner = Annotated[Caller, Depends(needs(Role.run))]
Promoter = Annotated[Caller, Depends(needs(Role.promote))]
Wait = Annotated[
    float,
    Query(ge=0, le=_LONGEST_WAIT, description="Seconds to wait for the result; then the reply is 202."),
]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="A repeated request with the same key returns the operation of the first one.",
    ),
]

router = APIRouter()
api = APIRouter(prefix="/api/v1")


@router.get("/health", tags=["state"], responses={503: {"description": "Restart the server."}})
async def health(response: Response, service: TheService) -> dict[str, str]:
    """Whether the server is alive; if it isn't, restart it."""
    if service.failed:
        response.status_code = 503
        return {"status": "failed"}
    return {"status": "ok"}


@router.get("/ready", tags=["state"], responses={503: {"model": ReadyReply}})
async def ready(request: Request, response: Response, service: TheService) -> ReadyReply:
    """Whether the tracking server, its database, the artifact store and the journal can be reached.

    The messages are shown to those who have a token."""
    found = await service.readiness()
    if not found.ready:
        response.status_code = 503
    if getattr(request.state, "caller", None) is None:
        checks = [item.model_copy(update={"message": ""}) for item in found.checks]
        return found.model_copy(update={"checks": checks})
    return found


# Operations


@api.post(
    "/optimizations",
    status_code=202,
    tags=["optimizations"],
    responses=_errors(404, 409),
)
async def optimize(
    body: OptimizeRequest, caller: Runner, service: TheService, key: Key = None
) -> OperationReply:
    """Optimize an agent's program on a data set. If a replica dies, another continues."""
    entry = service.agents.get(body.agent)
    asked = optimization_request(body.agent, entry, body)
    for name in body.algorithms:
        settings = asked["optimizer_settings"].get(name)
        await run_in_thread(lambda name=name, settings=settings: make_optimizer(name, settings))  # type: ignore[misc]
    await _check_data(service, body.agent, body.dataset_name)
    return await _requested(service, "optimization", body.agent, body, caller, key)


@api.post(
    "/{agent}/evaluate_dataset",
    tags=["agents"],
    responses=_AWAITED,
)
async def evaluate_dataset(
    agent: str,
    body: EvaluateRequest,
    response: Response,
    caller: Runner,
    service: TheService,
    wait: Wait = 60,
    key: Key = None,
) -> OperationReply:
    """Evaluate an agent on a data set; the run goes to its evaluation experiment."""
    await _check_data(service, agent, body.dataset_name, body.target_field)
    await _check_agent(service, agent)
    operation = await _requested(service, "evaluation", agent, body, caller, key)
    return await _awaited(service, operation, wait, response)


@api.post(
    "/{agent}/detect_drift",
    tags=["agents"],
    responses=_AWAITED,
)
async def detect_drift(
    agent: str,
    body: DriftRequest,
    response: Response,
    caller: Runner,
    service: TheService,
    wait: Wait = 60,
    key: Key = None,
) -> OperationReply:
    """Compare an agent on current data with a baseline."""
    for name in (body.baseline_dataset, body.current_dataset):
        await _check_data(service, agent, name, body.target_field)
    await _check_agent(service, agent)
    operation = await _requested(service, "drift", agent, body, caller, key)
    return await _awaited(service, operation, wait, response)


@api.post(
    "/{agent}/promote",
    tags=["agents"],
    responses=_AWAITED,
)
async def promote(
    agent: str,
    body: PromoteRequest,
    response: Response,
    caller: Promoter,
    service: TheService,
    wait: Wait = 60,
    key: Key = None,
) -> OperationReply:
    """Move an alias to a run's program if it passes the gate: `result.promoted` says whether it did."""
    operation = await _requested(service, "promotion", agent, body, caller, key)
    return await _awaited(service, operation, wait, response)


@api.post(
    "/{agent}/rollback",
    tags=["agents"],
    responses=_AWAITED,
)
async def rollback(
    agent: str,
    body: RollbackRequest,
    response: Response,
    caller: Promoter,
    service: TheService,
    wait: Wait = 60,
    key: Key = None,
) -> OperationReply:
    """Move `champion` back to an earlier champion."""
    operation = await _requested(service, "rollback", agent, body, caller, key)
    return await _awaited(service, operation, wait, response)


@api.get("/operations", tags=["operations"], responses=_errors())
async def operations(
    caller: Reader,
    service: TheService,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
    unfinished: Annotated[bool, Query(description="Only those that have not ended.")] = False,
) -> list[OperationReply]:
    """The newest operations, newest first."""
    found = await service.operations.recent(limit, unfinished=unfinished)
    return [await service.operations.shown(item) for item in found]


@api.get("/optimizations", tags=["optimizations"], responses=_errors())
async def optimizations(
    caller: Reader, service: TheService, limit: Annotated[int, Query(ge=1, le=200)] = 20
) -> list[OperationReply]:
    """The newest optimizations, newest first."""
    recent = await service.operations.recent(200)
    found = [item for item in recent if item.requested.operation == "optimization"]
    return [await service.operations.shown(item) for item in found[:limit]]


async def _operation(request: Request, operation_id: str, service: TheService) -> Operation:
    found = await service.operations.get(operation_id)
    if "/optimizations/" in request.url.path and found.requested.operation != "optimization":
        raise NotFoundError(f"operation {operation_id} is not an optimization: {found.requested.operation}")
    return found


TheOperation = Annotated[Operation, Depends(_operation)]


async def show(operation: TheOperation, caller: Reader, service: TheService) -> OperationReply:
    """How far it is, and its result."""
    return await service.operations.shown(operation)


async def cancel(operation: TheOperation, caller: Runner, service: TheService) -> OperationReply:
    """Stop it. What an optimization has found so far stays in its run."""
    if operation.requested.operation in ("promotion", "rollback") and caller.role < Role.promote:
        raise HTTPException(403, f"token {caller.name!r} can't cancel it: that needs the role promote")
    found = await service.operations.cancel(operation, caller.name)
    service.worker.wake()
    return await service.operations.shown(found)


async def events(
    operation: TheOperation, caller: Reader, service: TheService
) -> AsyncIterable[ServerSentEvent]:
    """The operation each time that it changes, as server-sent events named `operation`; the last one is
    named `end`."""
    before = None
    while not service.stopping.is_set():
        found = await service.operations.get(operation.id)
        shown = await service.operations.shown(found)
        if shown != before:
            before = shown
            yield ServerSentEvent(data=shown, event="end" if shown.ended else "operation")
        if shown.ended:
            return
        await asyncio.sleep(_POLL)


for _prefix, _tag in (("/optimizations", "optimizations"), ("/operations", "operations")):
    _path = f"{_prefix}/{{operation_id}}"
    api.get(_path, tags=[_tag], responses=_errors(404), name=f"show_{_tag}")(show)
    api.get(
        f"{_path}/events",
        tags=[_tag],
        responses=_errors(404),
        response_class=EventSourceResponse,
        name=f"events_{_tag}",
    )(events)
    api.post(
        f"{_path}/cancel", status_code=202, tags=[_tag], responses=_errors(404, 409), name=f"cancel_{_tag}"
    )(cancel)


# Serving


@api.post("/{agent}/predict", tags=["agents"], responses=_errors(404, 504))
async def predict(agent: str, body: PredictRequest, caller: Runner, service: TheService) -> PredictReply:
    """Ask the version in production, or for a share of the keys its challenger."""
    return await service.serving_of(agent).predict(body)


@api.post("/{agent}/feedback", status_code=204, tags=["agents"], responses=_errors(404))
async def feedback(agent: str, body: FeedbackRequest, caller: Runner, service: TheService) -> None:
    """Say how good an answer was."""
    await service.serving_of(agent).rate(body)


@api.get("/{agent}/arms", tags=["agents"], responses=_errors(404))
async def arms(agent: str, caller: Reader, service: TheService) -> ArmsReply:
    """The version in production and its challenger: what each has answered, and what that proves."""
    return await service.serving_of(agent).arms()


@api.get("/{agent}/champion", tags=["agents"], responses=_errors(404))
async def champion(agent: str, caller: Reader, service: TheService) -> ChampionReply:
    """The version in production."""
    serving = service.serving_of(agent)
    found = await champion_of(Registry(agent, service.config))
    return found.model_copy(update={"serving": serving.serving()})


# How


async def _check_data(service: Service, agent: str, dataset: str, target: str | None = None) -> None:
    found = await run_in_thread(lambda: service.where.dataset(agent, dataset))
    if target is not None and target not in found.fields:
        raise DataError(f"{found.full_name} has no field {target!r}; it has {', '.join(found.fields)}")


async def _check_agent(service: Service, agent: str) -> None:
    """Raise `NotFoundError` if what is to be evaluated is the champion, and there is none."""
    if service.agents.get(agent).func is None:
        await service.serving_of(agent).champion()


async def _requested(
    service: Service, kind: Kind, agent: str, body: Any, caller: Caller, key: str | None
) -> OperationReply:
    service.agents.get(agent)
    content = body.model_dump(mode="json")
    found = await service.operations.request(kind, agent, content, caller.name, key)
    service.worker.wake()
    return await service.operations.shown(found)


async def _awaited(
    service: Service, operation: OperationReply, seconds: float, response: Response
) -> OperationReply:
    """The operation once it has ended, or as it is after so many seconds."""
    end = asyncio.get_running_loop().time() + seconds
    while not operation.ended and not service.stopping.is_set():
        left = end - asyncio.get_running_loop().time()
        if left <= 0:
            break
        await asyncio.sleep(min(_POLL / 2, left))
        operation = await service.operations.shown(await service.operations.get(operation.id))
    if not operation.ended:
        response.status_code = 202
    response.headers["Location"] = f"/api/v1/operations/{operation.id}"
    return operation
