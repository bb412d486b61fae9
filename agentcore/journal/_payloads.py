"""Large contents beside the events, by their sha256."""

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.engine import Engine

from agentcore.errors import JournalError, first_line
from agentcore.journal._schema import explain, payloads

_UNREFERENCED_SECONDS = 3600
"""How old a payload without a reference must be to go: its event may still be on the way."""


class Payloads(Protocol):
    """Both homes' store of payloads; every method may be called from any thread."""

    def put(self, content: bytes) -> str:
        """Store durably and return the sha256; raises `JournalError`."""
        ...

    def get(self, sha256: str) -> bytes:
        """The content, checked; raises `JournalError` where it is missing or changed."""
        ...

    def stored(self) -> dict[str, float]:
        """Age in seconds by sha256."""
        ...

    def remove(self, sha256: str) -> None: ...


def removable(store: Payloads, referenced: set[str]) -> list[str]:
    return [
        name for name, age in store.stored().items() if name not in referenced and age > _UNREFERENCED_SECONDS
    ]


class FilePayloads:
    """Files in a directory, written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        path = self._path(name)
        try:
            if path.exists():
                os.utime(path)  # young again: a pruning that runs just now leaves it
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
        except OSError as error:
            raise JournalError(f"payload {sha256[:12]} can't be read: {first_line(error)}") from None
        return _checked(sha256, content)

    def stored(self) -> dict[str, float]:
        now, found = time.time(), {}
        for path in self.directory.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                age = now - path.stat().st_mtime
                if not path.name.startswith("."):
                    found[path.name] = age
                elif age > _UNREFERENCED_SECONDS:
                    path.unlink()  # the draft of a process that was killed
        return found

    def remove(self, sha256: str) -> None:
        self._path(sha256).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.directory / name[:2] / name


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
        raise JournalError(f"payload {sha256[:12]} was changed on disk: it can't be used")
    return content


class TablePayloads:
    """Rows of the shared database, since several machines have no directory in common."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def put(self, content: bytes) -> str:
        name, now = hashlib.sha256(content).hexdigest(), time.time_ns() // 1_000_000
        row = postgres_insert(payloads).values(sha256=name, content=content, touched_ms=now)
        try:
            with self.engine.begin() as connection:
                connection.execute(
                    row.on_conflict_do_update(index_elements=["sha256"], set_={"touched_ms": now})
                )
        except sa.exc.SQLAlchemyError as error:
            raise JournalError(f"a payload can't be written: {explain(error)}") from None
        return name

    def get(self, sha256: str) -> bytes:
        wanted = sa.select(payloads.c.content).where(payloads.c.sha256 == sha256)
        try:
            with self.engine.connect() as connection:
                content = connection.execute(wanted).scalar()
        except sa.exc.SQLAlchemyError as error:
            raise JournalError(f"payload {sha256[:12]} can't be read: {explain(error)}") from None
        if content is None:
            raise JournalError(f"payload {sha256[:12]} is not in the journal")
        return _checked(sha256, bytes(content))

    def stored(self) -> dict[str, float]:
        now = time.time()
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(payloads.c.sha256, payloads.c.touched_ms)).all()
        return {name: now - touched / 1000 for name, touched in rows}

    def remove(self, sha256: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(payloads.delete().where(payloads.c.sha256 == sha256))
