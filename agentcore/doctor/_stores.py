"""Checks of the stores behind MLflow: its database, and its object store directly."""

import uuid
from typing import Any
from urllib.parse import unquote

from agentcore._redaction import first_line
from agentcore.doctor._finding import Finding
from agentcore.settings import StackSettings, shown_uri

_PART = 5 * 1024 * 1024
"""Minimum size that S3 accepts for a part of a multipart upload."""
_SECONDS = 5


def check_database(stack: StackSettings) -> list[Finding]:
    """Check that MLflow's database answers, and has the schema of the MLflow installed here."""
    url = stack.database_url
    if url is None:
        return [Finding("database", "skipped", "not configured (--database, or MLFLOW_BACKEND_STORE_URI)")]
    from mlflow.store.db.utils import _get_latest_schema_revision
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.engine import make_url

    shown, engine = shown_uri(url), None
    try:
        limit = {"connect_timeout": _SECONDS} if make_url(url).get_backend_name() == "postgresql" else {}
        engine = create_engine(url, connect_args=limit)
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                advice = "Run mlflow db upgrade, as the compose file and the manifests do"
                return [Finding("database", "failed", f"{shown} holds no MLflow tables", advice)]
            revision = connection.execute(text("select version_num from alembic_version")).scalar()
    except Exception as error:  # noqa: BLE001 - drivers raise their own
        told = first_line(error, secrets=_passwords(url))
        return [Finding("database", "failed", f"{shown}: {told}", "Check host, port, user and password")]
    finally:
        if engine is not None:
            engine.dispose()
    latest = _get_latest_schema_revision()
    if revision != latest:
        from mlflow.version import VERSION

        message = f"{shown}: schema {revision}, MLflow {VERSION} (installed here) needs {latest}"
        return [Finding("database", "failed", message, "Upgrade the older one: docs/operations.md")]
    return [Finding("database", "ok", f"{shown} answers, its schema is current ({revision})")]


def _passwords(url: str) -> list[str]:
    """The password in a URL, both as written and URL-decoded."""
    written = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return [item for item in (written, unquote(written)) if item]


def check_s3(stack: StackSettings) -> list[Finding]:
    """Check single and multipart uploads, reading, deleting, and which checksums the store accepts."""
    bucket = stack.bucket
    if bucket is None:
        return [Finding("s3", "skipped", "not configured (--s3, or MLFLOW_ARTIFACTS_DESTINATION)")]
    where = f"s3://{bucket} at {stack.s3_endpoint or 'AWS'}"
    try:
        _round_trip(stack, bucket, "when_supported")
    except Exception as error:  # noqa: BLE001 - boto's errors, and those of its transport
        told = first_line(error, secrets=[item for item in stack.s3_keys if item])
        try:
            _round_trip(stack, bucket, "when_required")
        except Exception:  # noqa: BLE001
            advice = "Check the endpoint, the bucket's name and both keys"
            return [Finding("s3", "failed", f"{where}: {told}", advice)]
        return [
            Finding(
                "s3",
                "failed",
                f"{where} rejects the checksums that boto3 adds: {told}",
                "Set AWS_REQUEST_CHECKSUM_CALCULATION=when_required for MLflow's server",
            )
        ]
    return [Finding("s3", "ok", f"{where}: written (in parts too), read and deleted; checksums accepted")]


def _round_trip(stack: StackSettings, bucket: str, checksums: str) -> None:
    client = _client(stack, checksums)
    key = f"agentcore-doctor/{uuid.uuid4().hex}"
    content = key.encode()
    try:
        client.put_object(Bucket=bucket, Key=key, Body=content)
        if client.get_object(Bucket=bucket, Key=key)["Body"].read() != content:
            raise OSError("read back different content than was written")
        _in_parts(client, bucket, key)
    finally:
        client.delete_object(Bucket=bucket, Key=key)


def _in_parts(client: Any, bucket: str, key: str) -> None:
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    try:
        parts = []
        for number, content in ((1, b"a" * _PART), (2, b"b")):
            answer = client.upload_part(
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=content
            )
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        client.complete_multipart_upload(
            Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )
    except BaseException:
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        raise
    if client.head_object(Bucket=bucket, Key=key)["ContentLength"] != _PART + 1:
        raise OSError("the multipart object has the wrong length")


def _client(stack: StackSettings, checksums: str) -> Any:
    import boto3
    from botocore.config import Config

    key, secret = stack.s3_keys
    return boto3.client(
        "s3",
        endpoint_url=stack.s3_endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(
            connect_timeout=_SECONDS,
            read_timeout=4 * _SECONDS,
            retries={"total_max_attempts": 1},
            request_checksum_calculation=checksums,
        ),
    )
