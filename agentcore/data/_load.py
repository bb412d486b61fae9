"""Load datasets from rows, `dspy.Example`s, pandas frames, JSONL, JSON and CSV files, or built-in names."""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agentcore.data._builtin import BUILTIN_DATASETS, load_builtin
from agentcore.data._check import InputFields
from agentcore.data._dataset import Dataset
from agentcore.errors import DataError


def load_dataset(
    source: Any,
    *,
    input_fields: InputFields = None,
    name: str | None = None,
    cluster: str | None = None,
) -> Dataset:
    """Load a `Dataset` from a `Dataset`, a list of dicts or `dspy.Example`s, a pandas frame, a path
    (.jsonl, .json, .csv) or the name of a built-in data set (iris, wine, breast_cancer).

    Args:
        cluster: the field that names each example's cluster; see `Dataset.from_rows`.

    Raises:
        DataError: the source can't be read or its rows can't be used; the message names the row.
    """
    if isinstance(source, Dataset):
        return _changed(source, input_fields, cluster)
    if isinstance(source, (str, Path)):
        return _from_path(source, input_fields, name, cluster)
    if _is_frame(source):
        rows = [_plain(row) for row in source.to_dict(orient="records")]
        return Dataset.from_rows(rows, input_fields=input_fields, name=name or "dataframe", cluster=cluster)
    if isinstance(source, Iterable):
        return _from_items(list(source), input_fields, name or "data", cluster)
    raise DataError(
        f"can't read examples from a {type(source).__name__}: pass a list of dicts, "
        "dspy.Examples, a pandas DataFrame or a file"
    )


def _changed(data: Dataset, input_fields: InputFields, cluster: str | None) -> Dataset:
    """Keep the dataset's inputs and clusters unless the caller names others explicitly."""
    if cluster is not None and cluster != data.cluster_field:
        data = data.with_cluster(cluster)
    return data if input_fields is None or callable(input_fields) else data.with_inputs(input_fields)


def _from_items(items: list[Any], input_fields: InputFields, name: str, cluster: str | None) -> Dataset:
    rows = []
    for number, item in enumerate(items, 1):
        if isinstance(item, Mapping):
            rows.append(_plain(item))
        elif callable(getattr(item, "toDict", None)) and callable(getattr(item, "inputs", None)):
            rows.append(_plain(item.toDict()))
            if (input_fields is None or callable(input_fields)) and getattr(item, "_input_keys", None):
                input_fields = sorted(item._input_keys)
        else:
            raise DataError(
                f"{name}, row {number}: expected a dict or a dspy.Example, got {type(item).__name__}"
            )
    return Dataset.from_rows(rows, input_fields=input_fields, name=name, cluster=cluster)


def _from_path(
    source: str | Path, input_fields: InputFields, name: str | None, cluster: str | None
) -> Dataset:
    path = Path(source)
    if str(source) in BUILTIN_DATASETS and not path.exists():
        return _changed(load_builtin(str(source)), input_fields, cluster)
    readers = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: unknown data format. Use a .jsonl, .json or .csv file, "
            f"or a built-in data set: {', '.join(BUILTIN_DATASETS)}"
        )
    try:
        rows = reader(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as UTF-8 text: {error}") from None
    except csv.Error as error:
        raise DataError(f"{path} can't be read as CSV: {error}") from None
    return Dataset.from_rows(rows, input_fields=input_fields, name=name or path.stem, cluster=cluster)


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not valid JSON ({error})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
            rows.append(row)
    return rows


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Read a CSV file. Columns in which every cell is a number become numbers; all others stay text."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, restkey="", restval=None)
        rows: list[dict[str, Any]] = list(reader)
    for number, row in enumerate(rows, 2):
        if "" in row or None in row.values():
            raise DataError(f"{path}, line {number}: number of columns differs from the header's")
    for column in rows[0] if rows else ():
        kind = _number_type([row[column] for row in rows])
        if kind is not None:
            for row in rows:
                row[column] = kind(row[column])
    return rows


_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?([eE][+-]?\d{1,3})?")


def _number_type(cells: list[str]) -> type[int] | type[float] | None:
    """int or float if every cell is written as one. 01234 (a code), 1_000 (a name) and twenty digits (an id)
    are text."""
    if all(_INTEGER.fullmatch(cell) for cell in cells):
        return int
    return float if all(_NUMBER.fullmatch(cell) for cell in cells) else None


def _is_frame(source: Any) -> bool:
    return type(source).__module__.split(".")[0] == "pandas" and hasattr(source, "to_dict")


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert NumPy scalars and arrays to plain Python values, which JSON can represent."""
    return {
        key: value.tolist() if type(value).__module__ == "numpy" and hasattr(value, "tolist") else value
        for key, value in row.items()
    }
