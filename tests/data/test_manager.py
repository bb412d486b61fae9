"""Versions of data sets: immutable, checked, split, compared, in a directory and in S3."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest

from agentcore.data import Dataset, DatasetManager
from agentcore.data._versions import Bucket
from agentcore.errors import DataError, StorageError
from agentcore.tracking import RunTracker
from tests.support.s3_server import ACCESS_KEY, REGION, SECRET_KEY

ROWS = [
    {
        "request_id": f"eval_{number:03}",
        "annual_income": 1000 * number + 0.5,
        "note": None if number % 10 else "checked",
        "conversation": f"c{number // 4}",
        "expected_outcome": "approved" if number % 4 == 0 else "rejected",
    }
    for number in range(200)
]


@pytest.fixture(params=["directory", "s3"])
def manager(request, tmp_path, monkeypatch):
    if request.param == "directory":
        return DatasetManager(tmp_path / "evaluation")
    stack = request.getfixturevalue("own_stack")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_DEFAULT_REGION", REGION),
        ("MLFLOW_S3_ENDPOINT_URL", stack.s3.url),
    ):
        monkeypatch.setenv(name, value)
    return DatasetManager(f"s3://mlflow/{tmp_path.name}")


def test_save_and_load(manager):
    saved = manager.save_dataset(ROWS, "loan_test", "Monthly set", tags={"month": "october", "n": 4})
    assert (saved.version, len(saved)) == ("v1", 200)
    found = manager.load_dataset("loan_test")
    assert found.to_list() == ROWS
    assert list(found.to_list()[0]) == list(ROWS[0])
    assert found.digest == saved.digest
    assert (found.description, found.tags) == ("Monthly set", {"month": "october", "n": "4"})
    properties = found.schema["properties"]
    assert properties["annual_income"] == {"type": "number"}
    assert properties["note"] == {"type": ["null", "string"]}
    assert found.to_pandas().shape == (200, 5)
    dataset = found.dataset(["annual_income"])
    assert isinstance(dataset, Dataset)
    assert dataset.name == "loan_test_v1"
    # The same content is no new version; other content is.
    assert manager.save_dataset(ROWS, "loan_test").version == "v1"
    assert manager.save_dataset(ROWS[:100], "loan_test").version == "v2"
    assert manager.save_dataset(ROWS, "loan_test", version="2025.10").version == "2025.10"
    assert manager.save_dataset(ROWS, "loan_test", version="2025.10").digest == saved.digest
    with pytest.raises(DataError, match="exists with other content"):
        manager.save_dataset(ROWS[1:], "loan_test", version="2025.10")
    assert {item.version for item in manager.list_datasets()} == {"v1", "v2", "2025.10"}


def test_missing(manager):
    with pytest.raises(DataError, match="It has none yet"):
        manager.load_dataset("loan_test")
    manager.save_dataset(ROWS, "loan_test")
    with pytest.raises(DataError, match="It has loan_test"):
        manager.load_dataset("loan")
    with pytest.raises(DataError, match="has no version 'v3'; it has v1"):
        manager.load_dataset("loan_test", "v3")


def test_a_split_is_saved_with_its_lineage(manager):
    source = manager.save_dataset(ROWS, "loan")
    train, test = manager.split_dataset("loan", 0.75, save=True, stratify="expected_outcome")
    assert abs(len(train) - 150) <= 1
    approved = [row for row in test if row["expected_outcome"] == "approved"]
    assert abs(len(approved) - 12.5) <= 1
    again = manager.load_dataset("loan_test")
    assert again.lineage["parent"] == {"name": "loan", "version": "v1", "digest": source.digest}
    assert again.lineage["split"] == {
        "train_ratio": 0.75,
        "stratify": "expected_outcome",
        "group": None,
        "seed": 0,
        "part": "test",
    }
    together = [row["request_id"] for part in (train, test) for row in part]
    assert sorted(together) == [row["request_id"] for row in ROWS]


@pytest.mark.parametrize("stratify", [None, "expected_outcome"])
def test_groups_and_twins_stay_together(tmp_path, stratify):
    manager = DatasetManager(tmp_path)
    twins = [{**row, "request_id": f"{row['request_id'].upper()}."} for row in ROWS[:50]]
    manager.save_dataset([*ROWS, *twins], "loan")
    train, test = manager.split_dataset("loan", 0.6, stratify=stratify, group="conversation")
    assert not {row["conversation"] for row in train} & {row["conversation"] for row in test}
    assert abs(len(train) - 150) <= 8
    train, test = manager.split_dataset("loan", 0.5)
    folded = [{row["request_id"].casefold().strip(".") for row in part} for part in (train, test)]
    assert not folded[0] & folded[1]
    # Neither the order of the rows nor earlier splits matter; the seed does.
    shuffled = manager.save_dataset(list(reversed([*ROWS, *twins])), "shuffled")
    assert shuffled.digest != manager.load_dataset("loan").digest
    other, _ = manager.split_dataset("shuffled", 0.5)
    assert {row["request_id"] for row in other} == {row["request_id"] for row in train}
    seeded, _ = manager.split_dataset("loan", 0.5, seed=1)
    assert {row["request_id"] for row in seeded} != {row["request_id"] for row in train}


def test_wrong_splits(tmp_path):
    manager = DatasetManager(tmp_path)
    manager.save_dataset(ROWS, "loan")
    for ratio in (0, 1, 1.5, -0.1):
        with pytest.raises(DataError, match="between 0 and 1"):
            manager.split_dataset("loan", ratio)
    with pytest.raises(DataError, match="no field 'outcome'; it has request_id"):
        manager.split_dataset("loan", stratify="outcome")
    manager.save_dataset(ROWS[:1], "one")
    with pytest.raises(DataError, match="no rows"):
        manager.split_dataset("one")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("eval_007", "eval_997", "was changed after it was saved"),
        ('"annual_income":7000.5', '"annual_income":"7000.5"', "row 8: annual_income is string, not number"),
        ('"request_id":"eval_003"', '"id":"eval_003"', "row 4: request_id is missing, id is unknown"),
        ("}\n", "\n", "a row is not JSON"),
    ],
)
def test_a_changed_byte_is_noticed(tmp_path, old, new, told):
    manager = DatasetManager(tmp_path)
    loaded = manager.save_dataset(ROWS, "loan")
    file = tmp_path / "loan/v1/rows.jsonl"
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new, 1))
    with pytest.raises(DataError, match="was changed after it was saved") as error:
        manager.load_dataset("loan")
    assert told in str(error.value)
    with pytest.raises(DataError):
        loaded.to_list()


def test_a_damaged_record(tmp_path):
    manager = DatasetManager(tmp_path)
    manager.save_dataset(ROWS, "loan")
    (tmp_path / "loan/v1/dataset.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        manager.load_dataset("loan")


@pytest.mark.parametrize("name", ["../loan", "a/b", "", ".hidden", "a b", "x" * 200, 7])
def test_names_are_no_paths(tmp_path, name):
    manager = DatasetManager(tmp_path / "base")
    with pytest.raises(DataError, match="use letters"):
        manager.save_dataset(ROWS, name)
    with pytest.raises(DataError, match="use letters"):
        manager.save_dataset(ROWS, "loan", version=name)
    assert not (tmp_path / "base").exists()
    with pytest.raises(DataError):
        manager.load_dataset("loan", str(name) or "v1")


def test_every_kind_of_source(tmp_path):
    manager = DatasetManager(tmp_path / "base")
    rows = [{"question": f"q{number}", "answer": number} for number in range(5)]
    digest = manager.save_dataset(rows, "rows").digest
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    sources = [pd.DataFrame(rows), Dataset.from_rows(rows), iter(rows), (row for row in rows)]
    sources += [tmp_path / f"a.{kind}" for kind in ("parquet", "csv", "jsonl", "json")]
    for number, source in enumerate(sources):
        assert manager.save_dataset(source, f"source{number}").digest == digest, source
    assert manager.load_dataset("source7").lineage == {"source": str(tmp_path / "a.json")}
    for wrong, told in (
        ([], "no rows"),
        ([{"a": float("nan")}], "row 1"),
        ([1], "expected a dict"),
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path / "a.xml", "unknown data format"),
    ):
        with pytest.raises(DataError, match=told):
            manager.save_dataset(wrong, "wrong")
    assert "wrong" not in {item.name for item in manager.list_datasets()}


def test_a_version_taken_while_it_is_written(manager, monkeypatch):
    """Another writer finishes between this one's look and its last step. The tests' S3 server checks
    `If-None-Match` before it writes and not atomically, so that real concurrency proves nothing about it."""
    store, known = manager._store, manager._store.record

    def late(name, version):
        found = known(name, version)
        monkeypatch.setattr(store, "record", known)
        manager.save_dataset([{"a": "other"}], "loan", version="1.0")
        return found

    if isinstance(store, Bucket):
        monkeypatch.setattr(store, "record", late)
    else:
        manager.save_dataset([{"a": "other"}], "loan", version="1.0")
    with pytest.raises(DataError, match="exists with other content"):
        manager.save_dataset([{"a": "own"}], "loan", version="1.0")
    assert manager.load_dataset("loan").to_list() == [{"a": "other"}]


def test_two_writers_of_one_version(tmp_path):
    manager = DatasetManager(tmp_path)
    outcomes, refused, start = [], [], threading.Barrier(6)

    def write(number):
        start.wait()
        try:
            manager.save_dataset([{"a": number}], "loan", version="1.0")
            outcomes.append(number)
        except DataError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (won,) = outcomes
    assert all("exists with other content" in text for text in refused)
    assert len(refused) == 5
    assert manager.load_dataset("loan").to_list() == [{"a": won}]


def test_writers_without_a_version_get_one_each(tmp_path):
    manager = DatasetManager(tmp_path)
    threads = [
        threading.Thread(target=manager.save_dataset, args=([{"a": number}], "loan")) for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = {item.version: item.to_list() for item in manager.list_datasets()}
    assert sorted(versions) == [f"v{number}" for number in range(1, 7)]
    assert sorted(rows[0]["a"] for rows in versions.values()) == list(range(6))


def test_what_changed(tmp_path):
    manager = DatasetManager(tmp_path)
    manager.save_dataset(ROWS, "loan")
    manager.save_dataset([*ROWS[5:], ROWS[5], {"request_id": "new", "extra": True}], "loan")
    found = manager.diff("loan", "v1", "v2")
    assert (found.added_rows, found.removed_rows, found.common_rows) == (2, 5, 195)
    assert [row["request_id"] for row in found.removed] == [f"eval_{number:03}" for number in range(5)]
    assert found.added[0] == ROWS[5]
    assert (found.added_fields, found.removed_fields) == (("extra",), ())


async def test_a_version_is_an_input_of_the_current_run(tmp_path, config):
    manager = DatasetManager(tmp_path / "base")
    saved = manager.save_dataset(ROWS, "loan_test")
    with pytest.raises(DataError, match="no current run"):
        manager.log_dataset_to_mlflow("loan_test")
    tracker = RunTracker(config)
    run_id = await tracker.start_run()
    manager.log_dataset_to_mlflow("loan_test", context="evaluation")
    await tracker.end_run()
    with pytest.raises(DataError, match="no current run"):
        manager.log_dataset_to_mlflow("loan_test")
    (used,) = (await tracker.get_run(run_id)).inputs.dataset_inputs
    assert used.dataset.name == "loan_test_v1"
    assert saved.digest.startswith(used.dataset.digest)
    assert {tag.value for tag in used.tags} == {"evaluation"}
    assert len(await tracker.search_runs()) == 1


def test_the_current_run_of_a_blocking_tracker(tmp_path, config):
    manager = DatasetManager(tmp_path / "base")
    manager.save_dataset(ROWS, "loan_test")
    tracker = RunTracker(config).sync
    run_id = tracker.start_run()
    manager.log_dataset_to_mlflow("loan_test")
    tracker.end_run()
    assert len(tracker.get_run(run_id).inputs.dataset_inputs) == 1


MANY = """
import resource, sys
from agentcore.data import DatasetManager

manager = DatasetManager(sys.argv[1])
list(manager.save_dataset(({"id": n, "text": "word " * 20} for n in range(100)), "small"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
manager.save_dataset(({"id": n, "text": "word " * 20} for n in range(100_000)), "many")
assert sum(1 for _ in manager.load_dataset("many")) == 100_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_rows(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "many/v1/rows.jsonl").stat().st_size > 10 * 2**20
    assert int(done.stdout) < 5 * 1024  # KiB


def test_s3_away(monkeypatch):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match="Check the bucket"):
        DatasetManager("s3://none/base").load_dataset("loan")


def test_commands(command, tmp_path):
    Path("loan.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    code, told = command("data", "ls")
    assert (code, "agentcore data save" in told.out) == (0, True)
    code, told = command("data", "save", "loan.jsonl", "loan", "--description", "all", "--tag", "q=4")
    assert (code, told.out.startswith("loan v1: 200 rows")) == (0, True), told
    code, told = command("data", "split", "loan", "--stratify", "expected_outcome")
    assert "loan_test v1: 40 rows" in told.out
    code, told = command("data", "ls", "--json")
    assert [item["name"] for item in json.loads(told.out)] == ["loan", "loan_test", "loan_train"]
    code, told = command("data", "ls")
    assert "loan v1, test part" in " ".join(told.out.split())
    code, told = command("data", "show", "loan", "--rows", "1")
    assert "annual_income: number" in told.out
    assert json.loads(told.out.splitlines()[-1]) == ROWS[0]
    Path("more.jsonl").write_text("\n".join(map(json.dumps, ROWS[1:])))
    command("data", "save", "more.jsonl", "loan")
    code, told = command("data", "diff", "loan", "v1", "v2")
    assert (code, "1 removed" in told.out) == (1, True)
    code, told = command("data", "diff", "loan", "v1", "v1")
    assert code == 0
    code, told = command("data", "show", "loan_tset")
    assert (code, "there is no data set" in told.err) == (2, True)
    code, told = command("data", "save", "loan.jsonl", "loan", "--tag", "q")
    assert (code, "KEY=VALUE" in told.err) == (2, True)
