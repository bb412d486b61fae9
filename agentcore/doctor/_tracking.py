"""MLflow as clients see it: version, permission, clock, and an artifact's round trip."""

import tempfile
import time
import uuid
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from agentcore._redaction import first_line
from agentcore.doctor._finding import Finding
from agentcore.errors import TrackingError
from agentcore.settings import ENV_FILE, MLflowConfig, shown_uri
from agentcore.tracking import connection_to

_SKEW_SECONDS = 5.0
"""More skew shows in the order of runs; from 15 minutes on, S3 rejects signatures."""
_SECONDS = 5


def check_tracking(config: MLflowConfig) -> list[Finding]:
    uri = shown_uri(config.tracking_uri)
    if not config.tracking_uri.startswith("http"):
        return [_store(config, uri)]
    try:
        reply = _ask(config, "/api/2.0/mlflow/experiments/search", {"max_results": 1})
    except Exception as error:  # noqa: BLE001 - whatever the transport raises
        return [Finding("tracking", "failed", f"{uri}: {_reason(error)}", _advice_without_reply(error))]
    if reply.status_code != 200:
        return [Finding("tracking", "failed", f"{uri} answers {reply.status_code}", _advice(reply))]
    return [_versions(config, uri)]


def _versions(config: MLflowConfig, uri: str) -> Finding:
    from mlflow.version import VERSION

    try:
        reply = _ask(config, "/version")
    except Exception as error:  # noqa: BLE001
        return Finding("tracking", "failed", f"{uri}/version: {_reason(error)}", "Try again")
    theirs = reply.text.strip()
    if reply.status_code != 200 or not theirs[:1].isdigit():
        return Finding("tracking", "ok", f"{uri} answers; it doesn't report its version (here: {VERSION})")
    if theirs.split(".")[0] != VERSION.split(".")[0]:
        advice = "Upgrade the older of the two: LoggedModels and datasets differ between major versions"
        return Finding("tracking", "failed", f"{uri} runs MLflow {theirs}, but here is {VERSION}", advice)
    return Finding("tracking", "ok", f"{uri} runs MLflow {theirs} (here: {VERSION})")


def _store(config: MLflowConfig, uri: str) -> Finding:
    try:
        connection_to(config).run(lambda client: client.search_experiments(max_results=1))
    except TrackingError as error:
        return Finding("tracking", "failed", str(error), "Set MLFLOW_TRACKING_URI")
    return Finding("tracking", "ok", f"{uri} opens (no server)")


def check_clock(config: MLflowConfig) -> list[Finding]:
    if not config.tracking_uri.startswith("http"):
        return [Finding("clock", "skipped", "no server to compare with")]
    try:
        before = time.time()
        reply = _ask(config, "/version")
        here = (before + time.time()) / 2
        there = parsedate_to_datetime(reply.headers["Date"]).timestamp() + 0.5  # it is in whole seconds
    except Exception as error:  # noqa: BLE001
        return [Finding("clock", "skipped", f"the server doesn't report its time ({_reason(error)})")]
    skew = there - here
    if abs(skew) > _SKEW_SECONDS:
        direction = "ahead of" if skew > 0 else "behind"
        told = f"the server's clock is {abs(skew):.0f} s {direction} this machine's"
        return [Finding("clock", "failed", told, "Sync both clocks with NTP")]
    return [
        Finding("clock", "ok", f"the server's clock and this one differ by less than {_SKEW_SECONDS:g} s")
    ]


def check_artifacts(config: MLflowConfig) -> list[Finding]:
    """Write, read and delete a file in the experiment's artifact location."""
    content = uuid.uuid4().hex * 1000
    done: list[str] = []
    root = ""

    def round_trip(client: Any) -> float:
        nonlocal root
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        experiment = client.get_experiment_by_name(config.experiment_name) or client.get_experiment("0")
        root = config.artifact_location or experiment.artifact_location
        place = f"{root.rstrip('/')}/agentcore-doctor-{uuid.uuid4().hex[:8]}"
        store = get_artifact_repository(place, tracking_uri=config.tracking_uri)
        with tempfile.TemporaryDirectory() as scratch:
            sent = Path(scratch, "doctor.txt")
            sent.write_text(content)
            began = time.monotonic()
            store.log_artifact(str(sent))
            done.append("written")
            received = store.download_artifacts("doctor.txt", str(Path(scratch)))
            if Path(received).read_text() != content:
                raise OSError("read back different content than was written")
            done.append("read")
            store.delete_artifacts("doctor.txt")
            return time.monotonic() - began

    try:
        seconds = connection_to(config).run(round_trip)
    except TrackingError as error:
        message = f"{' and '.join(done)}, but then: {error}" if done else str(error)
        advice = "Check that the directory is writable"
        if config.tracking_uri.startswith("http"):
            advice = (
                "This user may not write here: ask an administrator of that MLflow (docs/operations.md)"
                if "403" in message
                else "Look at the server's log: its S3 endpoint, bucket and keys"
            )
        if done == ["written", "read"]:
            advice = "Runs can be tracked, but deleted artifacts stay in the store, and mlflow gc will fail"
        return [Finding("artifacts", "failed", message, advice)]
    return [
        Finding("artifacts", "ok", f"written, read and deleted under {shown_uri(root)} in {seconds:.1f} s")
    ]


def _ask(config: MLflowConfig, path: str, body: dict[str, Any] | None = None) -> Any:
    """One request with MLflow's own credentials and TLS settings, without retries."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    from agentcore.tracking import prepare_environment

    prepare_environment(config)
    return http_request(
        get_default_host_creds(config.tracking_uri),
        path,
        "POST" if body is not None else "GET",
        max_retries=0,
        timeout=_SECONDS,
        raise_on_status=False,
        **({"json": body} if body is not None else {}),
    )


_REASONS = (
    "Connection refused",
    "Name or service not known",
    "nodename nor servname provided",
    "No route to host",
    "Network is unreachable",
    "CERTIFICATE_VERIFY_FAILED",
    "WRONG_VERSION_NUMBER",
    "timed out",
)


def _reason(error: Exception) -> str:
    """The underlying network error, without its wrappers."""
    text = str(error)
    return next((reason for reason in _REASONS if reason in text), first_line(error))


def _advice(reply: Any) -> str:
    status, text = reply.status_code, reply.text.lower()
    if status == 401:
        return "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if status == 403 and ("host" in text or "rebinding" in text):
        return (
            "It doesn't accept this host name: add it to the server's MLFLOW_SERVER_ALLOWED_HOSTS, with "
            "the port (mlflow.example.com:5000, or mlflow.example.com:*)"
        )
    if status == 403:
        return "This user lacks the permission: ask an administrator of that MLflow"
    if status == 404:
        return "No MLflow there: check MLFLOW_TRACKING_URI, including its path"
    if status == 503 or "sqlalche.me" in text or "database" in text:
        return "Its database doesn't answer: look at Postgres"
    return "Check the server's log"


def _advice_without_reply(error: Exception) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            "Its certificate is signed by an unknown authority: set "
            "MLFLOW_TRACKING_SERVER_CERT_PATH to that authority's certificate"
        )
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return "It doesn't speak TLS on this port: use http:// in MLFLOW_TRACKING_URI"
    if "timed out" in text.lower():
        return "It accepts connections but doesn't answer: check the server's log and its database"
    # Without the env file, compose would recreate the stack with the public default passwords.
    option = f" --env-file {ENV_FILE}" if Path(ENV_FILE).is_file() else ""
    return f"Start it (docker compose -f docker-compose.mlflow.yml{option} up -d), or set MLFLOW_TRACKING_URI"
