"""Copies the bucket into /backups/bucket (`bucket.py copy`), or back (`restore`).

MLflow hardly ever changes an object: one that was already copied, with the same size and not older, is
skipped. Nothing is deleted on either side.

Environment:
    S3_BUCKET; MLFLOW_S3_ENDPOINT_URL for stores other than AWS; keys and region in boto3's variables.
    BACKUP_SECONDS: seconds between copies; 0 or unset to copy once.
"""

import os
import sys
import time
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

DIRECTORY = Path("/backups/bucket")
PART = Path("/backups/bucket.part")


def copy(s3, bucket: str) -> None:
    seen = copied = 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            seen += 1
            target = place(item["Key"])
            if target.exists():
                known = target.stat()
                if known.st_size == item["Size"] and known.st_mtime >= item["LastModified"].timestamp():
                    continue
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, item["Key"], str(PART))
            PART.rename(target)
            copied += 1
    print(f"{bucket}: {seen} objects, {copied} of them copied", flush=True)


def restore(s3, bucket: str) -> None:
    files = [path for path in DIRECTORY.rglob("*") if path.is_file()]
    for path in files:
        s3.upload_file(str(path), bucket, str(path.relative_to(DIRECTORY)))
    print(f"{bucket}: {len(files)} objects restored", flush=True)


def place(key: str) -> Path:
    target = DIRECTORY / key
    if not target.resolve().is_relative_to(DIRECTORY.resolve()):
        sys.exit(f"{key!r} would be written outside {DIRECTORY}")
    return target


def wait(s3, bucket: str) -> None:
    """Wait for the store, which starts more slowly than this container."""
    deadline = time.monotonic() + 120
    while True:
        try:
            s3.head_bucket(Bucket=bucket)
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                sys.exit(f"bucket {bucket}: {error}")
            time.sleep(2)


def main() -> None:
    os.umask(0o077)
    s3 = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None)
    bucket = os.environ["S3_BUCKET"]
    wait(s3, bucket)
    if sys.argv[1:] == ["restore"]:
        restore(s3, bucket)
        return
    every = float(os.environ.get("BACKUP_SECONDS") or 0)
    copy(s3, bucket)
    while every:
        time.sleep(every)
        copy(s3, bucket)


if __name__ == "__main__":
    main()
