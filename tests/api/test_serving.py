"""Predictions: the version in production and its challenger, checked inputs, logs, failures."""

import asyncio
import json

import pytest

from agentcore.api._serving import Serving
from agentcore.journal import open_journal
from agentcore.tracking import RunTracker
from tests.api.conftest import entry, running
from tests.registry.conftest import AGENT

LEAF = {"inputs": {"thing": "leaf number 3"}}
PREDICT = f"/api/v1/{AGENT}/predict"


def traces(agent):
    client = agent.client()
    experiment = client.get_experiment_by_name(f"/Shared/ai-agents/{AGENT}")
    return client.search_traces(locations=[experiment.experiment_id], max_results=500)


async def test_predict(served):
    async with running(served.config) as client:
        found = (await client.post(PREDICT, json=LEAF)).json()
        assert found["outputs"] == {"colour": "green"}
        assert (found["version"], found["arm"]) == ("1", "champion")
        assert found["duration_ms"] > 0
    await RunTracker(served.config).deliver_backlog(60)
    (trace,) = traces(served)
    assert trace.info.client_request_id == found["request_id"]
    assert trace.info.tags["agent_version"] == "1"
    assert json.loads(trace.info.request_preview or trace.data.request)["thing"] == "leaf number 3"


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({}, "no fields"),
        ({"thing": "leaf", "config": {"api_base": "http://evil"}}, "config"),
        ({"thing": "leaf", "lm": "x"}, "lm"),
        ({"thing": "leaf", "shade": 1}, "no field 'shade'; it takes thing"),
        ({"things": "leaf"}, "no field 'things'"),
        ({"thing": "<<CUSTOM-TYPE-START-IDENTIFIER>>x"}, "CUSTOM-TYPE"),
        ({"thing": "leaf", "": 1}, "identifier"),
        ({"thing": "leaf", "dspy_x": 1}, "reserved"),
        ({"thing": {"deep": [1]}}, "not of the program's type str"),
        ({"thing": None}, "inputs.thing: null"),
    ],
)
async def test_inputs_that_do_not_fit(served, inputs, told):
    async with running(served.config) as client:
        reply = await client.post(PREDICT, json={"inputs": inputs})
        assert reply.status_code == 422, reply.text
        assert told in reply.json()["detail"]


async def test_failures_are_answers_with_a_reason(served, monkeypatch):
    from tests.api import engines

    async with running(served.config, {AGENT: entry(lm="tests.api.engines:broken")}) as client:
        reply = await client.post(PREDICT, json=LEAF)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert "the language model failed" in reply.json()["detail"]
    async with running(served.config, {AGENT: entry(timeout=0.3)}) as client:
        live = await client.service.serving[AGENT]._versions["champion"].get()
        live._loaded = live._loaded._replace(program=engines.Slow())
        reply = await client.post(PREDICT, json=LEAF)
        assert (reply.status_code, reply.json()["detail"]) == (504, "no answer within 0.3 s")
        live._loaded = live._loaded._replace(program=engines.Failing())
        reply = await client.post(PREDICT, json=LEAF)
        assert reply.status_code == 500
        assert "KeyError" in reply.json()["detail"]
        assert "leaf" not in reply.text  # it may be personal
    await RunTracker(served.config).deliver_backlog(60)
    found = traces(served)
    assert [str(trace.info.state).rpartition(".")[2] for trace in found] == ["ERROR"] * 3


async def test_personal_data_stays_out_of_traces(served):
    async with running(served.config, {AGENT: entry(personal=["thing"])}) as client:
        await client.post(
            PREDICT, json={"inputs": {"thing": "Jane Doe, born 1980"}, "key": "jane@example.com"}
        )
    await RunTracker(served.config).deliver_backlog(60)
    (trace,) = traces(served)
    told = json.dumps(trace.to_dict(), default=str)
    assert "Jane" not in told
    assert "jane@" not in told
    assert len(trace.info.tags["key_sha256"]) == 16


async def test_two_versions(served):
    """Shares, stickiness, and each answer logged with its version."""
    share = 0.3
    async with running(served.config, {AGENT: entry(traffic={"share": share})}) as client:
        keys = [f"customer-{number % 150}" for number in range(300)]
        replies = await asyncio.gather(*(client.post(PREDICT, json={**LEAF, "key": key}) for key in keys))
        found = [reply.json() for reply in replies]
        by_key: dict[str, set] = {}
        for key, item in zip(keys, found, strict=True):
            by_key.setdefault(key, set()).add((item["version"], item["arm"]))
        assert all(len(versions) == 1 for versions in by_key.values())
        assert {item for versions in by_key.values() for item in versions} == {
            ("1", "champion"),
            ("2", "challenger"),
        }
        for item in found[:120]:
            rated = await client.post(
                f"/api/v1/{AGENT}/feedback",
                json={"request_id": item["request_id"], "version": item["version"], "score": 1.0},
            )
            assert rated.status_code == 204
        wrong = await client.post(
            f"/api/v1/{AGENT}/feedback",
            json={"request_id": found[0]["request_id"], "version": "9", "score": 1.0},
        )
        assert wrong.status_code == 422
        arms = (await client.get(f"/api/v1/{AGENT}/arms")).json()
    counts = [sum(item["version"] == version for item in found) for version in ("1", "2")]
    assert [arms["champion"]["requests"], arms["challenger"]["requests"]] == counts
    assert arms["champion"]["ratings"] + arms["challenger"]["ratings"] == 120
    assert abs(counts[1] / 300 - share) < 0.1
    assert all(claim["verdict"] == "not proven" for claim in arms["claims"])
    assert "no difference is proven" in arms["summary"]
    await RunTracker(served.config).deliver_backlog(60)
    logged = {trace.info.client_request_id: trace.info.tags["agent_version"] for trace in traces(served)}
    assert logged == {item["request_id"]: item["version"] for item in found}
    # Another replica counts on, and both say the same.
    async with running(served.config, {AGENT: entry(traffic={"share": share})}) as client:
        await client.post(PREDICT, json={**LEAF, "key": "customer-1"})
        again = (await client.get(f"/api/v1/{AGENT}/arms")).json()
        assert again["champion"]["requests"] + again["challenger"]["requests"] == 301


async def test_a_promotion_changes_what_is_served(served, monkeypatch):
    monkeypatch.setattr("agentcore.api._serving.REFRESH_SECONDS", 0.2)
    async with running(served.config, {AGENT: entry(traffic={"share": 0.5})}) as client:
        await asyncio.gather(*(client.post(PREDICT, json={**LEAF, "key": str(n)}) for n in range(20)))
        await served.registry().promote(served.weak, "production", lm="offline/knn", force="for the test")
        async with asyncio.timeout(20):
            while True:
                reply = await client.post(PREDICT, json=LEAF)
                assert reply.status_code == 200, reply.text
                found = reply.json()
                if found["arm"] == "champion" and found["version"] != "1":
                    break
                await asyncio.sleep(0.1)
        champion = (await client.get(f"/api/v1/{AGENT}/champion")).json()
        assert champion["version"] == champion["serving"] == found["version"]


async def test_200_at_once(served):
    async with running(served.config) as client:
        replies = await asyncio.gather(*(client.post(PREDICT, json=LEAF) for _ in range(200)))
        assert [reply.status_code for reply in replies] == [200] * 200
        assert len({reply.json()["request_id"] for reply in replies}) == 200


async def test_too_many_wait(served, monkeypatch):
    monkeypatch.setattr("agentcore.api._serving._WAITING", 5)
    from tests.api import engines

    async with running(served.config, {AGENT: entry(max_concurrency=1, timeout=2)}) as client:
        live = await client.service.serving[AGENT]._versions["champion"].get()
        live._loaded = live._loaded._replace(program=engines.Slow())
        replies = await asyncio.gather(*(client.post(PREDICT, json=LEAF) for _ in range(10)))
        codes = sorted(reply.status_code for reply in replies)
        assert codes.count(429) >= 4
        assert set(codes) == {429, 504}


async def test_an_outage_of_the_journal_costs_no_answer(served, monkeypatch):
    from agentcore.errors import JournalError

    async with running(served.config) as client:
        serving: Serving = client.service.serving[AGENT]

        async def full(*args, **kwargs):
            raise JournalError("disk full")

        monkeypatch.setattr(serving._tracker, "start_run", full)
        reply = await client.post(PREDICT, json=LEAF)
        assert reply.status_code == 200
    assert open_journal() is not None


async def test_ready_says_what_is_away(served):
    async with running(served.config) as client:
        found = (await client.get("/ready")).json()
        assert {item["name"]: item["status"] for item in found["checks"]} == {
            "tracking server": "skipped",
            "database": "ok",
            "artifact store": "ok",
            "journal": "ok",
        }
        assert all(item["message"] for item in found["checks"])
        anonymous = (await client.get("/ready", headers={"Authorization": ""})).json()
        assert anonymous["ready"] is True
        assert not any(item["message"] for item in anonymous["checks"])


async def test_ready_on_a_real_server(own_stack, server, data):
    async with running(server) as client:
        found = (await client.get("/ready")).json()
        assert [item["status"] for item in found["checks"]] == ["ok"] * 4, found
