"""What others may write (runs, tags, rows of a shared journal, requests) breaks nothing but itself."""

import asyncio
import json
import logging
import time

import pytest
import sqlalchemy as sa

from agentcore.api._arms import ArmCounter
from agentcore.api._events import (
    BUCKETS,
    ArmCount,
    ArmsCounted,
    FeedbackGiven,
    OperationEnded,
    OperationRequested,
)
from agentcore.errors import UnknownEventError
from agentcore.journal import wait
from agentcore.journal._event import decode
from tests.api import engines
from tests.api.conftest import ended, entry, running
from tests.registry.conftest import AGENT

EVALUATE = {"dataset_name": "colours"}
PREDICT = f"/api/v1/{AGENT}/predict"


async def evaluates(client, seconds=30):
    """Whether the worker still works."""
    reply = await client.post(f"/api/v1/{AGENT}/evaluate_dataset?wait=0", json=EVALUATE)
    assert reply.status_code == 202, reply.text
    found = await ended(client, reply.json()["id"], seconds)
    assert (await client.get("/health")).json() == {"status": "ok"}
    return found["status"] in ("completed", "failed")


@pytest.mark.parametrize("kind", ["comprehensive", "regression"])
async def test_a_run_with_impossible_values(served, kind):
    from mlflow.entities import Dataset, DatasetInput

    from agentcore.tracking import Experiments

    client = served.client()
    name = Experiments(AGENT, served.config).evaluation
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    for profile in ('{"num_rows": 1e999}', "[" * 20_000, '{"num_rows": "many"}', "7"):
        run = client.create_run(experiment, start_time=10**17, tags={"evaluation_type": kind})
        client.log_inputs(run.info.run_id, [DatasetInput(Dataset("d", "1", "local", "{}", profile=profile))])
        client.log_metric(run.info.run_id, "accuracy", float("nan"))
        client.set_terminated(run.info.run_id)
    async with running(served.config) as api:
        await api.service.overview.refresh(AGENT)
        assert (
            len(api.service.overview.agent(AGENT).evaluations + api.service.overview.agent(AGENT).drifts) >= 4
        )
        for path in ("/", f"/agents/{AGENT}"):
            page = await api.get(path)
            assert page.status_code == 200
            assert "unknown" in page.text
        assert await evaluates(api)


async def test_an_error_that_nobody_expected_ends_no_other_work(served, monkeypatch, caplog):
    def no_model(serving):
        raise ImportError("half a library")

    monkeypatch.setattr("agentcore.api._serving.Serving.model", no_model)
    async with running(served.config) as client:

        async def broken(name):
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(client.service.overview, "_read", broken)
        with caplog.at_level(logging.WARNING, "agentcore"):
            await client.service.overview.refresh(AGENT)
        assert "a bug" in client.service.overview.agent(AGENT).error
        assert "a bug" in caplog.text
        assert await evaluates(client)


def rewritten(journal, operation: str, **values) -> None:
    """A row as others may have written it."""
    from agentcore.journal._schema import events

    change = events.update().where(events.c.stream == operation, events.c.seq == 1).values(**values)
    journal.submit(lambda connection: connection.execute(change)).result()


GOOD = {"operation": "evaluation", "agent": AGENT, "request": EVALUATE, "by": "x"}
ROWS = {
    "no json": "{nope",
    "newer": json.dumps({**GOOD, "newer": "field"}),
    "surrogate": json.dumps({**GOOD, "agent": "gone", "request": {"a": "\ud800"}}),
    "deep": json.dumps({**GOOD, "request": {"a": "DEEP"}}).replace('"DEEP"', "[" * 9_000 + "]" * 9_000),
    "unknown kind": json.dumps({**GOOD, "operation": "x"}),
    "future": json.dumps({**GOOD, "timestamp_ms": 10**17}),
    "past": json.dumps({**GOOD, "request": {"x": 1}, "timestamp_ms": -(10**17)}),
}


@pytest.mark.parametrize("body", ROWS.values(), ids=ROWS)
async def test_a_row_that_cannot_be_read_stops_no_other(served, body):
    async with running(served.config, jobs=0) as client:
        bad = (await client.post(f"/api/v1/{AGENT}/evaluate_dataset?wait=0", json=EVALUATE)).json()["id"]
        await asyncio.to_thread(rewritten, client.service.journal, bad, body=body)
    async with running(served.config) as client:
        assert await evaluates(client)
        assert (await client.get("/api/v1/operations")).status_code == 200
        assert (await client.get("/")).status_code == 200
        assert (await client.get(f"/api/v1/operations/{bad}")).status_code in (200, 404)


def test_a_deep_row_is_damaged():
    with pytest.raises((UnknownEventError, Exception)) as error:
        decode("operation_requested", "[" * 200_000)
    assert error.type.__name__ == "DamagedEventError"


@pytest.mark.parametrize(
    "result",
    [None, {}, {"metrics": 1}, {"metrics": {"accuracy": "x"}}, {"has_drift": "<b>"}, {"version": {"a": 1}}],
)
async def test_results_of_any_shape_are_shown(served, result):
    async with running(served.config, jobs=0) as client:
        operations = client.service.operations
        for kind in ("optimization", "evaluation", "drift", "promotion", "rollback"):
            found = await operations.request(kind, AGENT, {}, "x")
            await operations.journal.write(found.id, [OperationEnded(status="completed", result=result)])
        assert (await client.get("/")).status_code == 200
        assert len((await client.get("/api/v1/operations")).json()) == 5


async def test_an_operation_that_vanishes(served, caplog):
    async with running(served.config) as client:
        worker, operations = client.service.worker, client.service.operations
        pending = operations.pending

        async def then_gone():
            found = await pending()
            for item in found:
                await asyncio.to_thread(operations.journal.discard, item.id)
            return found

        operations.pending = then_gone
        gone = await operations.request("evaluation", AGENT, EVALUATE, "x")
        worker.wake()
        async with asyncio.timeout(20):
            while "was removed from the journal" not in caplog.text:
                await asyncio.sleep(0.05)
        operations.pending = pending
        assert (await client.get(f"/api/v1/operations/{gone.id}")).status_code == 404
        assert await evaluates(client)


@pytest.mark.parametrize("personal", [[], ["thing"]])
async def test_personal_data_stays_out_of_the_log(served, caplog, personal):
    async with running(served.config, {AGENT: entry(personal=personal)}) as client:
        live = await client.service.serving[AGENT]._versions["champion"].get()
        live._loaded = live._loaded._replace(program=engines.Failing())
        with caplog.at_level(logging.INFO, "agentcore"):
            reply = await client.post(PREDICT, json={"inputs": {"thing": "Jane Doe 1980"}})
    assert "Jane" not in reply.text
    assert ("Jane" in caplog.text) == (personal == [])
    assert "KeyError" in caplog.text
    assert "engines.py, line" in caplog.text  # what whoever mends it needs


async def test_a_body_of_very_many_fields_is_refused_at_once(served):
    bodies = [
        (PREDICT, {f"a{number}": 1 for number in range(400_000)}),
        (PREDICT, {"inputs": {f"a{number}": 1 for number in range(400_000)}}),
        (
            "/api/v1/optimizations",
            {"agent": AGENT, "dataset_name": "x", "settings": {f"é{n}": "x" for n in range(300_000)}},
        ),
        ("/api/v1/optimizations", {"agent": AGENT, "dataset_name": "x", "objectives": ["x"] * 400_000}),
    ]
    async with running(served.config) as client:
        for path, body in bodies:
            text = json.dumps(body)
            longest, stop = 0.0, asyncio.Event()

            async def watch(stop=stop):
                nonlocal longest
                while not stop.is_set():
                    began = time.perf_counter()
                    await asyncio.sleep(0.01)
                    longest = max(longest, time.perf_counter() - began)

            watching = asyncio.create_task(watch())
            reply = await client.post(path, content=text)
            stop.set()
            await watching
            assert reply.status_code == 422
            assert len(reply.content) < 5_000
            assert longest < 2.0, path  # reading the JSON itself takes some of that


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://["}, {"Origin": "http://[::1"}, {"Content-Length": "9" * 5_000}]
)
async def test_headers_of_any_shape(config, data, headers):
    async with running(config) as client:
        reply = await client.post(PREDICT, content=b"{}", headers=headers)
        assert reply.status_code in (403, 413)
        assert reply.headers["x-content-type-options"] == "nosniff"


async def test_ids_of_any_shape(served):
    async with running(served.config) as client:
        for wanted in ("%00", "a%00b", "x" * 5_000, "..", "%F0%9F%92%A5", "0" * 31, "G" * 32):
            for path in (f"operations/{wanted}", f"optimizations/{wanted}/events"):
                reply = await client.get(f"/api/v1/{path}")
                assert reply.status_code == 404, path
                assert "\0" not in reply.text


async def test_impossible_counts_are_left_out(served):
    def body(**changes):
        count = {"requests": [10] * BUCKETS, "errors": [1] * BUCKETS, "log_ms": [20.0] * BUCKETS, **changes}
        return json.dumps({"process": "p", "versions": {"1": count, "2": count}})

    share = {"share": 0.5}
    async with running(served.config, {AGENT: entry(traffic=share)}) as client:
        serving = client.service.serving[AGENT]
        await serving._serving()
        stream = await serving._stream(("1", "2"))
        good = ArmCount(requests=[10] * BUCKETS, errors=[1] * BUCKETS, log_ms=[20.0] * BUCKETS)
        journal = client.service.journal
        await journal.write(stream, [ArmsCounted(process="good", versions={"1": good, "2": good})])
        for number, changes in enumerate(
            (
                {"requests": [1, 2]},
                {"log_ms": [1e300] * BUCKETS},
                {"requests": [10**30] * BUCKETS},
                {"errors": [-5] * BUCKETS},
                {"errors": [10**6] * BUCKETS},
            )
        ):
            await journal.write(stream, [ArmsCounted(process=f"bad{number}", versions={"1": good})])
            from agentcore.journal._schema import events

            last = sa.select(sa.func.max(events.c.seq)).where(events.c.stream == stream).scalar_subquery()
            change = events.update().where(events.c.stream == stream, events.c.seq == last)
            await asyncio.to_thread(
                lambda change=change, changes=changes: journal.submit(
                    lambda connection: connection.execute(change.values(body=body(**changes)))
                ).result()
            )
        arms = (await client.get(f"/api/v1/{AGENT}/arms")).json()
        assert (arms["champion"]["requests"], arms["champion"]["error_rate"]) == (1000, 0.1)
        assert (await client.get(f"/agents/{AGENT}")).status_code in (200, 303)


def test_a_count_cannot_be_impossible():
    with pytest.raises(ValueError, match="more errors than requests"):
        ArmCount(requests=[0] * BUCKETS, errors=[1] * BUCKETS, log_ms=[0.0] * BUCKETS)
    for changes in ({"bucket": 100}, {"bucket": -1}, {"score": 1e308}, {"score": -0.1}):
        with pytest.raises(ValueError, match="Input should be"):
            FeedbackGiven(**{"request_id": "r", "version": "1", "bucket": 1, "score": 1.0, **changes})
    assert ArmCounter().event() is None


async def test_the_queue_is_bounded(served, monkeypatch):
    monkeypatch.setattr("agentcore.api._operations.MOST_WAITING", 20)
    async with running(served.config, jobs=0) as client:
        codes, path = [], f"/api/v1/{AGENT}/evaluate_dataset?wait=0"
        for number in range(25):
            reply = await client.post(
                f"/api/v1/{AGENT}/evaluate_dataset?wait=0",
                json=EVALUATE,
                headers={"Idempotency-Key": str(number)},
            )
            codes.append(reply.status_code)
        assert codes == [202] * 21 + [429] * 4
        again = await client.post(path, json=EVALUATE, headers={"Idempotency-Key": "3"})
        assert again.status_code == 202  # it is there already
        assert len((await client.get("/api/v1/operations?limit=1")).json()) == 1
        assert len((await client.get("/api/v1/operations?limit=200&unfinished=true")).json()) == 21


async def test_operations_of_others_hide_none(served):
    async with running(served.config) as client:
        operations = client.service.operations
        mine = await operations.request("evaluation", AGENT, EVALUATE, "x")
        await ended(client, mine.id)
        for number in range(30):
            first = OperationRequested(operation="evaluation", agent=AGENT, request=EVALUATE, by="x")
            elsewhere = f"{AGENT} http://o:5000"
            await wait(operations.journal.create(f"{number:032x}", "operation", elsewhere, "", first=[first]))
            unknown = operations._name("unknown")
            await wait(operations.journal.create(f"a{number:031x}", "operation", unknown, "", first=[first]))
        assert [item["id"] for item in (await client.get("/api/v1/operations?limit=5")).json()] == [mine.id]
        # One of an agent that no replica knows can be cancelled.
        reply = await client.post(f"/api/v1/operations/a{3:031x}/cancel")
        assert reply.json()["status"] == "cancelled"
        assert await evaluates(client)


async def test_equal_is_not_the_same(served):
    body = {"agent": AGENT, "dataset_name": "colours", "algorithms": ["miprov2"]}
    async with running(served.config, jobs=0) as client:
        codes = []
        for value in (True, 1, True):
            reply = await client.post(
                "/api/v1/optimizations",
                json={**body, "settings": {"racing": value}},
                headers={"Idempotency-Key": "k"},
            )
            codes.append(reply.status_code)
        assert codes == [202, 409, 202]
