"""Requests of an agent as MLflow traces, without its tracing API, whose queue and provider are global."""

import json
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentcore.tracking._events import TraceRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Span, TraceInfo

_PREVIEW = 1000
_STORED_IN_DATABASE = "TRACKING_STORE"


def log_traces(client: "MlflowClient", run_id: str, traces: Sequence[TraceRecord]) -> None:
    """Write traces of one span each. Writing one again changes nothing."""
    from mlflow.entities import TraceData

    experiment_id = client.get_run(run_id).info.experiment_id
    tracing = client._tracing_client
    spans = [_span(item, experiment_id) for item in traces]
    in_database = _log_spans(tracing, experiment_id, spans)
    for item, span in zip(traces, spans, strict=True):
        known = tracing.start_trace(_info(item, experiment_id, run_id))
        if not in_database or known.tags.get("mlflow.trace.spansLocation") != _STORED_IN_DATABASE:
            tracing._upload_trace_data(known, TraceData(spans=[span]))


def _log_spans(tracing: Any, experiment_id: str, spans: "list[Span]") -> bool:
    """Whether the server keeps spans in its database; others keep them as artifacts."""
    from mlflow.exceptions import RestException

    try:
        tracing.log_spans(experiment_id, spans)
    except NotImplementedError:
        return False
    except RestException as error:
        if "not supported" not in str(error):
            raise
        return False
    return True


def _info(trace: TraceRecord, experiment_id: str, run_id: str) -> "TraceInfo":
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    return TraceInfo(
        trace_id=f"tr-{trace.id}",
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=trace.start_ms,
        state=TraceState.ERROR if trace.failed else TraceState.OK,
        request_preview=trace.request[:_PREVIEW],
        response_preview=trace.response[:_PREVIEW],
        client_request_id=trace.request_id,
        execution_duration=round(trace.duration_ms),
        trace_metadata={"mlflow.sourceRun": run_id, "mlflow.trace_schema.version": "3"},
        tags={"mlflow.traceName": trace.name, **trace.tags},
    )


def _span(trace: TraceRecord, experiment_id: str) -> "Span":
    from mlflow.entities import Span

    start = trace.start_ms * 1_000_000
    attributes = {
        "mlflow.traceRequestId": f"tr-{trace.id}",
        "mlflow.experimentId": experiment_id,
        "mlflow.spanType": "AGENT",
    }
    return Span.from_dict(
        {
            "trace_id": _base64(trace.id),
            "span_id": _base64(uuid.uuid5(uuid.NAMESPACE_OID, trace.id).hex[:16]),
            "parent_span_id": None,
            "name": trace.name,
            "start_time_unix_nano": start,
            "end_time_unix_nano": start + round(trace.duration_ms * 1e6),
            "events": [],
            "status": {"code": "STATUS_CODE_ERROR" if trace.failed else "STATUS_CODE_OK", "message": ""},
            "attributes": {
                **{name: json.dumps(value) for name, value in attributes.items()},
                "mlflow.spanInputs": trace.request,
                "mlflow.spanOutputs": trace.response,
            },
        }
    )


def _base64(digits: str) -> str:
    import base64

    return base64.b64encode(bytes.fromhex(digits)).decode()
