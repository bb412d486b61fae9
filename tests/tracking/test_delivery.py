"""From the journal to a real MLflow server, whatever goes wrong on the way."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from agentcore.dspy_optimization import interrupted_runs, mark_interrupted
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ArtifactError, ConfigurationError, JournalError, TrackingError
from agentcore.journal import Entry, close_journals, open_journal
from agentcore.settings import MLflowConfig
from agentcore.tracking import (
    MetricsLogged,
    ParamsLogged,
    RunEnded,
    TagsSet,
    delivery_for,
    destination_of,
    stop_deliveries,
)
from agentcore.tracking import _delivery as delivery_module
from agentcore.tracking._digests import digests_of
from agentcore.tracking._sender import batches
from tests.support import Classifier, request
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(proxy, server) -> MLflowConfig:
    return server.model_copy(update={"tracking_uri": proxy.url, "request_timeout": 1.0})


@pytest.fixture
def quick_pauses(monkeypatch):
    monkeypatch.setattr(delivery_module, "_LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(delivery_module, "_FIRST_PAUSE", 0.05)


def runs_in(stack, name):
    """The experiment's runs, past everything of ours."""
    client = MlflowClient(stack.uri)
    experiment = client.get_experiment_by_name(name)
    return [] if experiment is None else client.search_runs([experiment.experiment_id])


async def log_something(tracker, run_id=None):
    for step in range(3):
        await tracker.log_metrics({"loss": 1 / (step + 1)}, step=step, run_id=run_id)
    await tracker.log_params({"alpha": 1}, run_id=run_id)
    await tracker.set_tags({"team": "a"}, run_id=run_id)
    await tracker.log_json("notes/a.json", {"a": [1, 2]}, run_id=run_id)


def check_something(stack, name):
    (run,) = runs_in(stack, name)
    client = MlflowClient(stack.uri)
    history = [(item.step, item.value) for item in client.get_metric_history(run.info.run_id, "loss")]
    assert history == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert run.data.params == {"alpha": "1"}
    assert run.data.tags["team"] == "a"
    stored = client.download_artifacts(run.info.run_id, "notes/a.json")
    assert json.loads(Path(stored).read_text()) == {"a": [1, 2]}
    assert run.info.status == "FINISHED"
    return run


async def test_a_local_id_stands_for_the_run_until_the_server_is_there(stack, proxy, config, quick_pauses):
    proxy.fault = lambda method, path: "drop"
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    assert run_id.startswith("local-")
    assert tracker.current_run_id == run_id
    await log_something(tracker)
    with pytest.raises(TrackingError, match="1 run waits in the journal; deliver with: agentcore sync"):
        await tracker.get_run(run_id)
    proxy.fault = lambda method, path: None
    await tracker.end_run()
    await tracker.flush()
    run = check_something(stack, config.experiment_name)
    assert (await tracker.get_run(run_id)).info.run_id == run.info.run_id
    await tracker.set_tags({"later": "yes"}, run_id=run_id)
    await MLflowTracker(config).set_tags({"by_real_id": "yes"}, run_id=run.info.run_id)
    tags = (await tracker.get_run(run_id)).data.tags
    assert (tags["later"], tags["by_real_id"]) == ("yes", "yes")
    assert len(runs_in(stack, config.experiment_name)) == 1


async def test_a_local_id_is_had_within_two_seconds_of_a_server_that_hangs(proxy, config):
    await MLflowTracker(config).search_runs()
    proxy.fault = lambda method, path: "hang"
    started = time.monotonic()
    run_id = await MLflowTracker(config.model_copy(update={"experiment_name": "other"})).start_run(request())
    assert run_id.startswith("local-")
    assert time.monotonic() - started < 2.5


@pytest.mark.parametrize(("lost", "times"), [("lose", 2), ("drop", 1), ("503", 1), ("pool", 1)])
async def test_every_request_fails_first_and_nothing_is_lost_or_doubled(
    stack, proxy, config, quick_pauses, lost, times
):
    """Each kind of request fails some times: replies lost after the server has done it, and others."""
    failed: dict[str, int] = {}

    def fault(method, path):
        failed[path] = failed.get(path, 0) + 1
        return lost if failed[path] <= times else None

    tracker = MLflowTracker(config)
    proxy.fault = fault
    run_id = await tracker.start_run(request())
    await log_something(tracker, run_id)
    await tracker.log_model_artifact(Classifier(), run_id=run_id)
    await tracker.end_run(run_id=run_id)
    delivery = (await tracker.opened())[1]
    await asyncio.to_thread(lambda: delivery.flush(timeout=60, patience=30))
    run = check_something(stack, config.experiment_name)
    assert run.info.status == "FINISHED"
    client = MlflowClient(stack.uri)
    models = client.search_logged_models([run.info.experiment_id])
    assert [str(model.status) for model in models] == ["READY"]
    assert [item.model_id for item in run.outputs.model_outputs] == [models[0].model_id]
    assert run.data.tags["agentcore.model.optimized_model"] == models[0].model_id


async def test_a_run_that_was_made_after_we_looked_is_deleted(stack, config):
    """The server carries out a create_run late, when its reply was given up: the second one goes."""
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    client = MlflowClient(stack.uri)
    run = client.get_run(run_id)
    client.create_run(run.info.experiment_id, tags={"agentcore.key": run.data.tags["agentcore.key"]})
    assert len(runs_in(stack, config.experiment_name)) == 2
    await tracker.end_run()
    await tracker.flush()
    assert [item.info.run_id for item in runs_in(stack, config.experiment_name)] == [run_id]


async def test_a_refused_entry_takes_no_other_with_it(stack, config):
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    await tracker.log_params({"alpha": 1})
    await tracker.flush()
    await asyncio.gather(
        tracker.log_metrics({"before": 1}),
        tracker.log_params({"alpha": 2}),
        tracker.log_params({"beta": 3}),
        tracker.log_metrics({"after": 1}),
    )
    with pytest.raises(TrackingError, match=r"MLflow refused 1 entry: .*alpha"):
        await tracker.flush()
    run = await tracker.get_run(run_id)
    assert run.data.params == {"alpha": "1", "beta": "3"}
    assert set(run.data.metrics) == {"before", "after"}


async def test_a_server_that_refuses_the_client_is_said_at_once(proxy, config):
    """Not MLflow's own answer, as from a gateway before it: the data is kept, nothing is dropped."""
    tracker = MLflowTracker(config.model_copy(update={"tracking_uri": proxy.url + "/nowhere"}))
    with pytest.raises(TrackingError):
        await tracker.start_run(request())
    assert open_journal().streams() == []


async def test_a_refusal_in_the_middle_keeps_what_waits(stack, proxy, config, quick_pauses):
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    proxy.fault = lambda method, path: "503"
    await log_something(tracker)
    await tracker.end_run()
    with pytest.raises(TrackingError):
        await tracker.flush(timeout=1)
    proxy.fault = lambda method, path: None
    await tracker.flush()
    check_something(stack, config.experiment_name)


async def test_another_process_delivers_what_one_left(stack, proxy, config):
    """The first ends without a server; the next that tracks there delivers for both."""
    proxy.fault = lambda method, path: "drop"
    first = MLflowTracker(config)
    run_id = await first.start_run(request())
    await log_something(first)
    await first.end_run()
    stop_deliveries()
    close_journals()
    proxy.fault = lambda method, path: None
    second = MLflowTracker(config)
    assert await second.search_runs() is not None
    await second.deliver_backlog()
    run = check_something(stack, config.experiment_name)
    assert await second.tracking_id(run_id) == run.info.run_id


def test_two_deliverers_at_once_make_one_run(stack, tmp_path):
    """Several processes sync the same backlog: the lease lets one of them do each run."""
    config = MLflowConfig(tracking_uri=stack.uri, experiment_name="two-deliverers")
    journal = open_journal()
    tracker = MLflowTracker(config)
    keys = []
    for number in range(6):
        created = tracker.entries.run_created(config, f"{number:032x}", f"run-{number}")
        journal.create(f"{number:032x}", "run", created.name, destination_of(config)).result()
        keys.append(
            journal.append(
                f"{number:032x}", [created, MetricsLogged(metrics={"x": number}), RunEnded(status="FINISHED")]
            )
        )
    assert [key.result() for key in keys] == [3] * 6
    close_journals()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": stack.uri,
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "agentcore", "sync"]
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [worker.wait(90) for worker in workers] == [0, 0, 0]
    runs = runs_in(stack, "two-deliverers")
    assert sorted(run.data.metrics["x"] for run in runs) == list(range(6))
    assert {run.info.status for run in runs} == {"FINISHED"}


async def test_64_runs_at_once_keep_to_four_requests(stack, proxy, config):
    """The server has its default pool, which collapses under more."""
    tracker = MLflowTracker(config)

    async def one(number):
        run_id = await tracker.start_run(request(f"t{number}"))
        await log_something(tracker, run_id)
        await tracker.end_run(run_id=run_id)

    await asyncio.gather(*(one(number) for number in range(64)))
    await tracker.flush()
    assert proxy.most_in_flight <= 4
    runs = await tracker.search_runs()
    assert {run.data.tags["target_id"] for run in runs} == {f"t{number}" for number in range(64)}
    assert len(runs) == 64
    for run in runs:
        assert (run.info.status, run.data.metrics, run.data.params["alpha"]) == (
            "FINISHED",
            {"loss": 1 / 3},
            "1",
        )
        assert list(digests_of(run.data.tags)) == ["notes/a.json"]


async def test_metrics_are_sent_in_batches(proxy, config):
    tracker = MLflowTracker(config)
    proxy.fault = lambda method, path: "drop"
    await tracker.start_run(request())
    await asyncio.gather(*(tracker.log_metrics({"x": step}, step=step) for step in range(2500)))
    proxy.fault = lambda method, path: None
    proxy.seen.clear()
    await tracker.flush()
    assert proxy.seen["runs/log-batch"] == 3


def test_batches_keep_the_order_and_the_limits():
    def entries(*events):
        return [Entry(number, event) for number, event in enumerate(events, 1)]

    metrics = MetricsLogged(metrics={f"m{number}": 1.0 for number in range(600)})
    found = list(
        batches(
            entries(
                metrics,
                TagsSet(tags={"a": "1"}),
                metrics,
                ParamsLogged(params={"p": "1"}),
                ParamsLogged(params={"p": "1", "q": "2"}),
                ParamsLogged(params={"p": "2"}),
                RunEnded(status="FINISHED"),
                TagsSet(tags={f"t{number}": "x" for number in range(99)}),
                TagsSet(tags={"u": "1", "v": "1"}),
                TagsSet(tags={f"t{number}": "x" for number in range(500)}),
            )
        )
    )
    assert [[entry.seq for entry in batch] for batch in found] == [
        [1, 2],
        [3, 4, 5],
        [6],
        [7],
        [8],
        [9],
        [10],
    ]


async def test_runs_of_other_clients_take_entries_too(stack, config):
    client = MlflowClient(stack.uri)
    experiment = client.create_experiment(config.experiment_name)
    run = client.create_run(experiment)
    tracker = MLflowTracker(config)
    await tracker.log_metrics({"x": 1}, run_id=run.info.run_id)
    await tracker.end_run(run_id=run.info.run_id)
    await tracker.flush()
    found = client.get_run(run.info.run_id)
    assert (found.data.metrics, found.info.status) == ({"x": 1.0}, "FINISHED")


async def test_unknown_and_pruned_local_ids(config):
    tracker = MLflowTracker(config)
    for call in (tracker.get_run("local-" + "0" * 32), tracker.log_metrics({"x": 1}, run_id="local-0")):
        with pytest.raises(ConfigurationError, match="has no run local-0"):
            await call


async def test_artifacts_have_limits_digests_and_no_secrets(monkeypatch, stack, config, tmp_path):
    monkeypatch.setenv("AGENTCORE_MAX_ARTIFACT_MB", "0.001")
    monkeypatch.setenv("MY_API_KEY", "sk-abcdefgh12345678")
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    with pytest.raises(
        ArtifactError, match=r"over the limit of 0\.001: make it smaller, or set AGENTCORE_MAX_ARTI"
    ):
        await tracker.log_json("big.json", "x" * 2000)
    for wrong in ("../a.json", "/a.json", "a//b.json"):
        with pytest.raises(ConfigurationError, match="use a relative path"):
            await tracker.log_json(wrong, {})
    text, binary = tmp_path / "notes.txt", tmp_path / "data.bin"
    text.write_text("the key is sk-abcdefgh12345678")
    await tracker.log_artifact(text, "files")
    binary.write_bytes(b"\xff\xfe sk-abcdefgh12345678")
    with pytest.raises(ArtifactError, match="contains a secret"):
        await tracker.log_artifact(binary)
    binary.write_bytes(b"\xff\xfe fine")
    await tracker.log_artifact(binary)
    with pytest.raises(ArtifactError, match="can't be read"):
        await tracker.log_artifact(tmp_path / "missing")
    await tracker.flush()
    client = MlflowClient(stack.uri)
    assert Path(client.download_artifacts(run_id, "files/notes.txt")).read_text() == "the key is [redacted]"
    assert Path(client.download_artifacts(run_id, "data.bin")).read_bytes() == b"\xff\xfe fine"
    for path in (tmp_path / "state").rglob("*"):
        assert path.is_dir() or b"sk-abcdefgh12345678" not in path.read_bytes()


async def test_a_changed_json_artifact_is_refused(stack, config):
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    await tracker.log_json("a.json", {"x": 1})
    assert await tracker.read_json(run_id, "a.json") == {"x": 1}
    MlflowClient(stack.uri).log_text(run_id, '{"x": 2}', "a.json")
    with pytest.raises(ArtifactError, match="was changed after it was logged"):
        await tracker.read_json(run_id, "a.json")


async def test_a_payload_that_is_gone_is_told_and_holds_nothing_up(proxy, config, tmp_path):
    proxy.fault = lambda method, path: "drop"
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    await tracker.log_json("a.json", {"x": 1})
    await tracker.end_run()
    for path in (tmp_path / "state" / "payloads").rglob("*"):
        if path.is_file():
            path.unlink()
    proxy.fault = lambda method, path: None
    with pytest.raises(TrackingError, match=r"MLflow refused 1 entry: payload .* is no longer in "):
        await tracker.flush()
    (run,) = await tracker.search_runs()
    assert run.info.status == "FINISHED"


def test_a_run_whose_process_died_is_killed_not_running_for_ever(stack, tmp_path):
    """The optimization's process is gone: `runs` and `sync` tell MLflow, once."""
    config = MLflowConfig(tracking_uri=stack.uri, experiment_name="died")
    script = """
import asyncio, os
from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.lm import offline_lm
from tests.support import AsyncClassifier, colours, request
def follow(event):
    if event.kind == "trial_finished":
        pipeline.sync.flush()
        os.kill(os.getpid(), 9)
pipeline = OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), on_event=follow)
asyncio.run(pipeline.run_optimization(request(), training_data=colours()))
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": stack.uri,
        "MLFLOW_EXPERIMENT_NAME": "died",
    }
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == -9
    (run,) = runs_in(stack, "died")
    assert run.info.status == "RUNNING"
    journal, destination = open_journal(), destination_of(config)
    (marked,) = mark_interrupted(journal, destination)
    assert mark_interrupted(journal, destination) == []
    assert [item.id for item in interrupted_runs(journal)] == [marked.id]
    delivery = delivery_for(journal, config)
    delivery.flush(delivery.deliver_backlog())
    (run,) = runs_in(stack, "died")
    assert (run.info.status, run.data.tags["optimization_status"]) == ("KILLED", "interrupted")


def test_a_script_that_just_ends_delivers_first(stack, tmp_path):
    """asyncio.run has closed its loop, the interpreter is on its way out: what waits still goes."""
    script = """
import asyncio
from agentcore.dspy_optimization.tracking import MLflowTracker
from tests.support import Classifier, request
async def main():
    tracker = MLflowTracker()
    await tracker.start_run(request())
    await asyncio.gather(*(tracker.log_metrics({"x": step}, step=step) for step in range(3000)))
    await tracker.log_model_artifact(Classifier())
    await tracker.end_run()
asyncio.run(main())
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": stack.uri,
        "MLFLOW_EXPERIMENT_NAME": "script",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = runs_in(stack, "script")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["x"] == 2999
    assert "agentcore.model.optimized_model" in run.data.tags


def test_a_script_that_ends_without_a_server_says_so_in_one_line(tmp_path):
    script = """
from agentcore.dspy_optimization.tracking import MLflowTracker
from tests.support import request
tracker = MLflowTracker()
tracker.sync.start_run(request())
tracker.sync.log_metrics({"x": 1})
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}",
    }
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert time.monotonic() - started < 15
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "1 run waits in the journal; deliver with: agentcore sync" in line


async def test_the_journal_not_being_writable_is_an_error_of_the_call(config, monkeypatch):
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    journal = open_journal()

    @sa.event.listens_for(journal._engine, "begin")
    def limit(connection):
        connection.exec_driver_sql("PRAGMA max_page_count = 1")

    with pytest.raises(JournalError, match="disk is full"):
        await tracker.set_tags({f"t{number}": "x" * 4000 for number in range(99)})


async def test_logging_never_stalls_the_loop(proxy, config):
    """10,000 metrics with a server that hangs; the benchmark holds the loop to its 20 ms."""
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    proxy.fault = lambda method, path: "hang"
    turns, running = 0, True

    async def heartbeat():
        nonlocal turns
        while running:
            await asyncio.sleep(0.001)
            turns += 1

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(heartbeat())
        for first in range(0, 10_000, 100):
            await asyncio.gather(*(tracker.log_metrics({"x": step}) for step in range(first, first + 100)))
        running = False
    # A call that blocked would wait for the server, and the loop would hardly turn.
    assert turns > 20
    assert threading.active_count() < 40


async def test_a_journal_that_is_away_for_a_moment_loses_nothing(proxy, config, quick_pauses, monkeypatch):
    proxy.fault = lambda method, path: "drop"
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    await log_something(tracker)
    await tracker.end_run()
    journal, failures = open_journal(), []
    real_get, real_map = journal.payloads.get, journal.map

    def fail_once(real):
        def call(*arguments):
            if real not in failures:
                failures.append(real)
                raise JournalError("the database is locked")
            return real(*arguments)

        return call

    monkeypatch.setattr(journal.payloads, "get", fail_once(real_get))
    monkeypatch.setattr(journal, "map", fail_once(real_map))
    proxy.fault = lambda method, path: None
    delivery = (await tracker.opened())[1]
    await asyncio.to_thread(lambda: delivery.flush(timeout=60, patience=30))
    assert len(failures) == 2
    (run,) = await tracker.search_runs()
    assert (run.info.status, run.data.params) == ("FINISHED", {"alpha": "1"})
    assert await tracker.read_json(run.info.run_id, "notes/a.json") == {"a": [1, 2]}


async def test_an_artifact_that_a_gateway_refuses_waits_for_the_operator(proxy, config, quick_pauses):
    """And holds up no other run."""
    tracker = MLflowTracker(config)
    proxy.fault = lambda method, path: "413" if method == "PUT" else None
    held = await tracker.start_run(request())
    await log_something(tracker)
    await tracker.end_run()
    with pytest.raises(TrackingError, match="413"):
        await tracker.flush()
    other = await tracker.start_run(request())
    await tracker.log_metrics({"x": 1.0})
    await tracker.end_run()
    await tracker.flush(timeout=30, run_id=other)
    proxy.fault = lambda method, path: None
    await tracker.flush(timeout=30, run_id=held)
    assert await tracker.read_json(held, "notes/a.json") == {"a": [1, 2]}


async def test_a_refusal_from_before_a_flush_does_not_end_it(proxy, config, quick_pauses):
    """The operator raised the gateway's limit while an upload was on its way."""
    tracker = MLflowTracker(config)
    uploading, answer = threading.Event(), threading.Event()

    def refuse_slowly(method: str, path: str) -> str | None:
        if method != "PUT":
            return None
        uploading.set()
        assert answer.wait(60)
        return "413"

    proxy.fault = refuse_slowly
    run_id = await tracker.start_run(request())
    await log_something(tracker)
    await tracker.end_run()
    assert await asyncio.to_thread(uploading.wait, 60)
    async with asyncio.TaskGroup() as group:
        flushed = group.create_task(tracker.flush(timeout=60, run_id=run_id))
        await asyncio.sleep(0.5)
        assert not flushed.done()
        proxy.fault = lambda method, path: None
        answer.set()
    assert await tracker.read_json(run_id, "notes/a.json") == {"a": [1, 2]}


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", ".."])
async def test_artifact_names_that_no_store_takes(config, name):
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    with pytest.raises(ConfigurationError, match="use a relative path"):
        await tracker.log_json(name, {})


async def test_a_file_where_a_folder_should_be_holds_nothing_up(migrated_store, tmp_path):
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    local = MLflowConfig(
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifact_location=str(tmp_path / "artifacts")
    )
    tracker = MLflowTracker(local)
    await tracker.start_run(request())
    await tracker.log_json("a", {})
    await tracker.log_json("a/b", {})
    await tracker.log_metrics({"x": 1})
    await tracker.end_run()
    with pytest.raises(TrackingError, match="MLflow refused 1 entry"):
        await tracker.flush()
    (run,) = await tracker.search_runs()
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"x": 1.0})


async def test_text_that_is_no_unicode_is_logged(config):
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    await tracker.set_tags({"said": "lone \ud83d surrogate"})
    await tracker.log_params({"p": "\ud83d"})
    run = await tracker.get_run(run_id)
    assert run.data.tags["said"] == "lone \\ud83d surrogate"


async def test_a_tracker_goes_on_after_its_delivery_was_stopped(config):
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    stop_deliveries()
    await tracker.log_metrics({"x": 1})
    async with asyncio.timeout(20):
        await tracker.flush()
    assert (await tracker.get_run(run_id)).data.metrics == {"x": 1.0}


async def test_an_adopted_run_outlives_its_pruning(stack, config):
    client = MlflowClient(stack.uri)
    run = client.create_run(client.create_experiment(config.experiment_name))
    tracker = MLflowTracker(config)
    await tracker.log_metrics({"x": 1}, run_id=run.info.run_id)
    await tracker.flush()
    assert open_journal().prune(round(time.time() * 1000) + 1000)
    await tracker.log_metrics({"y": 2}, run_id=run.info.run_id)
    await tracker.flush()
    assert client.get_run(run.info.run_id).data.metrics == {"x": 1.0, "y": 2.0}


def test_other_credentials_make_another_connection():
    first, second = (
        MLflowConfig(tracking_uri="http://127.0.0.1:9", tracking_username="me", tracking_password=word)
        for word in ("wrong", "right")
    )
    journal = open_journal()
    assert delivery_for(journal, first) is not delivery_for(journal, second)
    assert delivery_for(journal, first) is delivery_for(journal, first.model_copy())
    assert delivery_for(journal, first).own is delivery_for(journal, second).own


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql+psycopg://h/d?user=u&password=hunter2", "postgresql+psycopg://h/d"),
        ("http://u:hunter2@h:1", "http://h:1"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_a_destination_holds_no_password(uri, shown):
    assert destination_of(MLflowConfig(tracking_uri=uri)) == shown


def test_a_forked_process_opens_its_own_journal(config, tmp_path):
    """Its parent's writer thread does not exist there."""
    script = """
import os, warnings
warnings.simplefilter("ignore")
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.tracking import limit_exit
from tests.support import request
limit_exit(None)
tracker = MLflowTracker()
run_id = tracker.sync.start_run(request())
pid = os.fork()
if not pid:
    import asyncio
    asyncio.run(asyncio.wait_for(tracker.log_metrics({"child": 1}, run_id=run_id), 20))
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
tracker.sync.log_metrics({"parent": 1})
from agentcore.tracking import MetricsLogged
from agentcore.journal import open_journal
(stream,) = open_journal().streams()
print([list(item.event.metrics) for item in open_journal().read(stream.id, of=MetricsLogged)])
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": config.tracking_uri,
        "MLFLOW_EXPERIMENT_NAME": config.experiment_name,
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[['child'], ['parent']]", done.stderr


async def test_artifacts_travel_by_the_servers_proxy_only(proxy, config):
    """The server offers presigned URLs of its S3 host, which a client elsewhere can't reach."""
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    await tracker.log_json("a.json", {"x": 1})
    assert await tracker.read_json(run_id, "a.json") == {"x": 1}
    transfers = [path for path in proxy.seen if "artifacts" in path]
    assert [path for path in transfers if path.endswith("/artifacts/a.json")]
    assert not [path for path in proxy.seen if "presigned" in path or "/mpu/" in path or "/mpd/" in path]


async def test_delivery_is_prompt(stack, config):
    """Without a flush, what is logged is in MLflow a moment later."""
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    await tracker.log_metrics({"x": 1})
    client = MlflowClient(stack.uri)
    deadline = time.monotonic() + 10
    while client.get_run(run_id).data.metrics != {"x": 1.0}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
