"""Reads rows from files."""

import csv
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentcore.errors import DataError

_logger = logging.getLogger(__name__)

Rows = list[dict[str, Any]]

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_INDEX = re.compile(r"|Unnamed: 0")
"""The header of an index column as pandas writes it, and as it reads it back."""
_csv_limit = threading.Lock()


def read_rows(path: Path) -> Rows:
    """The rows of a file in one of the formats of `READERS`.

    Raises:
        DataError: it can't be read.
    """
    with _explained(path):
        return READERS[path.suffix.lower()](path)


def stream_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file in one of the formats of `STREAMS`, one by one.

    Raises:
        DataError: it can't be read.
    """
    with _explained(path):
        yield from STREAMS[path.suffix.lower()](path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        advice = ". Save it as UTF-8 (in Excel: CSV UTF-8)" if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(f"{path} can't be read as UTF-8 text: {error}{advice}") from None
    except csv.Error as error:
        raise DataError(f"{path} can't be read as CSV: {error}") from None


def without_index(rows: Sequence[Mapping[str, Any]], name: str) -> Rows:
    """Rows without pandas' index column, if they begin with one."""
    first = next(iter(rows[0]), None) if rows else None
    if first is None or not isinstance(first, str) or not _INDEX.fullmatch(first) or len(rows[0]) < 2:
        return [dict(row) for row in rows]
    _logger.warning("%s: the first column has no name and looks like a pandas index, so it is left out", name)
    return [{key: value for key, value in row.items() if key != first} for row in rows]


def _encoding(path: Path) -> str:
    with path.open("rb") as stream:
        return "utf-16" if stream.read(2) in _UTF16 else "utf-8-sig"


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding=_encoding(path)) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not valid JSON ({error})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
            yield row


def _read_jsonl(path: Path) -> Rows:
    return list(_jsonl(path))


def _read_json(path: Path) -> Rows:
    try:
        rows = json.loads(path.read_text(encoding=_encoding(path)))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: expected an object, got {type(row).__name__}")
    return rows


def _read_csv(path: Path) -> Rows:
    """Read a CSV file. Columns in which every cell is a number become numbers; all others stay text."""
    with _large_cells(), path.open(encoding=_encoding(path), newline="") as stream:
        reader = csv.reader(stream, delimiter=_delimiter(path))
        header = [cell.strip() for cell in next(reader, [])]
        lines = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {number}: it has {len(cells)} columns, but the header has {len(header)}. Put "
                "cells that hold the separator in quotes"
            )
        if [cell.strip() for cell in cells] == header:
            raise DataError(f"{path}, line {number}: this line repeats the header. Remove it")
    columns = list(zip(*[cells for _, cells in lines], strict=True)) or [() for _ in header]
    # Spreadsheets leave empty columns at the right.
    kept = {number for number, cells in enumerate(columns) if header[number] or any(map(str.strip, cells))}
    names = [name for number, name in enumerate(header) if number in kept]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: column {', '.join(map(repr, twice))} appears twice in the header. Rename it"
        )
    values = [_numbers(cells) for number, cells in enumerate(columns) if number in kept]
    rows = [dict(zip(names, cells, strict=True)) for cells in zip(*values, strict=True)]
    return without_index(rows, str(path))


def _delimiter(path: Path) -> str:
    """A comma, unless the header has none, but semicolons or tabs."""
    with path.open(encoding=_encoding(path)) as stream:
        header = stream.readline()
    if path.suffix.lower() == ".tsv":
        return "\t"
    other = next((mark for mark in (";", "\t") if mark in header and "," not in header), None)
    if other is None:
        return ","
    _logger.warning("%s: read with %r as the separator, because the header contains no comma", path, other)
    return other


@contextmanager
def _large_cells() -> Iterator[None]:
    """Lifts the csv module's limit of 128 KiB for a cell, which holds for the whole process."""
    with _csv_limit:
        usual = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(usual)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow. Install it: pip install pyarrow") from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                row.pop("__index_level_0__", None)
                yield row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} can't be read as Parquet: {error}") from None


def _read_parquet(path: Path) -> Rows:
    return list(_parquet(path))


STREAMS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}
"""Formats that can be read row by row."""

READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?([eE][+-]?\d{1,3})?")


def _numbers(cells: Sequence[str]) -> list[Any]:
    """Numbers if every cell is written as one. 01234 (a code), 1_000 (a name) and twenty digits (an id) are
    text."""
    if all(_INTEGER.fullmatch(cell) for cell in cells):
        return list(map(int, cells))
    if all(_NUMBER.fullmatch(cell) for cell in cells):
        return list(map(float, cells))
    return list(cells)
