"""A run is never the worse for its neighbours, and what can be restored is waited for."""

import asyncio

import pytest
from mlflow import MlflowClient

from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ArtifactError, ConfigurationError, TrackingError
from agentcore.journal import open_journal
from agentcore.tracking import MetricsLogged
from agentcore.tracking import _delivery as delivery_module
from agentcore.tracking._digests import DIGESTS_TAG, digest_tags, digests_of
from tests.support import request


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    monkeypatch.setattr(delivery_module, "_LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(delivery_module, "_FIRST_PAUSE", 0.05)


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_what_was_deleted_is_waited_for(config, command, monkeypatch, what):
    client = MlflowClient(config.tracking_uri)
    tracker = MLflowTracker(config).sync
    run_id = tracker.start_run(request())
    tracker.log_metrics({"before": 1.0})
    tracker.flush(timeout=30)
    experiment = client.get_run(run_id).info.experiment_id
    if what == "run":
        client.delete_run(run_id)
    else:
        client.delete_experiment(experiment)
    tracker.log_metrics({"after": 1.0})
    tracker.log_params({"a": 1})
    tracker.log_json("notes.json", {"a": 1})
    tracker.end_run()
    with pytest.raises(TrackingError, match="is deleted"):
        tracker.flush(timeout=20)
    (stream,) = open_journal().streams()
    assert stream.waiting > 0
    assert open_journal().rejected(stream.id) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    code, printed = command("sync")
    assert (code, printed.out) == (3, "")
    assert "is deleted" in printed.err
    if what == "run":
        client.restore_run(run_id)
    else:
        client.restore_experiment(experiment)
    tracker.deliver_backlog(30)
    run = client.get_run(run_id)
    assert run.data.metrics == {"before": 1.0, "after": 1.0}
    assert run.data.params == {"a": "1"}
    assert run.info.status == "FINISHED"
    assert tracker.read_json(run_id, "notes.json") == {"a": 1}


BAD_NAMES = ["recall@5", "a//b", "/a", "a/", "../a", "", "x" * 251, "a\nb", "\0", 3, "\ud800"]
BAD_PATHS = ["a\nb.txt", "a#b", "a?b", "a%2eb", "../a", "/a", "a//b", "\ud800", "x/" * 600 + "y"]
ODD_PATHS = [
    "report (1).html",
    "/".join("d" * 20) + "/x.json",
    "ä/日本.json",
    "100%.json",
    'a"b<c>|*.json',
    "b" * 190,
]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_names_are_checked_at_the_call(config, name):
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    for log in (tracker.log_metrics, tracker.log_params, tracker.set_tags):
        with pytest.raises(ConfigurationError, match="MLflow takes letters"):
            await log({name: 1})
    with pytest.raises(ConfigurationError, match="tag name"):
        await tracker.start_run(request(), tags={name: "x"})
    await tracker.log_metrics({"recall at 5": 1, "p/q.r-s:t_u ä": 2})
    await tracker.flush(timeout=30)


@pytest.mark.parametrize(
    ("value", "step"),
    [
        ("0.5", 0),
        (float("nan"), 0),
        (float("inf"), 0),
        ([1], 0),
        ("x", 0),
        (10**400, 0),
        (1, 2**63),
        (1, 0.5),
        (1, "1"),
    ],
    ids=str,
)
async def test_values_and_steps_are_checked_at_the_call(config, value, step):
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    with pytest.raises(ConfigurationError):
        await tracker.log_metrics({"x": value}, step=step)
    assert open_journal().streams()[0].last_seq == 1


@pytest.mark.parametrize("path", BAD_PATHS)
async def test_paths_are_checked_at_the_call(config, path):
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    with pytest.raises(ConfigurationError, match="artifact path"):
        await tracker.log_json(path, {})


@pytest.mark.parametrize("path", ODD_PATHS)
async def test_other_names_are_stored_and_read_back(server, path):
    tracker = MLflowTracker(server.model_copy(update={"request_timeout": 10}))
    run_id = await tracker.start_run(request())
    await tracker.log_json(path, {"a": 1})
    await tracker.flush(timeout=30)
    assert await tracker.read_json(run_id, path) == {"a": 1}
    run = await tracker.get_run(run_id)
    assert list(digests_of(run.data.tags)) == [path]
    await tracker.set_tags(digest_tags({path: "0" * 64}), run_id=run_id)
    with pytest.raises(ArtifactError, match="was changed"):
        await tracker.read_json(run_id, path)
    await tracker.set_tags({DIGESTS_TAG: "no JSON"}, run_id=run_id)
    with pytest.raises(ArtifactError, match="somebody has changed it"):
        await tracker.read_json(run_id, path)


async def test_the_digests_of_many_artifacts_are_in_few_tags(config):
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    for number in range(120):
        await tracker.log_json(f"some/long/folder/{number}.json", {"number": number})
    await tracker.log_json("some/long/folder/7.json", {"number": "again"})
    await tracker.flush(timeout=60)
    run = await tracker.get_run(run_id)
    names = [name for name in run.data.tags if name.startswith(DIGESTS_TAG)]
    assert sorted(names) == [DIGESTS_TAG, f"{DIGESTS_TAG}.2", f"{DIGESTS_TAG}.3"]
    assert all(len(run.data.tags[name]) <= 5000 for name in names)
    assert len(digests_of(run.data.tags)) == 120
    assert await tracker.read_json(run_id, "some/long/folder/7.json") == {"number": "again"}


@pytest.mark.parametrize("text", ["\0 at the start", "in the \0 middle", "lone \ud800 surrogate"])
async def test_text_that_a_database_cannot_hold_is_escaped(server, text):
    tracker = MLflowTracker(server.model_copy(update={"request_timeout": 10}))
    run_id = await tracker.start_run(run_name=text, tags={"note": text})
    await tracker.log_params({"p": text})
    await tracker.set_tags({"t": text})
    await tracker.flush(timeout=30)
    run = await tracker.get_run(run_id)
    escaped = text.replace("\0", "\\x00").replace("\ud800", "\\ud800")
    assert {run.info.run_name, run.data.tags["note"], run.data.tags["t"], run.data.params["p"]} == {escaped}


async def test_a_refused_entry_is_told_once_and_to_its_own_run(config):
    tracker = MLflowTracker(config)
    first = await tracker.start_run(run_name="first")
    await tracker.log_params({"a": 1})
    await tracker.log_params({"a": 2})  # MLflow refuses to change a parameter
    second = await tracker.start_run(run_name="second")
    await tracker.log_metrics({"x": 1.0})
    await tracker.flush(timeout=30, run_id=second)
    with pytest.raises(TrackingError, match="refused 1 entry"):
        await tracker.flush(timeout=30, run_id=first)
    await tracker.flush(timeout=30, run_id=first)
    await tracker.flush(timeout=30)


async def test_what_mlflows_client_never_accepts_is_refused_and_not_retried_for_ever(config):
    """An earlier version let it into the journal."""
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    await tracker.flush(timeout=30)
    (stream,) = open_journal().streams()
    await open_journal().write(stream.id, [MetricsLogged(metrics={"x": 1.0}, step=2**63)])
    await tracker.log_metrics({"y": 1.0})
    with pytest.raises(TrackingError, match="refused 1 entry"):
        await tracker.flush(timeout=30)
    assert MlflowClient(config.tracking_uri).get_run(run_id).data.metrics == {"y": 1.0}


async def test_a_flush_ends_while_others_go_on_logging(config):
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    going = True

    async def keep_logging():
        step = 0
        while going:
            step += 1
            await tracker.log_metrics({"x": 1.0}, step=step)

    logging = asyncio.create_task(keep_logging())
    await asyncio.sleep(0)
    await asyncio.wait_for(tracker.flush(), 30)
    await asyncio.wait_for(tracker.search_runs(), 30)
    going = False
    await logging


async def test_a_database_that_is_away_delays_nothing(config):
    import time

    from tests.support.ports import free_port

    away = config.model_copy(
        update={
            "tracking_uri": f"postgresql+psycopg://u:pw@127.0.0.1:{free_port()}/mlflow",
            "request_timeout": 2.0,
        }
    )
    tracker = MLflowTracker(away)
    began = time.monotonic()
    run_id = await tracker.start_run(request())
    assert run_id.startswith("local-")
    assert time.monotonic() - began < 20  # MLflow itself tries for 100 s
    with pytest.raises(TrackingError) as caught:
        await tracker.flush(timeout=10)
    assert "pw" not in str(caught.value)
