"""Puts a damaged journal aside, and saves what can still be read of it."""

import contextlib
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentcore._naming import timestamp
from agentcore.errors import JournalError
from agentcore.journal._journal import Journal
from agentcore.journal._schema import cursors, events, payload_refs, rejections, streams

_COMPANIONS = ("-wal", "-shm")
_TABLES: tuple[sa.Table, ...] = (events, cursors, rejections, payload_refs)
_SKIPS = 64
"""How many unreadable stretches of a table to step over in each direction."""


@dataclass
class Salvaged:
    """What was saved from a damaged journal."""

    runs: int = 0
    entries: int = 0
    lost: int = 0
    """Entries known to be missing: gaps in the runs' numbering."""
    known: int = 0
    """Runs that the current journal has already."""


def put_aside(path: Path) -> Path:
    """Rename a damaged journal, with SQLite's files beside it; returns its new path."""
    aside = path.with_name(f"{path.name}.damaged-{timestamp()}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{timestamp()}-{number}")
    path.rename(aside)
    for suffix in _COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    return aside


def damage(path: Path) -> str | None:
    """What SQLite finds wrong with a file; None for a sound one, or none at all."""
    if not path.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        raise JournalError(f"{path} can't be checked: {error}") from None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if found == "ok" else found


def salvage(source: Path, target: Journal) -> Salvaged:
    """Copy every run of a damaged file that can be read, and that `target` doesn't have, into `target`.

    Raises:
        JournalError: there is no such file, nothing in it is a journal, or `target` can't be written.
    """
    if not source.is_file():
        raise JournalError(f"{source}: no such file")
    with tempfile.TemporaryDirectory(prefix="agentcore-") as directory:
        copy = Path(directory) / "journal.db"
        for suffix in ("", *_COMPANIONS):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{source}{suffix}", f"{copy}{suffix}")
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            connection.row_factory = sqlite3.Row
            connection.text_factory = lambda content: content.decode("utf-8", "replace")
            found = _by_stream(connection)
            runs = list(_rows(connection, streams.name))
    if not runs:
        raise JournalError(f"nothing in {source} can be read as a journal")
    _copy_payloads(source.parent / "payloads", target)
    saved = Salvaged()
    for row in runs:
        _save(target, row, found[str(row["id"])], saved)
    return saved


def _by_stream(connection: sqlite3.Connection) -> defaultdict[str, dict[str, list[dict[str, Any]]]]:
    """Rows by run, then by table."""
    found: defaultdict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
    for table in _TABLES:
        for row in _rows(connection, table.name):
            known = {
                column.name: _typed(column, row[column.name])
                for column in table.columns
                if column.name in row
            }
            found[str(row["stream"])].setdefault(table.name, []).append(known)
    return found


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[dict[str, Any]]:
    """The readable rows of a table, from the start and then from the end, stepping over what is damaged."""
    seen: set[int] = set()
    for comparison, order, step in ((">", "ASC", 1), ("<", "DESC", -1)):
        place = -1 if step > 0 else 2**62
        skipped = 0
        while skipped < _SKIPS:
            query = (
                f"SELECT rowid AS _rowid, * FROM {table} WHERE rowid {comparison} ? "  # noqa: S608 - our names
                f"ORDER BY rowid {order}"
            )
            try:
                for row in connection.execute(query, (place,)):
                    values = dict(row)
                    place = values.pop("_rowid")
                    skipped = 0
                    if place not in seen:
                        seen.add(place)
                        yield values
            except sqlite3.DatabaseError:
                place += step * 2**skipped
                skipped += 1
                continue
            break


def _typed(column: "sa.Column[Any]", value: Any) -> Any:
    """SQLite has no booleans."""
    return bool(value) if value is not None and isinstance(column.type, sa.Boolean) else value


def _save(
    target: Journal, row: dict[str, Any], found: dict[str, list[dict[str, Any]]], saved: Salvaged
) -> None:
    entries = sorted(found.get(events.name, []), key=lambda item: int(item["seq"]))
    if not entries:
        saved.lost += int(row["last_seq"])
        return
    last = int(entries[-1]["seq"])
    values = {column.name: _typed(column, row.get(column.name)) for column in streams.columns}
    values["last_seq"] = last

    def write(connection: Connection) -> bool:
        if connection.execute(sa.select(streams.c.id).where(streams.c.id == row["id"])).first() is not None:
            return False
        connection.execute(streams.insert().values(**values))
        for table in _TABLES:
            if rows := found.get(table.name):
                connection.execute(table.insert(), rows)
        return True

    if target.submit(write).result():
        saved.runs += 1
        saved.entries += len(entries)
        saved.lost += max(int(row["last_seq"]), last) - len(entries)
    else:
        saved.known += 1


def _copy_payloads(directory: Path, target: Journal) -> None:
    """Copy the payloads beside the damaged file, if the journal doesn't use the same directory."""
    if not directory.is_dir():
        return
    for file in directory.glob("??/*"):
        if file.is_file() and not file.name.startswith("."):
            target.payloads.put(file.read_bytes())
