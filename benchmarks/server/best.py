"""Compare ways to find the best of many runs: `python -m benchmarks.server.best --runs 100000`.

Fills MLflow's tables in Postgres by SQL with FINISHED runs of 15 metrics each, then asks, side by side in
each round: MLflow's own ordered search, AgentCore's search with a bound in a process that knows it, and in
one that reads it from the experiment. Afterwards checks that a better run logged by another client, a deleted
best run and two writers at once are noticed.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import psycopg
from mlflow import MlflowClient

from agentcore import MLflowConfig, MLflowTracker
from agentcore.tracking import best_proven, best_run_query, newest_proven
from tests.support.stack import Stack

METRIC = "improvement_percentage"


def fill(stack: Stack, experiment_id: str, runs: int) -> None:
    """Insert runs with 15 metrics, 3 tags and 3 parameters each."""
    url = str(stack.postgres.get_uri(database="mlflow"))
    names = [METRIC, "optimized_quality_low", "improvement_low", *(f"metric_{n}" for n in range(12))]
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, source_version, "
            "user_id, status, start_time, end_time, lifecycle_stage, artifact_uri, experiment_id) SELECT "
            "md5(n::text), 'opt_component_support_20261125_' || lpad(n::text, 6, '0'), 'LOCAL', 'agentcore', "
            "'', '', 'somebody', 'FINISHED', 1700000000000 + n * 1000, 1700000000000 + n * 1000 + 500, "
            "'active', 'mlflow-artifacts:/' || %s || '/' || md5(n::text) || '/artifacts', %s "
            "FROM generate_series(1, %s) n",
            [experiment_id, int(experiment_id), runs],
        )
        for table in ("metrics", "latest_metrics"):
            for name in names:
                connection.execute(
                    f"INSERT INTO {table} (key, value, timestamp, step, is_nan, run_uuid) SELECT %s, "
                    "(('x' || substr(md5(n::text || %s), 1, 8))::bit(32)::bigint %% 1000000) / 2000000.0, "
                    "1700000000000, 0, false, md5(n::text) FROM generate_series(1, %s) n",
                    [name, name, runs],
                )
        for key, value in (("target_type", "'component'"), ("target_id", "'t' || n %% 5"), ("team", "'a'")):
            connection.execute(
                f"INSERT INTO tags (key, value, run_uuid) SELECT %s, {value}, md5(n::text) "
                "FROM generate_series(1, %s) n",
                [key, runs],
            )
        connection.execute(
            "INSERT INTO params (key, value, run_uuid) SELECT 'test_digest', 'd', md5(n::text) "
            "FROM generate_series(1, %s) n",
            [runs],
        )
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")


async def timed(work: object) -> tuple[float, str]:
    began = time.perf_counter()
    run = await work  # type: ignore[misc]
    return (time.perf_counter() - began) * 1000, run.info.run_id


async def measure(stack: Stack, runs: int, rounds: int) -> None:
    config = MLflowConfig(tracking_uri=stack.uri, experiment_name="many", request_timeout=60)
    client = MlflowClient(tracking_uri=stack.uri)
    experiment_id = client.create_experiment("many")
    began = time.perf_counter()
    fill(stack, experiment_id, runs)
    print(f"filled {runs:,} runs in {time.perf_counter() - began:.0f} s")
    query, order = best_run_query(METRIC, "DESC")
    tracker = MLflowTracker(config)

    async def plain() -> object:
        return (await tracker.search_runs(query, 1, order))[0]

    ways = {"MLflow's ordered search": [], "bound known": [], "bound read from the experiment": []}
    proven = {"proven gain, all searched": [], "proven gain, bounds known": []}
    await tracker.get_best_run(METRIC)
    await tracker.get_best_run()
    for _ in range(rounds):
        for name, work in (
            ("MLflow's ordered search", plain()),
            ("bound known", tracker.get_best_run(METRIC)),
            ("bound read from the experiment", MLflowTracker(config).get_best_run(METRIC)),
        ):
            ways[name].append(await timed(work))
        proven["proven gain, all searched"].append(await timed(searched(client, experiment_id)))
        proven["proven gain, bounds known"].append(await timed(tracker.get_best_run()))
    assert len({run_id for found in ways.values() for _, run_id in found}) == 1
    print(f"| way | median ms of {rounds} | times as fast |\n|---|---|---|")
    for group in (ways, proven):
        base = statistics.median(ms for ms, _ in next(iter(group.values())))
        for name, found in group.items():
            middle = statistics.median(ms for ms, _ in found)
            print(f"| {name} | {middle:.0f} | {base / middle:.1f} |")
    await check(client, experiment_id, tracker, config)


async def searched(client: MlflowClient, experiment_id: str) -> object:
    """The best run with a proven gain, without bounds."""
    rankings = (newest_proven({}), best_proven({"target_type": "component", "target_id": "t0"}, "d"))
    for ranking in rankings:
        found = client.search_runs(
            [experiment_id], ranking.filter_string, 1, 1, list(ranking.order_by)
        )  # fmt: skip
    return found[0]


async def check(
    client: MlflowClient, experiment_id: str, tracker: MLflowTracker, config: MLflowConfig
) -> None:
    """A better run logged by another client, its deletion, and two writers at once."""
    before = (await tracker.get_best_run(METRIC)).info.run_id
    better = client.create_run(experiment_id).info.run_id
    client.log_metric(better, METRIC, 3.0)
    client.set_terminated(better)
    assert (await tracker.get_best_run(METRIC)).info.run_id == better
    client.delete_run(better)
    assert (await tracker.get_best_run(METRIC)).info.run_id == before
    other = MLflowTracker(config)
    for number in range(10):
        async with asyncio.TaskGroup() as group:
            for owner, value in ((tracker, 4.0 + number), (other, 4.5 + number)):
                group.create_task(log(owner, value))
        for owner in (tracker, other, MLflowTracker(config)):
            assert (await owner.get_best_run(METRIC)).data.metrics[METRIC] == 4.5 + number
    print("a better run of another client, a deleted best run, two writers at once: noticed")


async def log(tracker: MLflowTracker, value: float) -> None:
    run = await tracker.start_run()
    await tracker.log_metrics({METRIC: value}, run_id=run)
    await tracker.end_run(run_id=run)
    await tracker.flush(run_id=run)
    await tracker.get_best_run(METRIC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        stack = Stack(Path(directory))
        try:
            asyncio.run(measure(stack, arguments.runs, arguments.rounds))
        finally:
            stack.stop()


if __name__ == "__main__":
    main()
