"""A reply counts only if it is MLflow's own, and what MLflow refuses for now is kept."""

import asyncio
import resource
import threading

import pytest
from mlflow import MlflowClient

from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ArtifactError, TrackingError
from agentcore.journal import open_journal
from agentcore.settings import MLflowConfig
from agentcore.tracking import _delivery as delivery_module
from tests.support import request


@pytest.fixture
def config(proxy, server) -> MLflowConfig:
    return server.model_copy(update={"tracking_uri": proxy.url, "request_timeout": 5.0})


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    monkeypatch.setattr(delivery_module, "_LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(delivery_module, "_FIRST_PAUSE", 0.05)


async def delivered(tracker):
    """A flush reports what is held at once; it is tried again."""
    async with asyncio.timeout(30):
        while True:
            try:
                await tracker.flush(timeout=10)
            except TrackingError:
                await asyncio.sleep(0.05)
            else:
                return


def of_uploads(fault, times):
    """The fault for the first `times` uploads."""
    left = [times]
    lock = threading.Lock()

    def choose(method, path):
        if method == "PUT" and "mlflow-artifacts" in path:
            with lock:
                left[0] -= 1
                return fault if left[0] >= 0 else None
        return None

    return choose


@pytest.mark.parametrize("fault", ["signin", "page", "nothing", "400", "405", "413"])
async def test_an_upload_that_something_in_front_answers_is_repeated(proxy, config, stack, fault):
    """`nothing` is what MLflow answers too: only the store knows that it has no file."""
    tracker = MLflowTracker(config)
    proxy.fault = of_uploads(fault, 3)
    run_id = await tracker.start_run(request())
    for number in range(3):
        await tracker.log_json(f"notes/{number}.json", {"number": number})
    await tracker.end_run()
    await delivered(tracker)
    for number in range(3):
        assert await tracker.read_json(run_id, f"notes/{number}.json") == {"number": number}
    (stream,) = open_journal().streams()
    assert open_journal().rejected(stream.id) == []


@pytest.mark.parametrize("fault", ["signin", "page"])
async def test_meanwhile_a_flush_says_what_answered(proxy, config, fault):
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    await tracker.flush(timeout=30)
    proxy.fault = lambda method, path: fault if method in ("POST", "PUT") else None
    await tracker.log_metrics({"x": 1.0})
    with pytest.raises(TrackingError, match=r"did not come from MLflow.*sign-in page"):
        await tracker.flush(timeout=20)
    proxy.fault = lambda method, path: None
    await tracker.flush(timeout=30)


@pytest.mark.parametrize("fault", ["nothing", "page", "signin"])
async def test_a_run_is_created_only_by_mlflow(proxy, config, stack, fault):
    """An empty reply with status 200 would map the run to the id ''."""
    proxy.fault = lambda method, path: fault if path.endswith("runs/create") else None
    tracker = MLflowTracker(config)
    with pytest.raises(TrackingError, match="did not come from MLflow"):
        await tracker.start_run(request())
    proxy.fault = lambda method, path: None
    await tracker.start_run(request())
    await tracker.log_metrics({"x": 1.0})
    await tracker.flush(timeout=30)
    (stream,) = open_journal().streams()
    run = MlflowClient(stack.uri).get_run(stream.tracking_id)
    assert run.data.metrics == {"x": 1.0}


async def test_a_bomb_is_not_unpacked(proxy, config):
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    await tracker.flush(timeout=30)
    proxy.fault = lambda method, path: "bomb" if path.endswith("runs/search") else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TrackingError, match="too large"):
        await tracker.search_runs()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 290, "all of it was in memory"


async def test_a_downloaded_bomb_is_cut_off(proxy, config, monkeypatch):
    monkeypatch.setenv("AGENTCORE_MAX_ARTIFACT_MB", "10")
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    await tracker.log_json("notes.json", {"a": 1})
    await tracker.flush(timeout=30)
    proxy.fault = lambda method, path: "bomb" if method == "GET" and path.endswith("notes.json") else None
    with pytest.raises(ArtifactError, match="has no readable artifact"):
        await asyncio.wait_for(tracker.read_json(run_id, "notes.json"), 60)
