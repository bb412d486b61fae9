"""Large contents beside the events, by their sha256."""

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
from agentcore.errors import JournalError, PayloadGoneError, first_line
from agentcore.journal._schema import explain, payload_refs, payloads

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

    def remove_old(self, referenced: Callable[[], set[str]]) -> None:
        """Remove what no event refers to, and what is old enough not to be on its way to one.

        Args:
            referenced: asked after the old ones were listed.
        """
        ...


class FilePayloads:
    """Files in a directory, written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        path = self._path(name)
        try:
            with contextlib.suppress(FileNotFoundError):
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
        except FileNotFoundError:
            raise PayloadGoneError(f"payload {sha256[:12]} is not in {self.directory} any more") from None
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
        """Put aside, look again and remove: a `put` just now may have made it young."""
        aside = path.with_name(f".old-{path.name}")
        path.rename(aside)
        if _age(aside) > _UNREFERENCED_SECONDS:
            aside.unlink(missing_ok=True)
        else:
            aside.rename(path)

    def _path(self, name: str) -> Path:
        return self.directory / name[:2] / name


def _age(path: Path) -> float:
    """Seconds since it was put; 0 for one that is gone."""
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
        raise PayloadGoneError(f"payload {sha256[:12]} was changed on disk: it can't be used")
    return content


class TablePayloads:
    """Rows of the shared database, since several machines have no directory in common."""

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
            raise PayloadGoneError(f"payload {sha256[:12]} is not in the journal any more")
        return _checked(sha256, bytes(content))

    def remove_old(self, referenced: Callable[[], set[str]]) -> None:
        before = round((time.time() - _UNREFERENCED_SECONDS) * 1000)
        # One statement: what is put or referred to meanwhile stays.
        used = sa.select(payload_refs.c.sha256)
        old = payloads.delete().where(payloads.c.touched_ms < before, payloads.c.sha256.not_in(used))
        try:
            with not_forked(), self.engine.begin() as connection:
                connection.execute(old)
        except sa.exc.SQLAlchemyError as error:
            raise JournalError(f"payloads can't be pruned: {explain(error)}") from None
