"""Predictions at 90/10 through a real server: shares, stickiness, logs, and how long they take.

    python -m benchmarks.api.traffic --requests 10000

1,000 keys; 40 connections. Afterwards every request has to be in MLflow as a trace with its version.
"""

import argparse
import asyncio
import time
from collections import Counter

import httpx
import numpy as np
from mlflow import MlflowClient

from agentcore.tracking import RunTracker
from benchmarks.api._server import AGENT, served

INPUTS = {"annual_income": 85000, "credit_score": 750, "loan_amount": 250000}


async def send(client: httpx.AsyncClient, requests: int, at_once: int) -> list[tuple[str, str, str, float]]:
    """Key, request id, version and seconds of each."""
    gate = asyncio.Semaphore(at_once)

    async def one(number: int) -> tuple[str, str, str, float]:
        key = f"customer-{number % 1000}"
        async with gate:
            began = time.perf_counter()
            reply = await client.post(f"/api/v1/{AGENT}/predict", json={"inputs": INPUTS, "key": key})
            seconds = time.perf_counter() - began
        reply.raise_for_status()
        return key, reply.json()["request_id"], reply.json()["version"], seconds

    return await asyncio.gather(*(one(number) for number in range(requests)))


async def work(requests: int) -> None:
    with served() as server:
        async with server.client(limits=httpx.Limits(max_connections=40)) as client:
            began = time.perf_counter()
            found = await send(client, requests, 40)
            seconds = time.perf_counter() - began
            arms = (await client.get(f"/api/v1/{AGENT}/arms")).json()
            (one,) = [await send(client, 200, 1)]
        versions = Counter(version for _, _, version, _ in found)
        by_key: dict[str, set[str]] = {}
        for key, _, version, _ in found:
            by_key.setdefault(key, set()).add(version)
        times = np.asarray([item for *_, item in found]) * 1000
        alone = np.asarray([item for *_, item in one]) * 1000
        median, p99 = np.percentile(times, (50, 99))
        twice = sum(len(item) > 1 for item in by_key.values())
        counted = arms["champion"]["requests"] + arms["challenger"]["requests"]
        print(f"{requests:,} requests in {seconds:.0f} s ({requests / seconds:.0f} a second), none lost")
        print(f"share of the challenger: {versions['2'] / requests:.2%} of the requests")
        print(f"keys with two versions: {twice} of {len(by_key):,}")
        print(f"counted by the comparison: {counted:,}")
        print(f"latency with 40 connections: median {median:.0f} ms, p99 {p99:.0f} ms")
        print(f"latency with one: median {np.median(alone):.1f} ms")
        print(arms["summary"], flush=True)
        await asyncio.sleep(20)  # the last window
        await RunTracker(server.config).deliver_backlog(3600)
        store = MlflowClient(server.config.tracking_uri)
        experiment = store.get_experiment_by_name(f"/Shared/ai-agents/{AGENT}")
        logged: dict[str, str] = {}
        token = None
        while True:
            page = store.search_traces(
                locations=[experiment.experiment_id], max_results=500, page_token=token
            )
            logged |= {item.info.client_request_id: item.info.tags["agent_version"] for item in page}
            token = page.token
            if not token:
                break
        right = sum(logged.get(request_id) == version for _, request_id, version, _ in found)
        print(f"traces in MLflow with the right version: {right:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    asyncio.run(work(parser.parse_args().requests))


if __name__ == "__main__":
    main()
