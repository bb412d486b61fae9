"""Operations: requested, carried out once, cancelled, shown."""

import asyncio
import json
from pathlib import Path

import pytest

from agentcore.api._events import OperationRequested
from agentcore.api._operations import Operations
from agentcore.errors import LMUnavailableError
from agentcore.journal import open_journal, wait
from agentcore.tracking import RunTracker
from tests.api.conftest import PROMOTE, READ, by, ended, entry, running, started
from tests.registry.conftest import AGENT

OPTIMIZE = {
    "agent": AGENT,
    "dataset_name": "colours",
    "algorithms": ["labeled_few_shot"],
    "settings": {"k": 8},
}
LONG = {
    **OPTIMIZE,
    "algorithms": ["miprov2"],
    "auto": "none",
    "settings": {"num_candidates": 4, "num_trials": 20, "minibatch": False, "racing": False},
}


async def test_evaluate_dataset(served):
    """The documents' own call; the figures are scikit-learn's."""
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

    async with running(served.config) as client:
        reply = await client.post(
            f"/api/v1/{AGENT}/evaluate_dataset", json={"dataset_name": "colours", "target_field": "colour"}
        )
        assert reply.status_code == 200
        found = reply.json()
        assert (found["status"], found["kind"], found["by"]) == ("completed", "evaluation", "ci")
        assert reply.headers["location"] == f"/api/v1/operations/{found['id']}"
    run = served.client().get_run(found["run_id"])
    assert run.info.status == "FINISHED"
    path = served.client().download_artifacts(
        found["run_id"], "eval_results_table.json", str(served.directory)
    )
    table = json.loads(Path(path).read_text())
    columns = {name: [row[index] for row in table["data"]] for index, name in enumerate(table["columns"])}
    truth, answers = columns["expected"], columns["answer"]
    metrics = found["result"]["metrics"]
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, answers))
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1_score", f1_score)):
        assert metrics[name] == pytest.approx(score(truth, answers, average="macro", zero_division=0)), name


async def test_an_optimization(served):
    async with running(served.config) as client:
        reply = await client.post("/api/v1/optimizations", json=OPTIMIZE)
        assert reply.status_code == 202
        found = await ended(client, reply.json()["id"])
        assert found["status"] == "completed", found["error"]
        assert found["progress"]["trials"] == 2
        assert found["progress"]["lm_calls"] > 0
        assert found["result"]["verdict"] in ("better", "not proven")
        same = (await client.get(f"/api/v1/optimizations/{found['id']}")).json()
        assert same == found
        assert [item["id"] for item in (await client.get("/api/v1/optimizations")).json()] == [found["id"]]
        listed = (await client.get("/api/v1/operations")).json()
        assert [item["id"] for item in listed] == [found["id"]]
    run = served.client().get_run(found["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["agent_name"] == AGENT
    assert run.inputs.dataset_inputs[0].dataset.name.startswith("colours_v1")


async def test_the_same_key_does_nothing_twice(served):
    async with running(served.config, jobs=0) as client:
        key = {"Idempotency-Key": "deploy-17"}
        first, second = [
            (await client.post("/api/v1/optimizations", json=OPTIMIZE, headers=key)).json() for _ in range(2)
        ]
        assert first["id"] == second["id"]
        replies = await asyncio.gather(
            *(
                client.post("/api/v1/optimizations", json=OPTIMIZE, headers={"Idempotency-Key": "together"})
                for _ in range(20)
            )
        )
        assert len({reply.json()["id"] for reply in replies}) == 1
        other = await client.post("/api/v1/optimizations", json={**OPTIMIZE, "seed": 5}, headers=key)
        assert other.status_code == 409
        # Others' keys are their own.
        theirs = await client.post("/api/v1/optimizations", json=OPTIMIZE, headers={**key, **by(PROMOTE)})
        assert theirs.json()["id"] != first["id"]
        assert len((await client.get("/api/v1/operations")).json()) == 3


async def test_only_what_the_list_allows(served):
    async with running(served.config, {AGENT: entry(limits={"max_lm_calls": 100})}) as client:
        for change, code, told in (
            ({"agent": "other"}, 404, "no agent 'other'"),
            ({"dataset_name": "secret_rows"}, 404, "may not use data set"),
            ({"dataset_name": "colours_missing"}, 404, "colours_missing"),
            ({"dataset_name": "colours/v9"}, 404, "v9"),
            ({"dataset_name": "../../etc/passwd"}, 422, "dataset_name"),
            ({"dataset_name": "/etc/passwd"}, 422, "dataset_name"),
            ({"max_lm_calls": 101}, 422, "allows at most 100"),
            ({"program": "os:system"}, 422, "program"),
            ({"lm": "openai/evil"}, 422, "lm"),
            ({"settings": {"k": "os:system"}}, 422, "settings"),
            ({"algorithms": ["miprov2", "copro"]}, 422, "only one"),
            ({"algorithms": ["mipro2"]}, 422, "did you mean miprov2?"),
            ({"settings": {"nothing": 1}}, 422, "nothing"),
        ):
            reply = await client.post("/api/v1/optimizations", json={**OPTIMIZE, **change})
            assert (reply.status_code, told in reply.json()["detail"]) == (code, True), reply.text
        assert (await client.get("/api/v1/operations")).json() == []
        # The limit of the list holds without being named.
        found = (await client.post("/api/v1/optimizations", json=LONG)).json()
        found = await ended(client, found["id"])
        assert found["result"]["status"] == "budget_exhausted"
        assert found["progress"]["lm_calls"] <= 100


async def test_a_wrong_field_is_told_at_once(served):
    async with running(served.config) as client:
        for path, body in (
            ("evaluate_dataset", {"dataset_name": "colours", "target_field": "shade"}),
            (
                "detect_drift",
                {"baseline_dataset": "colours", "current_dataset": "colours_now", "target_field": "shade"},
            ),
        ):
            reply = await client.post(f"/api/v1/{AGENT}/{path}", json=body)
            assert reply.status_code == 422
            assert "no field 'shade'; it has thing, colour" in reply.json()["detail"]


async def test_drift_promotion_and_rollback(served):
    async with running(served.config, token=PROMOTE) as client:
        drift = await client.post(
            f"/api/v1/{AGENT}/detect_drift",
            json={"baseline_dataset": "colours", "current_dataset": "colours_now"},
        )
        assert drift.json()["result"]["has_drift"] is False
        before = (await client.get(f"/api/v1/{AGENT}/champion")).json()
        assert (before["version"], before["serving"]) == ("1", "1")
        # The gate refuses a worse program; that is an answer, not a failure.
        refused = (await client.post(f"/api/v1/{AGENT}/promote", json={"run": served.weak})).json()
        assert (refused["status"], refused["result"]["promoted"]) == ("completed", False)
        assert (await client.post(f"/api/v1/{AGENT}/promote", json={})).status_code == 422
        asked = {"run": served.weak, "dry_run": True}
        planned = (await client.post(f"/api/v1/{AGENT}/promote", json=asked)).json()
        assert planned["result"]["planned"] is True
        missing = (await client.post(f"/api/v1/{AGENT}/promote", json={"run": "abcdef123456"})).json()
        assert missing["status"] == "failed"
        assert "abcdef123456" in missing["error"]
        none = (await client.post(f"/api/v1/{AGENT}/rollback", json={})).json()
        assert none["status"] == "failed"
        assert "earlier" in none["error"] or "no" in none["error"]
    registry = served.registry()
    await registry.promote(served.weak, "production", lm="offline/knn", force="worse, for the test")
    async with running(served.config, token=PROMOTE) as client:
        back = (await client.post(f"/api/v1/{AGENT}/rollback", json={"to": 1})).json()
        assert (back["status"], back["result"]["version"]) == ("completed", "1"), back
        now = (await client.get(f"/api/v1/{AGENT}/champion")).json()
        assert (now["version"], now["by"]) == ("1", "boss")


async def test_no_champion(config, data):
    async with running(config) as client:
        for reply in (
            await client.get(f"/api/v1/{AGENT}/champion"),
            await client.post(f"/api/v1/{AGENT}/predict", json={"inputs": {"thing": "leaf"}}),
            await client.get(f"/api/v1/{AGENT}/arms"),
        ):
            assert reply.status_code == 404
        for path, body in (
            ("evaluate_dataset", {"dataset_name": "colours"}),
            ("detect_drift", {"baseline_dataset": "colours", "current_dataset": "colours_now"}),
        ):
            reply = await client.post(f"/api/v1/{AGENT}/{path}", json=body)
            assert reply.status_code == 404
            assert "agentcore promote" in reply.json()["detail"]


async def test_a_function_is_evaluated(config, data):
    async with running(config, {AGENT: entry(func="tests.api.engines:shade")}) as client:
        found = (
            await client.post(f"/api/v1/{AGENT}/evaluate_dataset", json={"dataset_name": "colours"})
        ).json()
        assert found["result"]["metrics"]["accuracy"] == pytest.approx(1 / 3)


async def test_cancelled_while_it_runs(served, tmp_path, monkeypatch):
    monkeypatch.setenv("API_CALLS", str(tmp_path / "calls"))
    async with running(served.config, {AGENT: entry(lm="tests.api.engines:slow")}) as client:
        found = (await client.post("/api/v1/optimizations", json=LONG)).json()
        await started(client, found["id"])
        reply = await client.post(f"/api/v1/optimizations/{found['id']}/cancel", headers=by(READ))
        assert reply.status_code == 403
        reply = await client.post(f"/api/v1/optimizations/{found['id']}/cancel")
        assert (reply.status_code, reply.json()["status"]) == (202, "cancelling")
        found = await ended(client, found["id"])
        assert found["status"] == "cancelled"
        calls = len((tmp_path / "calls").read_text().splitlines())
        again = await client.post(f"/api/v1/optimizations/{found['id']}/cancel")
        assert again.status_code == 409
        await asyncio.sleep(0.3)
        assert len((tmp_path / "calls").read_text().splitlines()) == calls  # nothing goes on


async def test_cancelled_before_it_began(served):
    async with running(served.config, jobs=0) as client:
        found = (await client.post("/api/v1/optimizations", json=OPTIMIZE)).json()
        assert found["status"] == "queued"
        await client.post(f"/api/v1/optimizations/{found['id']}/cancel")
    async with running(served.config) as client:
        found = await ended(client, found["id"])
        assert (found["status"], found["run_id"]) == ("cancelled", None)


async def test_events(served):
    async with running(served.config) as client:
        found = (await client.post("/api/v1/optimizations", json=OPTIMIZE)).json()
        reply = await client.get(f"/api/v1/optimizations/{found['id']}/events")
        assert reply.headers["content-type"].startswith("text/event-stream")
        blocks = [block.splitlines() for block in reply.text.split("\n\n") if block.startswith("event")]
        names = [lines[0].removeprefix("event: ") for lines in blocks]
        assert names[-1] == "end"
        assert set(names[:-1]) <= {"operation"}
        last = json.loads(blocks[-1][1].removeprefix("data: "))
        now = (await client.get(f"/api/v1/optimizations/{found['id']}")).json()
        assert (last["status"], last["result"]) == (now["status"], now["result"])
        assert last["status"] == "completed"
        missing = await client.get(f"/api/v1/optimizations/{'0' * 32}/events")
        assert missing.status_code == 404
        other = (
            await client.post(f"/api/v1/{AGENT}/evaluate_dataset", json={"dataset_name": "colours"})
        ).json()
        assert (await client.get(f"/api/v1/optimizations/{other['id']}")).status_code == 404


async def test_an_outage_fails_the_operation(served):
    async with running(served.config, {AGENT: entry(lm="tests.api.engines:broken")}) as client:
        found = (await client.post("/api/v1/optimizations", json=OPTIMIZE)).json()
        found = await ended(client, found["id"])
        assert found["status"] == "failed"
        assert "language model" in found["error"]
        await RunTracker(served.config).flush(60)
        found = (await client.get(f"/api/v1/operations/{found['id']}")).json()  # with MLflow's id
    run = served.client().get_run(found["run_id"])
    assert run.info.status == "FAILED"
    assert LMUnavailableError.exit_code == 3


async def test_a_shared_journal_cannot_choose_programs(served, tmp_path):
    """Others may write to a journal in Postgres: what they write is validated like a request."""
    operations = Operations(await asyncio.to_thread(open_journal), served.config, [AGENT])
    hostile = [
        OperationRequested(
            operation="optimization", agent=AGENT, by="x", request={**OPTIMIZE, "program": "os:x"}
        ),
        OperationRequested(
            operation="optimization", agent=AGENT, by="x", request={**OPTIMIZE, "dataset_name": "secret_rows"}
        ),
        OperationRequested(operation="evaluation", agent=AGENT, by="x", request={"dataset_name": "../../x"}),
        OperationRequested(operation="rollback", agent=AGENT, by="x", request={"to": "1; drop"}),
    ]
    ids = []
    for number, event in enumerate(hostile):
        ids.append(f"{number:032x}")
        await wait(
            operations.journal.create(ids[-1], "operation", operations._name(AGENT), "", first=[event])
        )
    foreign = OperationRequested(operation="evaluation", agent="other", by="x", request={"dataset_name": "x"})
    other = operations._name("other")
    await wait(operations.journal.create("f" * 32, "operation", other, "", first=[foreign]))
    elsewhere = hostile[0].model_copy(update={"request": OPTIMIZE})
    server = f"{AGENT} http://other:5000"
    await wait(operations.journal.create("e" * 32, "operation", server, "", first=[elsewhere]))
    async with running(served.config) as client:
        for wanted in ids:
            found = await ended(client, wanted)
            assert found["status"] == "failed", found
        # Another replica may know the agent; the other server's is nobody's business here.
        assert (await client.get(f"/api/v1/operations/{'f' * 32}")).json()["status"] == "queued"
        assert (await client.get(f"/api/v1/operations/{'e' * 32}")).status_code == 404


async def test_what_cannot_be_imported_is_shown_at_once(served, caplog):
    agents = {
        AGENT: entry(),
        "one": entry(program="nosuch_module:Router"),
        "two": entry(func="tests.api.engines:nofunc"),
        "three": entry(metric="nosuch_metric"),
        "four": entry(lm="offline/none"),
    }
    async with running(served.config, agents, token=None) as client:
        await client.post("/login", data={"token": READ})
        async with asyncio.timeout(30):
            while "four is not ready" not in caplog.text:
                await asyncio.sleep(0.05)
        page = (await client.get("/")).text
        for name, told in (
            ("one", "nosuch_module"),
            ("two", "nofunc"),
            ("three", "nosuch_metric"),
            ("four", "offline"),
        ):
            assert f"{name} is not ready" in page
            assert told in page
        assert f"{AGENT} is not ready" not in page
