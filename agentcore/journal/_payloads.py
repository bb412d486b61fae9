"""Stores for content too large to keep in events, addressed by sha256."""

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.engine import Engine

from agentcore._forks import not_forked
from agentcore._redaction import first_line
from agentcore.errors import JournalError, PayloadGoneError
from agentcore.journal._schema import explain, payload_refs, payloads

_UNREFERENCED_SECONDS = 3600
"""Minimum age for removing an unreferenced payload: the event of a newer one may not be written yet."""


class Payloads(Protocol):
    """A store of payloads. Thread safety: every method may be called from any thread."""

    def put(self, content: bytes) -> str:
        """Store durably and return the sha256; raises `JournalError`."""
        ...

    def get(self, sha256: str) -> bytes:
        """Return the content, with its digest checked; raises `PayloadGoneError` if missing or changed."""
        ...

    def remove_old(self, referenced: Callable[[], set[str]]) -> None:
        """Remove old payloads that no event refers to.

        Args:
            referenced: returns the digests still in use; called after the old payloads are listed.
        """
        ...


class FilePayloads:
    """Stores payloads as files in a directory. Writes are atomic."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        path = self._path(name)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)  # reset its age, so that a concurrent prune keeps it
                return name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(path, content)
        except OSError as error:
            raise JournalError(
                f"a payload can't be written to {self.directory}: {first_line(error)}"
            ) from None
        return name

    def get(self, sha256: str) -> bytes:
        try:
            content = self._path(sha256).read_bytes()
        except FileNotFoundError:
            raise PayloadGoneError(f"payload {sha256[:12]} is no longer in {self.directory}") from None
        except OSError as error:
            raise JournalError(f"payload {sha256[:12]} can't be read: {first_line(error)}") from None
        return _checked(sha256, content)

    def remove_old(self, referenced: Callable[[], set[str]]) -> None:
        try:
            old = [path for path in self.directory.glob("??/*") if _age(path) > _UNREFERENCED_SECONDS]
            needed = referenced() if old else set()
            for path in old:
                if path.name not in needed:
                    self._remove(path)
        except OSError as error:
            raise JournalError(f"{self.directory} can't be pruned: {first_line(error)}") from None

    def _remove(self, path: Path) -> None:
        """Rename, recheck the age, then delete: a concurrent `put` may have reset it."""
        aside = path.with_name(f".old-{path.name}")
        path.rename(aside)
        if _age(aside) > _UNREFERENCED_SECONDS:
            aside.unlink(missing_ok=True)
        else:
            aside.rename(path)

    def _path(self, name: str) -> Path:
        return self.directory / name[:2] / name


def _age(path: Path) -> float:
    """Seconds since the file was written; 0 if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _write(path: Path, content: bytes) -> None:
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _checked(sha256: str, content: bytes) -> bytes:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise PayloadGoneError(f"payload {sha256[:12]} was changed on disk and can't be used")
    return content


class TablePayloads:
    """Stores payloads as rows in the shared database, for machines that don't share a file system."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def put(self, content: bytes) -> str:
        name, now = hashlib.sha256(content).hexdigest(), time.time_ns() // 1_000_000
        row = postgres_insert(payloads).values(sha256=name, content=content, touched_ms=now)
        try:
            with not_forked(), self.engine.begin() as connection:
                connection.execute(
                    row.on_conflict_do_update(index_elements=["sha256"], set_={"touched_ms": now})
                )
        except sa.exc.SQLAlchemyError as error:
            raise JournalError(f"a payload can't be written: {explain(error)}") from None
        return name

    def get(self, sha256: str) -> bytes:
        wanted = sa.select(payloads.c.content).where(payloads.c.sha256 == sha256)
        try:
            with not_forked(), self.engine.connect() as connection:
                content = connection.execute(wanted).scalar()
        except sa.exc.SQLAlchemyError as error:
            raise JournalError(f"payload {sha256[:12]} can't be read: {explain(error)}") from None
        if content is None:
            raise PayloadGoneError(f"payload {sha256[:12]} is no longer in the journal")
        return _checked(sha256, bytes(content))

    def remove_old(self, referenced: Callable[[], set[str]]) -> None:
        before = round((time.time() - _UNREFERENCED_SECONDS) * 1000)
        # One statement, so that a payload stored or referenced in the meantime is kept.
        used = sa.select(payload_refs.c.sha256)
        old = payloads.delete().where(payloads.c.touched_ms < before, payloads.c.sha256.not_in(used))
        try:
            with not_forked(), self.engine.begin() as connection:
                connection.execute(old)
        except sa.exc.SQLAlchemyError as error:
            raise JournalError(f"payloads can't be pruned: {explain(error)}") from None
