"""Where the versions of data sets are kept: a directory, or a bucket of S3."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from agentcore.errors import DataError, StorageError

ROWS, RECORD = "rows.jsonl", "dataset.json"


class Versions(Protocol):
    """Versions of data sets, each a file of rows and its record. A version appears as a whole, and never
    changes."""

    def names(self) -> list[str]:
        """The names of all data sets."""

    def versions(self, name: str) -> list[str]:
        """The versions of a data set, in no particular order."""

    def record(self, name: str, version: str) -> dict[str, Any] | None:
        """The record of a version; None if there is none."""

    def lines(self, name: str, version: str) -> Iterator[bytes]:
        """The rows of a version, one line each."""

    def add(self, name: str, version: str, rows: Path, record: dict[str, Any]) -> bool:
        """Add a version; False if another was faster."""


class Directory:
    """Versions in a local directory: `{name}/{version}/rows.jsonl` and `dataset.json`."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def names(self) -> list[str]:
        return sorted(path.name for path in _folders(self.base))

    def versions(self, name: str) -> list[str]:
        return [path.name for path in _folders(self.base / name) if (path / RECORD).is_file()]

    def record(self, name: str, version: str) -> dict[str, Any] | None:
        path = self.base / name / version / RECORD
        try:
            return _record(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            return None

    def lines(self, name: str, version: str) -> Iterator[bytes]:
        path = self.base / name / version / ROWS
        try:
            with path.open("rb") as stream:
                yield from stream
        except OSError as error:
            raise DataError(f"{path} can't be read: {error}") from None

    def add(self, name: str, version: str, rows: Path, record: dict[str, Any]) -> bool:
        folder = self.base / name
        draft = folder / f".new-{uuid.uuid4().hex[:12]}"
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            raise StorageError(
                f"{folder} can't be written: {error}. Choose another base_path (--base)"
            ) from None
        try:
            shutil.copyfile(rows, draft / ROWS)
            (draft / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
            for path in draft.iterdir():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
            try:
                draft.rename(folder / version)  # fails if the version exists: a directory with files
            except OSError:
                if (folder / version / RECORD).is_file():
                    return False
                raise
            return True
        finally:
            shutil.rmtree(draft, ignore_errors=True)


class Bucket:
    """Versions in S3: `{prefix}/{name}/{version}/rows-{digest}.jsonl` and `dataset.json`, which is written
    last and only if there is none. Of two concurrent writers only one succeeds: the conditional write is
    atomic in S3 and SeaweedFS."""

    def __init__(self, uri: str, client: Any = None) -> None:
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = prefix.strip("/")
        self._client = client

    @property
    def client(self) -> Any:
        """boto3's, set up as MLflow's own is (AWS_…, MLFLOW_S3_ENDPOINT_URL)."""
        if self._client is None:
            import boto3

            self._client = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None)
        return self._client

    def _key(self, *parts: str) -> str:
        return "/".join(part for part in (self.prefix, *parts) if part)

    def names(self) -> list[str]:
        return sorted(self._folders())

    def versions(self, name: str) -> list[str]:
        return [version for version in self._folders(name) if self.record(name, version) is not None]

    def _folders(self, *parts: str) -> list[str]:
        prefix = self._key(*parts)
        prefix = f"{prefix}/" if prefix else ""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix, Delimiter="/"
        )
        with _told(f"s3://{self.bucket}/{prefix}"):
            return [
                item["Prefix"].removeprefix(prefix).rstrip("/")
                for page in pages
                for item in page.get("CommonPrefixes", ())
            ]

    def record(self, name: str, version: str) -> dict[str, Any] | None:
        key = self._key(name, version, RECORD)
        with _told(f"s3://{self.bucket}/{key}"):
            try:
                reply = self.client.get_object(Bucket=self.bucket, Key=key)
            except self.client.exceptions.NoSuchKey:
                return None
            return _record(reply["Body"].read().decode(), f"s3://{self.bucket}/{key}")

    def lines(self, name: str, version: str) -> Iterator[bytes]:
        found = self.record(name, version)
        key = self._key(name, version, found["file"] if found is not None else ROWS)
        with _told(f"s3://{self.bucket}/{key}"):
            body = self.client.get_object(Bucket=self.bucket, Key=key)["Body"]
            for line in body.iter_lines():
                yield line + b"\n"

    def add(self, name: str, version: str, rows: Path, record: dict[str, Any]) -> bool:
        # Another writer's rows must not be overwritten, so each has a file of its own.
        record = {**record, "file": f"rows-{record['digest'][:16]}.jsonl"}
        content = json.dumps(record, indent=2, ensure_ascii=False).encode()
        key = self._key(name, version, RECORD)
        with _told(f"s3://{self.bucket}/{key}"):
            if self.record(name, version) is not None:
                return False
            self.client.upload_file(str(rows), self.bucket, self._key(name, version, record["file"]))
            return self._put_first(key, content)

    def _put_first(self, key: str, content: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"):
                return False
            raise
        return True


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Turns boto3's errors into `StorageError`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        if getattr(error, "response", {}).get("Error", {}).get("Code") == "NotImplemented":
            raise StorageError(
                f"{where}: this S3 server has no conditional writes (If-None-Match), without which two "
                "writers could overwrite each other's version. Use another server, or a directory"
            ) from None
        raise StorageError(
            f"{where}: {error}. Check the bucket, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "MLFLOW_S3_ENDPOINT_URL"
        ) from None


def _folders(base: Path) -> list[Path]:
    if base.exists() and not base.is_dir():
        raise StorageError(f"{base} is no directory: choose another base_path (--base)")
    return [path for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")] if (
        base.is_dir()
    ) else []  # fmt: skip


def _record(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("digest"), str):
        raise DataError(f"{where} is damaged: it is not the record of a data set")
    return found
