"""The best run is found by a bound, and is always the right one."""

import asyncio

import pytest

from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.tracking import RunTracker
from agentcore.tracking._best import BOUND_TAG

METRIC = "accuracy"


def logged(client, experiment, value, **tags):
    run = client.create_run(experiment, tags=tags).info.run_id
    client.log_metric(run, METRIC, value)
    client.set_terminated(run)
    return run


@pytest.fixture
async def store(config):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=config.tracking_uri)
    tracker = RunTracker(config)
    return client, await tracker._experiment(), tracker


async def best(tracker, order="DESC", **options):
    found = await tracker.get_best_run(METRIC, order, **options)
    return None if found is None else found.info.run_id


async def test_other_clients_and_deleted_runs(store, config):
    client, experiment, tracker = store
    assert await best(tracker) is None
    first = logged(client, experiment, 0.5)
    assert await best(tracker) == first
    logged(client, experiment, 0.4)
    assert await best(tracker) == first
    better = logged(client, experiment, 0.9)
    assert await best(tracker) == better
    assert await best(RunTracker(config)) == better  # by the experiment's tag
    client.delete_run(better)
    assert await best(tracker) == first
    assert await best(RunTracker(config)) == first
    client.restore_run(better)
    assert await best(tracker) == better
    client.log_metric(better, METRIC, 0.1)  # its latest value counts
    assert await best(tracker) == first
    client.update_run(first, status="FAILED")
    assert (await tracker.get_best_run(METRIC)).data.metrics[METRIC] == 0.4


async def test_ties_go_to_the_earliest(store):
    client, experiment, tracker = store
    late = client.create_run(experiment, start_time=2000).info.run_id
    early = client.create_run(experiment, start_time=1000).info.run_id
    for run in (late, early):
        client.log_metric(run, METRIC, 1.0)
    client.set_terminated(late)
    assert await best(tracker) == late
    client.set_terminated(early)
    assert await best(tracker) == early


async def test_the_lowest_and_tags(store):
    client, experiment, tracker = store
    low, mine = logged(client, experiment, 0.1), logged(client, experiment, 0.5, team="a")
    for value in (0.6, 0.7, 0.8):
        logged(client, experiment, value, team="b")
    for _ in range(2):
        assert await best(tracker, "ASC") == low
        assert await best(tracker, tags={"team": "a"}) == mine
        assert (await tracker.get_best_run(METRIC)).data.metrics[METRIC] == 0.8
    for _ in range(25):
        logged(client, experiment, 0.9)
    assert await best(tracker, tags={"team": "a"}) == mine
    lower = logged(client, experiment, -5.0)
    assert await best(tracker, "ASC") == lower


async def test_infinities_are_left_out(store):
    client, experiment, tracker = store
    first = logged(client, experiment, 0.5)
    assert await best(tracker) == first
    logged(client, experiment, float("inf"))
    assert await best(tracker) == first
    better = logged(client, experiment, 0.6)
    assert await best(tracker) == better


@pytest.mark.parametrize("text", ["1e300", "nan", "inf", "-1e308", "' OR 1=1", "", "1e17"])
async def test_a_changed_bound_changes_nothing(store, config, text):
    client, experiment, tracker = store
    run = logged(client, experiment, 0.5)
    assert await best(tracker) == run
    (tag,) = [name for name in client.get_experiment(experiment).tags if name.startswith(BOUND_TAG)]
    client.set_experiment_tag(experiment, tag, text or " ")
    assert await best(RunTracker(config)) == run


@pytest.mark.parametrize("value", [3e-7, -2.5e-9, 4e17, -1e200, 1e-310, 0.1 + 0.2])
async def test_very_small_and_very_large_values(store, config, value):
    client, experiment, _ = store
    run = logged(client, experiment, value)
    for owner in (RunTracker(config), RunTracker(config)):
        for _ in range(2):
            assert await best(owner) == run


async def test_two_writers_at_once(store, config):
    tracker, other = store[2], RunTracker(config)

    async def write(owner, value):
        run = await owner.start_run()
        await owner.log_metrics({METRIC: value}, run_id=run)
        await owner.end_run(run_id=run)
        await owner.flush(run_id=run)
        await owner.get_best_run(METRIC)

    for number in range(4):
        await asyncio.gather(write(tracker, number + 0.1), write(other, number + 0.2))
        for owner in (tracker, other, RunTracker(config)):
            assert (await owner.get_best_run(METRIC)).data.metrics[METRIC] == number + 0.2


async def test_the_proven_gain(store, config):
    client, experiment, _ = store
    tracker = MLflowTracker(config)

    def proven(low, quality, *, digest="d", target="t", start):
        tags = {"target_type": "component", "target_id": target}
        run = client.create_run(experiment, tags=tags, start_time=start).info.run_id
        client.log_param(run, "test_digest", digest)
        client.log_metric(run, "improvement_low", low)
        client.log_metric(run, "optimized_quality_low", quality)
        client.set_terminated(run)
        return run

    assert await tracker.get_best_run() is None
    first = proven(0.1, 0.7, start=1000)
    proven(0.3, 0.5, start=2000)
    unproven = proven(-0.1, 0.95, start=3000)
    for _ in range(2):
        assert (await tracker.get_best_run()).info.run_id == first
    other = proven(0.2, 0.6, digest="e", start=4000)
    for _ in range(2):
        assert (await tracker.get_best_run()).info.run_id == other
    client.delete_run(other)
    assert (await tracker.get_best_run()).info.run_id == first
    assert unproven
