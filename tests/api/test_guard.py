"""What gets in: tokens, roles, hosts, origins, sizes, rates."""

import asyncio
import logging

import httpx
import pytest
from pydantic import SecretStr

from agentcore.api import Role, Tokens, create_app
from agentcore.errors import ConfigurationError
from agentcore.settings import ApiSettings
from tests.api.conftest import PROMOTE, READ, RUN, TOKENS, by, entry, running

EVALUATE = {"dataset_name": "colours"}
FUNCTION = {"colour": entry(func="tests.api.engines:shade")}
PATHS = [
    ("GET", "/api/v1/operations"),
    ("GET", "/api/v1/colour/champion"),
    ("GET", "/api/v1/colour/arms"),
    ("GET", f"/api/v1/optimizations/{'0' * 32}/events"),
    ("POST", "/api/v1/optimizations"),
    ("POST", "/api/v1/colour/predict"),
    ("POST", "/api/v1/colour/evaluate_dataset"),
    ("GET", "/openapi.json"),
    ("GET", "/live"),
    ("GET", "/nowhere"),
]


@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer ", "Bearer x", f"Basic {RUN}", f"Bearer {RUN}x", RUN]
)
async def test_without_a_token_nothing_answers(config, data, sent):
    async with running(config, token=None) as client:
        for method, path in PATHS:
            reply = await client.request(
                method, path, headers={} if sent is None else {"Authorization": sent}
            )
            assert reply.status_code == 401, path
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.headers["content-type"] == "application/problem+json"
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/ready")).status_code == 200


async def test_roles(config, data):
    async with running(config, FUNCTION, token=READ) as client:
        for path, body in (
            ("optimizations", {"agent": "colour", "dataset_name": "colours"}),
            ("colour/evaluate_dataset", EVALUATE),
            ("colour/predict", {"inputs": {"thing": "leaf"}}),
            ("colour/promote", {}),
            ("colour/rollback", {}),
        ):
            reply = await client.post(f"/api/v1/{path}", json=body)
            assert reply.status_code == 403, path
            assert "'eye' has the role read" in reply.json()["detail"]
        assert (await client.get("/api/v1/operations")).status_code == 200
        reply = await client.post("/api/v1/colour/promote", json={}, headers=by(RUN))
        assert "this needs promote" in reply.json()["detail"]
        # PROMOTE includes the other two.
        reply = await client.post(
            "/api/v1/colour/evaluate_dataset?wait=0", json=EVALUATE, headers=by(PROMOTE)
        )
        assert reply.status_code == 202


async def test_a_session_only_reads(config, data):
    async with running(config, token=None) as client:
        assert (await client.get("/")).headers["location"] == "/login"
        assert (await client.post("/login", data={"token": "wrong"})).status_code == 401
        reply = await client.post("/login", data={"token": PROMOTE})
        cookie = reply.headers["set-cookie"]
        assert reply.status_code == 303
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert PROMOTE not in cookie
        assert (await client.get("/")).status_code == 200
        for method, path in PATHS[:-3]:
            assert (await client.request(method, path)).status_code == 401, path
        await client.post("/logout")
        assert (await client.get("/")).status_code == 303


def test_sessions_expire_and_cannot_be_made_up(monkeypatch):
    tokens = Tokens.parse(SecretStr(TOKENS))
    session = tokens.session(PROMOTE)
    assert tokens.caller_of_session(session).role == Role.read
    expires, _, sign = session.partition(".")
    for made_up in (
        f"{int(expires) + 1}.{sign}",
        f"{expires}.{'0' * 64}",
        "",
        ".",
        "x.y",
        f"{'9' * 400}.{sign}",
        "é.é",
    ):
        assert tokens.caller_of_session(made_up) is None
    monkeypatch.setattr("time.time", lambda: int(expires) + 1)
    assert tokens.caller_of_session(session) is None
    assert tokens.session("wrong") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ci:run:short", "at least 16"),
        ("ci:admin:0123456789abcdef", "name:role:token"),
        ("0123456789abcdef", "name:role:token"),
        (f"a:run:{RUN},b:read:{RUN}", "the same"),
        (f"a b:run:{RUN}", "name:role:token"),
        ("ci:run:éééééééééééééééééé", "ASCII"),
    ],
)
def test_wrong_tokens_are_told_without_showing_them(text, told):
    with pytest.raises(ConfigurationError, match=told) as error:
        Tokens.parse(SecretStr(text))
    assert text.rpartition(":")[2] not in str(error.value)


def test_nobody_else_reaches_an_open_api(config):
    agents = {"agents": {"colour": entry()}}
    with pytest.raises(ConfigurationError, match="everybody who reaches"):
        create_app(agents, config=config, settings=ApiSettings(host="0.0.0.0"), open_to_all=True)
    with pytest.raises(ConfigurationError, match="AGENTCORE_API_TOKENS is not set"):
        create_app(agents, config=config, settings=ApiSettings())


async def test_large_bodies(config, data):
    async with running(config, max_body_mb=1) as client:
        body = b'{"inputs": {"thing": "' + b"x" * 2**20 + b'"}}'
        reply = await client.post("/api/v1/colour/predict", content=body)
        assert reply.status_code == 413

        async def chunks():
            for _ in range(20):
                yield b"x" * 100_000

        reply = await client.post("/api/v1/colour/predict", content=chunks())  # without a length
        assert reply.status_code == 413
        assert "AGENTCORE_API_MAX_BODY_MB" in reply.json()["detail"]
        reply = await client.post("/login", content=body)
        assert reply.status_code == 413


async def test_slow_bodies(config, data, monkeypatch):
    monkeypatch.setattr("agentcore.api._guard._BODY_SECONDS", 0.2)

    async def dripping():
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    async with running(config) as client:
        reply = await client.post("/api/v1/colour/predict", content=dripping())
        assert reply.status_code == 408


async def test_rates(config, data):
    async with running(config, rate=20) as client:
        codes = [(await client.get("/api/v1/operations")).status_code for _ in range(25)]
        assert codes == [200] * 20 + [429] * 5
        reply = await client.get("/api/v1/operations")
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert (await client.get("/api/v1/operations", headers=by(READ))).status_code == 200
        assert (await client.get("/health")).status_code == 200
        # Guessing tokens is limited too.
        codes = [(await client.get("/api/v1/operations", headers=by(str(n)))).status_code for n in range(25)]
        assert codes[-1] == 429


async def test_hosts_and_origins(config, data):
    async with running(config, FUNCTION, allowed_hosts="agents.example.com") as client:
        for host, code in (
            ("agents.example.com", 200),
            ("AGENTS.example.com:8000", 200),
            ("localhost:8000", 200),
            ("[::1]:8000", 200),
            ("evil.example", 421),
            ("agents.example.com.evil.example", 421),
            ("", 421),
            ("[", 421),
        ):
            reply = await client.get("/api/v1/operations", headers={"Host": host})
            assert reply.status_code == code, host
        for headers in (
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
        ):
            reply = await client.post(
                "/api/v1/colour/evaluate_dataset?wait=0", json=EVALUATE, headers=headers
            )
            assert reply.status_code == 403, headers
        reply = await client.post(
            "/api/v1/colour/evaluate_dataset?wait=0", json=EVALUATE, headers={"Origin": "http://127.0.0.1"}
        )
        assert reply.status_code == 202


async def test_pages_of_others_cannot_use_an_open_api(config, data):
    """Without tokens, a page that the user visits must not reach the API: not by a name of its own that
    resolves to this machine, not by a form."""
    app = create_app({"agents": {"colour": entry()}}, config=config, settings=ApiSettings(), open_to_all=True)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
    ):
        assert (await client.get("/api/v1/operations")).status_code == 200
        assert (await client.get("/api/v1/operations", headers={"Host": "evil.example"})).status_code == 421
        form = {"Content-Type": "text/plain"}
        reply = await client.post(
            "/api/v1/colour/evaluate_dataset", content=b'{"dataset_name": "colours"}', headers=form
        )
        assert reply.status_code == 415


async def test_headers_and_errors(config, data, caplog):
    async with running(config) as client:
        reply = await client.get("/")
        assert "default-src 'none'" in (await client.get("/login")).headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        for path, code in (("/api/v1/nobody/champion", 404), ("/api/v1/nothing", 404), ("/docs", 404)):
            reply = await client.get(path)
            assert (reply.status_code, reply.headers["content-type"]) == (code, "application/problem+json")
        for content, kind, code, told in (
            (b"{", "application/json", 422, "the body is not JSON: "),
            (b"", "application/json", 422, "send a JSON body"),
            (b"{}", "text/plain", 415, "Content-Type: application/json"),
            (b"thing=leaf", "application/x-www-form-urlencoded", 415, "Content-Type: application/json"),
            (b"{}", "application/json; charset=utf-8", 422, "inputs: Field required"),
        ):
            sent = {"Content-Type": kind}
            reply = await client.post("/api/v1/colour/predict", content=content, headers=sent)
            assert (reply.status_code, told in reply.json()["detail"]) == (code, True), reply.text
        reply = await client.post("/api/v1/colour/predict", json={"inputs": {"a": 1}, "body": 2})
        assert "body: Extra inputs" in reply.json()["detail"]
        reply = await client.get("/api/v1/operations", headers=by("unknown-token-0123456789"))
        assert "this token is unknown" in reply.json()["detail"]
        # What was sent is not repeated: it may be personal.
        reply = await client.post("/api/v1/colour/predict", json={"inputs": "Jane Doe 1980"})
        assert reply.status_code == 422
        assert "Jane" not in reply.text
        with caplog.at_level(logging.CRITICAL):
            client.service.overview = None  # an error that nobody expected
            reply = await client.get("/")
        assert reply.status_code == 500
        assert "Traceback" not in reply.text
        assert "NoneType" not in reply.text
