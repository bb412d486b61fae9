"""`DatasetManager`: versions of evaluation data sets that never change, with schema and lineage."""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agentcore._json import json_text
from agentcore.data._canonical import fold, sha256
from agentcore.data._check import InputFields
from agentcore.data._dataset import Dataset
from agentcore.data._load import rows_of
from agentcore.data._schema import PERSONAL, SchemaBuilder, checked
from agentcore.data._versions import Bucket, Directory, Versions
from agentcore.errors import DataError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_NUMBERED = re.compile(r"v(\d+)")


class InputLogger(Protocol):
    """The current run of a tracker."""

    def log_dataset(self, name: str, digest: str, rows: int, context: str) -> None:
        """Link a data set to the run."""


current_run: ContextVar[InputLogger | None] = ContextVar("agentcore_current_run", default=None)
"""Set by trackers, which this package can't import."""


@dataclass(frozen=True)
class StoredDataset:
    """One version of a data set. Its rows are read from the store each time: iterating needs memory for one
    row, and raises `DataError` if a byte was changed.

    Attributes:
        digest: sha256 of the rows as canonical JSON, one line each.
        schema: the JSON Schema of the rows.
        lineage: where it comes from: `parent` (name, version, digest), `split`, `source`.
        created: UTC, ISO 8601.
    """

    name: str
    version: str
    digest: str
    rows: int
    schema: Mapping[str, Any]
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    _read: Callable[[], Iterator[dict[str, Any]]] = field(default=lambda: iter(()), repr=False, compare=False)

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._read()

    @property
    def full_name(self) -> str:
        """`{name}_{version}`."""
        return f"{self.name}_{self.version}"

    @property
    def personal(self) -> tuple[str, ...]:
        """The fields that are marked as personal data."""
        properties = self.schema.get("properties", {})
        return tuple(name for name, part in properties.items() if part.get(PERSONAL))

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.schema.get("properties", ()))

    def to_list(self) -> list[dict[str, Any]]:
        """All rows."""
        return list(self)

    def to_pandas(self) -> Any:
        """All rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(list(self), columns=list(self.fields))

    def dataset(self, input_fields: InputFields = None, cluster: str | None = None) -> Dataset:
        """All rows as a `Dataset`; see `Dataset.from_rows`."""
        return Dataset.from_rows(
            list(self), input_fields=input_fields, name=self.full_name, cluster=cluster, from_file=True
        )

    def as_dict(self) -> dict[str, Any]:
        """What is recorded of it, without the rows."""
        return {
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "rows": self.rows,
            "schema": dict(self.schema),
            "description": self.description,
            "tags": dict(self.tags),
            "lineage": dict(self.lineage),
            "created": self.created,
        }


@dataclass(frozen=True)
class DatasetDiff:
    """What differs between two versions: rows by their digest, and fields.

    Attributes:
        added, removed: up to ten of the rows that only one version has.
        added_rows, removed_rows, common_rows: how many there are.
    """

    added_rows: int
    removed_rows: int
    common_rows: int
    added: tuple[dict[str, Any], ...]
    removed: tuple[dict[str, Any], ...]
    added_fields: tuple[str, ...]
    removed_fields: tuple[str, ...]


class DatasetManager:
    """Versions of data sets in a directory or in S3.

    A version is written as a whole and never changes. Its digest is that of its content; saving the same
    content as the same version again changes nothing.

    Args:
        base_path: a directory, or `s3://bucket/prefix`, reached as MLflow's artifacts are (`AWS_…`,
            `MLFLOW_S3_ENDPOINT_URL`).
    """

    def __init__(self, base_path: str | Path = "data/evaluation") -> None:
        self.base_path = str(base_path)
        self._store: Versions = (
            Bucket(self.base_path) if self.base_path.startswith("s3://") else Directory(Path(base_path))
        )

    def save_dataset(
        self,
        dataset: Any,
        dataset_name: str,
        description: str = "",
        version: str | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        lineage: Mapping[str, Any] | None = None,
        personal: Iterable[str] = (),
    ) -> StoredDataset:
        """Save rows as a version.

        Args:
            dataset: rows, an iterator of rows, a `Dataset`, a frame, or a file (.jsonl, .json, .csv, .tsv,
                .parquet). Iterators, .jsonl and .parquet are read row by row.
            version: default: the latest if it has the same content, else the next of v1, v2, ….
            lineage: recorded with the version.
            personal: fields with personal data: the schema marks them with `x-personal-data`, and they are
                kept out of reports and traces.

        Raises:
            DataError: no rows, a row that JSON has no form for, an invalid name, or a version that exists
                with other content.
            StorageError: the bucket can't be reached.
        """
        _check_name(dataset_name, "data set")
        if version is not None:
            _check_name(version, "version")
        if tags is not None and not isinstance(tags, Mapping):
            raise DataError(f"tags are a dict of names and values, not {type(tags).__name__}")
        personal = [personal] if isinstance(personal, str) else list(personal)
        where = {"source": str(dataset)} if isinstance(dataset, (str, Path)) else {}
        with tempfile.TemporaryDirectory(prefix="agentcore-data-") as folder:
            file = Path(folder, "rows.jsonl")
            digest, schema = _written(rows_of(dataset), file, dataset_name)
            record = {
                "name": dataset_name,
                "digest": digest,
                "rows": schema.rows,
                "schema": _marked(schema.schema(), personal, dataset_name),
                "description": description,
                "tags": {str(name): str(value) for name, value in (tags or {}).items()},
                "lineage": {**where, **(lineage or {})},
                "created": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            }
            if version is not None:
                return self._added(dataset_name, version, file, record)
            while True:  # another writer may take the next number
                latest = self._latest(dataset_name)
                known = None if latest is None else self._store.record(dataset_name, latest)
                same = known is not None and known["digest"] == digest
                if latest is not None and known is not None and same and known["schema"] == record["schema"]:
                    return self._stored(dataset_name, latest, known)
                record["version"] = number = self._next(dataset_name)
                record["record_digest"] = _record_digest(record)
                if self._store.add(dataset_name, number, file, record):
                    return self._stored(dataset_name, number, record)

    def load_dataset(self, dataset_name: str, version: str | None = None) -> StoredDataset:
        """A version; default: the latest. Its rows are checked against digest and schema as they are read.

        Raises:
            DataError: there is no such data set or version, or its record is damaged.
        """
        _check_name(dataset_name, "data set")
        if version is not None:
            _check_name(version, "version")
        wanted = version or self._latest(dataset_name)
        record = None if wanted is None else self._store.record(dataset_name, wanted)
        if wanted is None or record is None:
            raise DataError(self._missing(dataset_name, version))
        found = self._stored(dataset_name, wanted, record)
        self._check(found)
        return found

    def exists(self, dataset_name: str) -> bool:
        """Whether there is a version of a data set."""
        _check_name(dataset_name, "data set")
        return bool(self._store.versions(dataset_name))

    def list_datasets(self) -> list[StoredDataset]:
        """Every version of every data set, sorted by name, oldest version first."""
        found = []
        for name in self._store.names():
            for version in self._store.versions(name):
                record = self._store.record(name, version)
                if record is not None:
                    found.append(self._stored(name, version, record))
        return sorted(found, key=lambda item: (item.name, item.created, _order(item.version)))

    def split_dataset(
        self,
        dataset_name: str,
        train_ratio: float = 0.8,
        save: bool = False,
        stratify: str | None = None,
        group: str | None = None,
        *,
        version: str | None = None,
        seed: int = 0,
    ) -> tuple[StoredDataset, StoredDataset]:
        """Divide a version into a train and a test part. Equal rows (apart from case, spaces and punctuation
        at the ends) stay together.

        Membership depends on the rows and the seed, not on their order. It needs 8 bytes per row.

        Args:
            save: save the parts as `{name}_train` and `{name}_test`, with their lineage.
            stratify: a field whose values are spread in proportion.
            group: a field whose equal values stay together, such as a conversation.

        Raises:
            DataError: there is no such version or field, or a part would be empty.
        """
        if not 0 < train_ratio < 1:
            raise DataError(f"train_ratio must be between 0 and 1, not {train_ratio:g}")
        source = self.load_dataset(dataset_name, version)
        for name in (stratify, group):
            if name is not None and name not in source.fields:
                raise DataError(
                    f"{source.full_name} has no field {name!r}; it has {', '.join(source.fields)}"
                )
        division = _Division(source, train_ratio, stratify, group, seed)
        return (
            self._part(source, division, "train", save=save),
            self._part(source, division, "test", save=save),
        )

    def diff(self, dataset_name: str, old: str, new: str) -> DatasetDiff:
        """What changed from one version to another. It needs memory for a digest of each row."""
        before, after = self.load_dataset(dataset_name, old), self.load_dataset(dataset_name, new)
        known: dict[bytes, int] = {}
        for row in before:
            key = _row_key(row)
            known[key] = known.get(key, 0) + 1
        added: list[dict[str, Any]] = []
        removed: list[dict[str, Any]] = []
        common = new_rows = 0
        for row in after:
            key = _row_key(row)
            if known.get(key):
                known[key] -= 1
                common += 1
                continue
            new_rows += 1
            if len(added) < _SHOWN:
                added.append(row)
        if any(known.values()):
            left = dict(known)
            for row in before:
                key = _row_key(row)
                if left.get(key):
                    left[key] -= 1
                    removed.append(row)
                    if len(removed) == _SHOWN:
                        break
        return DatasetDiff(
            new_rows,
            sum(known.values()),
            common,
            tuple(added),
            tuple(removed),
            tuple(name for name in after.fields if name not in before.fields),
            tuple(name for name in before.fields if name not in after.fields),
        )

    def log_dataset_to_mlflow(
        self, dataset_name: str, version: str | None = None, context: str = "evaluation"
    ) -> StoredDataset:
        """Link a version to the current run of a tracker, as its input. It makes no run.

        Raises:
            DataError: there is no such version, or no current run.
        """
        found = self.load_dataset(dataset_name, version)
        run = current_run.get()
        if run is None:
            raise DataError(
                f"there is no current run to link {found.full_name} to: start one with a tracker's "
                "start_run, or call log_dataset of the run"
            )
        run.log_dataset(found.full_name, found.digest, found.rows, context)
        return found

    # How

    def _check(self, found: StoredDataset) -> None:
        """Raise `DataError` if a version's rows were changed, naming the first that don't fit any more."""
        digest = hashlib.sha256()
        for line in self._store.lines(found.name, found.version):
            digest.update(line)
        if digest.hexdigest() == found.digest:
            return
        what = _changed(f"{found.name} {found.version}", found.digest)
        lines = self._store.lines(found.name, found.version)
        try:
            for _ in checked(map(_row, lines), found.schema, "it"):
                pass
        except DataError as error:
            raise DataError(f"{what}; {error}") from None
        raise DataError(what)

    def _stored(self, name: str, version: str, record: Mapping[str, Any]) -> StoredDataset:
        if record.get("record_digest") != _record_digest(record) or record.get("name") != name:
            raise DataError(
                f"the record of {name} {version} was changed after it was saved: restore it from a backup, "
                "or save the rows as a new version"
            )
        digest, schema = str(record["digest"]), record.get("schema", {})
        order = list(schema.get("properties", ()))
        whole = f"{name} {version}"

        def read() -> Iterator[dict[str, Any]]:
            lines = _verified(self._store.lines(name, version), digest, whole)
            for row in checked(map(_row, lines), schema, whole):
                yield {name: row[name] for name in order if name in row}

        return StoredDataset(
            name,
            version,
            digest,
            int(record.get("rows", 0)),
            schema,
            str(record.get("description", "")),
            record.get("tags", {}),
            record.get("lineage", {}),
            str(record.get("created", "")),
            read,
        )

    def _added(self, name: str, version: str, file: Path, record: dict[str, Any]) -> StoredDataset:
        record["version"] = version
        record["record_digest"] = _record_digest(record)
        if not self._store.add(name, version, file, record):
            known = self._store.record(name, version)
            if known is None or any(known.get(part) != record[part] for part in ("digest", "schema")):
                raise DataError(
                    f"{name} {version} exists with other content: a version never changes. Save it as "
                    "another version"
                )
            record = known
        return self._stored(name, version, record)

    def _latest(self, name: str) -> str | None:
        records = {version: self._store.record(name, version) or {} for version in self._store.versions(name)}
        return max(
            records,
            key=lambda version: (str(records[version].get("created", "")), _order(version)),
            default=None,
        )

    def _next(self, name: str) -> str:
        numbers = [
            int(found[1]) for version in self._store.versions(name) if (found := _NUMBERED.fullmatch(version))
        ]
        return f"v{max(numbers, default=0) + 1}"

    def _missing(self, name: str, version: str | None) -> str:
        versions = self._store.versions(name)
        if versions:
            return f"{name} has no version {version!r}; it has {', '.join(sorted(versions, key=_order))}"
        names = self._store.names()
        listed = f"It has {', '.join(names)}" if names else "It has none yet: save one with save_dataset"
        return f"there is no data set {name!r} in {self.base_path}. {listed}"

    def _part(self, source: StoredDataset, division: "_Division", part: str, *, save: bool) -> StoredDataset:
        lineage = {
            "parent": {"name": source.name, "version": source.version, "digest": source.digest},
            "split": {**division.options, "part": part},
        }

        def read() -> Iterator[dict[str, Any]]:
            return (row for row in source if division.is_train(row) == (part == "train"))

        if save:
            return self.save_dataset(
                read(),
                f"{source.name}_{part}",
                version=source.version,
                lineage=lineage,
                personal=source.personal,
            )
        digest, schema = _written(read(), None, f"{source.name}, {part} part")
        return StoredDataset(
            f"{source.name}_{part}",
            source.version,
            digest,
            schema.rows,
            schema.schema(),
            lineage=lineage,
            _read=read,
        )


_SHOWN = 10


class _Division:
    """Which rows are in the train part: those of a stratum whose key comes first in a random order."""

    def __init__(
        self, source: StoredDataset, ratio: float, stratify: str | None, group: str | None, seed: int
    ) -> None:
        self.options = {"train_ratio": ratio, "stratify": stratify, "group": group, "seed": seed}
        self._stratify, self._group, self._seed = stratify, group, seed
        self._strata: dict[int, str] = {}
        keys: dict[str, list[int]] = {}
        for row in source:
            key = self._key(row)
            keys.setdefault(self._stratum(row, key), []).append(key)
        self._last = {
            stratum: _last_key(np.array(found, np.uint64), ratio) for stratum, found in keys.items()
        }

    def is_train(self, row: Mapping[str, Any]) -> bool:
        key = self._key(row)
        return key <= self._last[self._stratum(row, key)]

    def _key(self, row: Mapping[str, Any]) -> int:
        kept = row if self._group is None else {self._group: row.get(self._group)}
        text = f"{self._seed}:{sha256(fold(kept))}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def _stratum(self, row: Mapping[str, Any], key: int) -> str:
        if self._stratify is None:
            return ""
        value = sha256(row.get(self._stratify))
        # A group belongs to the stratum of its first row.
        return self._strata.setdefault(key, value) if self._group is not None else value


def _last_key(keys: "np.ndarray", ratio: float) -> int:
    """The largest key of the train part, so that its size is as near to the ratio as whole keys allow."""
    found, counts = np.unique(keys, return_counts=True)
    sizes = np.cumsum(counts)
    wanted = ratio * keys.size
    position = int(np.argmin(np.abs(sizes - wanted)))
    if len(found) > 1:
        position = min(position, len(found) - 2)  # some for the test part
        if wanted < sizes[0] / 2:
            return int(found[0])
    return int(found[position])


def _written(rows: Iterable[Mapping[str, Any]], file: Path | None, name: str) -> tuple[str, SchemaBuilder]:
    """Write rows as canonical JSON; their digest and schema."""
    digest, schema = hashlib.sha256(), SchemaBuilder()
    target = None if file is None else file.open("wb")
    try:
        for number, row in enumerate(rows, 1):
            try:
                line = json_text(dict(row), compact=True).encode() + b"\n"
            except (TypeError, ValueError) as error:
                raise DataError(f"{name}, row {number}: {error}") from None
            stored = json.loads(line)
            schema.add({str(name): stored[str(name)] for name in row})
            digest.update(line)
            if target is not None:
                target.write(line)
    finally:
        if target is not None:
            target.close()
    if not schema.rows:
        raise DataError(f"{name} has no rows")
    return digest.hexdigest(), schema


def _verified(lines: Iterable[bytes], digest: str, name: str) -> Iterator[bytes]:
    """The lines; raises `DataError` after the last one if they are not those of the digest. The lines
    are yielded before the check: a caller that must not act on a changed row reads to the end first."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line)
        yield line
    if found.hexdigest() != digest:
        raise DataError(_changed(name, digest))


def _changed(name: str, digest: str) -> str:
    return f"{name} was changed after it was saved: its digest is not {digest[:8]}…"


def _row(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        raise DataError("a row is not JSON: the file was changed after it was saved") from None
    if not isinstance(found, dict):
        raise DataError("a row is not an object: the file was changed after it was saved")
    return found


def _row_key(row: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json_text(dict(row), compact=True).encode()).digest()[:12]


def _order(version: str) -> list[tuple[str, int]]:
    """Sorts v2 before v10."""
    parts = re.split(r"(\d+)", version)
    return [(text, int(digits)) for text, digits in zip(parts[::2], [*parts[1::2], "0"], strict=True)]


def _record_digest(record: Mapping[str, Any]) -> str:
    """The digest of a record, apart from what the store adds."""
    own = ("record_digest", "file")
    return sha256({name: value for name, value in record.items() if name not in own})


def _marked(schema: dict[str, Any], personal: Iterable[str], name: str) -> dict[str, Any]:
    """A schema whose personal fields are marked."""
    for field_name in personal:
        if field_name not in schema["properties"]:
            raise DataError(f"{name} has no field {field_name!r}; it has {', '.join(schema['properties'])}")
        schema["properties"][field_name] = {**schema["properties"][field_name], PERSONAL: True}
    return schema


def _check_name(name: str, what: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataError(
            f"{what} {name!r}: use letters, digits, '_', '-' and '.', in a text with a letter or digit first"
        )
