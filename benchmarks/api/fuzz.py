"""Requests that nobody thought of, made by Schemathesis from the OpenAPI document, against a real server.

    python -m benchmarks.api.fuzz --cases 10000

Half of them fit the document, half don't. A reply of 500 or more is a fault, and so is a dead server.
"""

import argparse
from collections import Counter
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.api._server import AGENT, TOKEN, served


def aim(case: Any, number: int) -> None:
    """Let most cases name the agent and its data sets: others only get as far as a 404."""
    if number % 4 and "agent" in (case.path_parameters or {}):
        case.path_parameters["agent"] = AGENT
    if number % 3 and isinstance(case.body, dict):
        for name in ("dataset_name", "baseline_dataset", "current_dataset"):
            if name in case.body:
                case.body[name] = "loan_approval_test_set"
        if "agent" in case.body:
            case.body["agent"] = AGENT
        if "inputs" in case.body and number % 2:
            case.body["inputs"] = {"annual_income": number, "credit_score": 700, "loan_amount": "100"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    wanted = parser.parse_args().cases
    codes: Counter[int] = Counter()
    faults: list[Any] = []
    with served(AGENTCORE_API_JOBS="0") as server, httpx.Client(timeout=60) as client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        document = client.get(f"{server.url}/openapi.json", headers=headers).json()
        schema = schemathesis.openapi.from_dict(document)
        operations = [item.ok() for item in schema.get_all_operations()]
        operations = [
            item for item in operations if not item.path.endswith("/events")
        ]  # endless without a worker
        each = round(1.3 * wanted / (2 * len(operations)))  # some operations have too few different requests
        for operation in operations:
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=each,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                def send(case: Any) -> None:
                    aim(case, sum(codes.values()))
                    sent = case.as_transport_kwargs(base_url=server.url)
                    sent.pop("cookies", None)
                    given_headers = {
                        str(name): str(value) for name, value in (sent.get("headers") or {}).items()
                    }
                    sent["headers"] = {**given_headers, **headers}
                    if "wait" in str(sent.get("params")) or case.method == "POST":
                        sent["params"] = {**(sent.get("params") or {}), "wait": 0}
                    try:
                        reply = client.request(**sent)
                    except (UnicodeError, ValueError, TypeError, httpx.LocalProtocolError):
                        codes[0] += 1  # a client can't send it
                        return
                    codes[reply.status_code] += 1
                    if reply.status_code >= 500:
                        faults.append((case.method, sent["url"], sent.get("json"), reply.text[:300]))

                try:
                    send()
                except Exception as error:  # noqa: BLE001 - nothing can be generated that doesn't fit
                    print(f"{operation.method} {operation.path}, {mode.name}: {type(error).__name__}")
        alive = client.get(f"{server.url}/health").status_code
        log = server.log.read_text()
    sent = sum(codes.values()) - codes[0]
    print(f"{sent:,} requests to {len(operations)} operations (and {codes[0]:,} that can't be sent)")
    print(", ".join(f"{code}: {count:,}" for code, count in sorted(codes.items()) if code))
    print(f"5xx: {len(faults)}; tracebacks in the log: {log.count('Traceback')}")
    print(f"alive afterwards: {alive == 200}")
    for item in faults[:10]:
        print(item)


if __name__ == "__main__":
    main()
