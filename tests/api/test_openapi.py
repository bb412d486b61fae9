"""The OpenAPI document: complete, and true for requests that nobody thought of."""

import json

import pytest

from tests.api.conftest import PROMOTE, entry, running
from tests.registry.conftest import AGENT


async def test_the_document(config, data):
    async with running(config) as client:
        document = (await client.get("/openapi.json")).json()
    paths = document["paths"]
    for path, method in (
        ("/api/v1/{agent}/evaluate_dataset", "post"),
        ("/api/v1/optimizations", "post"),
        ("/api/v1/optimizations/{operation_id}", "get"),
        ("/api/v1/optimizations/{operation_id}/events", "get"),
        ("/api/v1/optimizations/{operation_id}/cancel", "post"),
        ("/api/v1/{agent}/predict", "post"),
        ("/api/v1/{agent}/champion", "get"),
        ("/health", "get"),
        ("/ready", "get"),
    ):
        route = paths[path][method]
        assert route["description"], path
        if path.startswith("/api"):
            assert {"401", "403", "422"} <= route["responses"].keys(), path
            assert route["security"] == [{"HTTPBearer": []}], path
        if method == "post" and "requestBody" in route:
            schema = route["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert document["components"]["schemas"][schema]["examples"], path
    assert "/login" not in paths
    assert len({route["operationId"] for item in paths.values() for route in item.values()}) == sum(
        map(len, paths.values())
    )


async def test_its_examples_are_accepted(config, data):
    """Each example of a body is one that the API takes."""
    async with running(config, {"loan_approval": entry(datasets=["*"])}, token=PROMOTE) as client:
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
        for name, path in (
            ("EvaluateRequest", "loan_approval/evaluate_dataset"),
            ("DriftRequest", "loan_approval/detect_drift"),
            ("OptimizeRequest", "optimizations"),
            ("PredictRequest", "loan_approval/predict"),
            ("FeedbackRequest", "loan_approval/feedback"),
        ):
            reply = await client.post(f"/api/v1/{path}", json=schemas[name]["examples"][0])
            assert reply.status_code == 404, (name, reply.text)  # no such data set here, and no champion
        for name, path in (("PromoteRequest", "promote"), ("RollbackRequest", "rollback")):
            reply = await client.post(f"/api/v1/loan_approval/{path}", json=schemas[name]["examples"][0])
            assert reply.json()["status"] == "failed", (name, reply.text)


@pytest.mark.timeout(300)
async def test_requests_that_nobody_thought_of(served):
    """Some of the cases that `python -m benchmarks.api.fuzz` tries in thousands."""
    schemathesis = pytest.importorskip("schemathesis", reason="Schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given, settings

    async with running(served.config, token=PROMOTE, jobs=0) as client:
        schema = schemathesis.openapi.from_dict((await client.get("/openapi.json")).json())
        cases: list = []
        for operation in schema.get_all_operations():
            strategy = operation.ok().as_strategy()

            @given(case=strategy)
            @settings(
                max_examples=12,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def collect(case):
                cases.append(case)

            collect()
        assert len(cases) > 150
        failed = []
        for case in cases:
            if case.path.endswith("/events"):
                continue  # an operation that nobody works on has an endless stream
            sent = case.as_transport_kwargs(base_url="http://127.0.0.1")
            sent.pop("cookies", None)
            sent["headers"] = {
                **{str(name): str(value) for name, value in (sent.get("headers") or {}).items()},
                "Authorization": f"Bearer {PROMOTE}",
            }
            if "wait" in json.dumps(sent.get("params") or {}):
                sent["params"] = {**sent["params"], "wait": 0}
            elif case.method == "POST":
                sent["params"] = {"wait": 0}
            try:
                reply = await client.request(**sent)
            except (UnicodeEncodeError, ValueError, TypeError):
                continue  # httpx can't send it
            if reply.status_code >= 500:
                failed.append((case.method, sent["url"], sent.get("json"), reply.text))
        assert failed == []
        assert AGENT
