"""Sends requests as customers would, and rates the answers.

    python examples/loan_approval/traffic.py http://127.0.0.1:8000 2000

The token is taken from AGENTCORE_API_TOKEN. The customers are invented, as are their applications.
"""

import asyncio
import os
import sys
from collections import Counter
from typing import Any

import httpx

from agentcore.data import DatasetManager
from agentcore.settings import Settings

AGENT = "loan_approval"
INPUTS = ("annual_income", "credit_score", "loan_amount")


async def ask(client: httpx.AsyncClient, number: int, row: dict[str, Any], versions: Counter[str]) -> None:
    """Send one application, and rate the decision."""
    customer = f"customer-{number % 500}"
    body = {"inputs": {name: row[name] for name in INPUTS}, "key": customer}
    reply = (await client.post(f"/api/v1/{AGENT}/predict", json=body)).raise_for_status().json()
    versions[f"{reply['arm']} (version {reply['version']})"] += 1
    feedback = {
        "request_id": reply["request_id"],
        "version": reply["version"],
        "score": float(reply["outputs"]["outcome"] == row["expected_outcome"]),
        "key": customer,
    }
    (await client.post(f"/api/v1/{AGENT}/feedback", json=feedback)).raise_for_status()


async def main(url: str, requests: int) -> None:
    """Send all of them, 20 at a time, and print what the two versions have answered."""
    rows = DatasetManager(Settings().data).load_dataset("loan_approval_test_set").to_list()
    headers = {"Authorization": f"Bearer {os.environ['AGENTCORE_API_TOKEN']}"}
    versions: Counter[str] = Counter()
    at_once = asyncio.Semaphore(20)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:

        async def one(number: int) -> None:
            async with at_once:
                await ask(client, number, rows[number % len(rows)], versions)

        async with asyncio.TaskGroup() as group:
            for number in range(requests):
                group.create_task(one(number))
        found = (await client.get(f"/api/v1/{AGENT}/arms")).raise_for_status().json()
    for version, count in sorted(versions.items()):
        print(f"{version}: {count / requests:.1%} of {requests:,} requests")
    for claim in found["claims"]:
        print(f"{claim['figure']}: {claim['verdict']}")
    print(found["summary"])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
