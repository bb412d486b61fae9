"""Load datasets from rows, `dspy.Example`s, frames and tables, files, or built-in names."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agentcore.data._builtin import BUILTIN_DATASETS, load_builtin
from agentcore.data._check import InputFields
from agentcore.data._dataset import Dataset
from agentcore.data._files import READERS, STREAMS, read_rows, stream_rows, without_index
from agentcore.errors import DataError


def load_dataset(
    source: Any,
    *,
    input_fields: InputFields = None,
    name: str | None = None,
    cluster: str | None = None,
) -> Dataset:
    """Load a `Dataset` from a `Dataset`, a list of dicts or `dspy.Example`s, a frame (pandas, Polars), an
    Arrow table, a split of a Hugging Face data set, a `StoredDataset`, a path (.jsonl, .json,
    .csv, .tsv, .parquet) or the name of a built-in data set (iris, wine, breast_cancer).

    Args:
        cluster: the field that names each example's cluster; see `Dataset.from_rows`.

    Raises:
        DataError: the source can't be read or its rows can't be used; the message names the row.
    """
    if isinstance(source, Dataset):
        return _changed(source, input_fields, cluster)
    if isinstance(source, (str, Path)):
        return _from_path(source, input_fields, name, cluster)
    if isinstance(source, Mapping):
        parts = ", ".join(map(str, source))
        raise DataError(
            f"a {type(source).__name__} is not a list of examples: pass one of its parts ({parts}), or rows "
            "such as [{'question': …, 'answer': …}]"
        )
    kind = type(source).__module__.split(".")[0]
    rows = _table_rows(source, name or "dataframe")
    if rows is not None:
        name = name or ("dataframe" if kind == "pandas" else kind)
        return Dataset.from_rows(rows, input_fields=input_fields, name=name, cluster=cluster, from_file=True)
    if isinstance(source, Iterable):
        own = getattr(source, "full_name", None)  # of a stored data set
        return _from_items(list(source), input_fields, name or own or "data", cluster)
    raise DataError(
        f"can't read examples from a {type(source).__name__}: pass a list of dicts, "
        "dspy.Examples, a pandas DataFrame or a file"
    )


def _changed(data: Dataset, input_fields: InputFields, cluster: str | None) -> Dataset:
    """Keep the dataset's inputs and clusters unless the caller names others explicitly."""
    if cluster is not None and cluster != data.cluster_field:
        data = data.with_cluster(cluster)
    return data if input_fields is None or callable(input_fields) else data.with_inputs(input_fields)


def _table_rows(source: Any, name: str) -> list[dict[str, Any]] | None:
    """The rows of a frame or table; None if it is neither."""
    if type(source).__module__.split(".")[0] == "pandas" and hasattr(source, "columns"):
        twice = sorted({str(column) for column in source.columns[source.columns.duplicated()]})
        if twice:
            raise DataError(f"{name}: column {', '.join(twice)} appears twice. Rename one of them")
        frame = source.astype(object).where(source.notna(), None)
        return without_index([_plain(row) for row in frame.to_dict(orient="records")], name)
    for method in ("to_dicts", "to_pylist"):  # Polars, Arrow
        if callable(getattr(source, method, None)):
            return [_plain(row) for row in getattr(source, method)()]
    return None


def _from_items(items: list[Any], input_fields: InputFields, name: str, cluster: str | None) -> Dataset:
    rows = []
    for number, item in enumerate(items, 1):
        if isinstance(item, Mapping):
            rows.append(_plain(item))
        elif callable(getattr(item, "toDict", None)) and callable(getattr(item, "inputs", None)):
            rows.append(_plain(dict(item.items())))
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
    _check_format(path)
    return Dataset.from_rows(
        [_plain(row) for row in read_rows(path)],
        input_fields=input_fields,
        name=name or path.stem,
        cluster=cluster,
        from_file=True,
    )


def _check_format(path: Path) -> None:
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{path}: unknown data format. Use a {', '.join(READERS)} file, "
            f"or a built-in data set: {', '.join(BUILTIN_DATASETS)}"
        )


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the scalars and arrays of NumPy and pandas to Python's own values."""
    return {key: _plain_value(value) for key, value in row.items()}


def _plain_value(value: Any) -> Any:
    kind = type(value).__module__.split(".")[0]
    if kind == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if kind == "pandas":
        for method in ("to_pydatetime", "to_pytimedelta"):
            if callable(getattr(value, method, None)):
                return getattr(value, method)()
    return value


def rows_of(source: Any) -> Iterator[dict[str, Any]]:
    """The rows of what `load_dataset` accepts, or of an iterator of dicts, with the values as they are.
    Iterators, .jsonl and .parquet files are read row by row.

    Raises:
        DataError: the source can't be read.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        if str(source) in BUILTIN_DATASETS and not path.exists():
            return iter(load_builtin(str(source)).rows())
        _check_format(path)
        return map(_plain, stream_rows(path) if path.suffix.lower() in STREAMS else read_rows(path))
    if isinstance(source, Dataset):
        return iter(source.rows())
    rows = None if isinstance(source, Mapping) else _table_rows(source, "dataframe")
    if rows is not None:
        return iter(rows)
    if isinstance(source, Iterable) and not isinstance(source, Mapping):
        return _mappings(source)
    return iter(load_dataset(source).rows())  # which says what is wrong with it


def _mappings(items: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for number, item in enumerate(items, 1):
        if isinstance(item, Mapping):
            yield _plain(item)
        elif callable(getattr(item, "toDict", None)):
            yield _plain(dict(item.items()))
        else:
            raise DataError(f"row {number}: expected a dict or a dspy.Example, got {type(item).__name__}")
