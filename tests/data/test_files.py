"""Files and tables as people have them."""

import datetime
import logging

import dspy
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from agentcore.data import load_dataset
from agentcore.errors import DataError


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING)
    return caplog


def test_the_index_column_of_pandas_is_left_out(tmp_path, told):
    frame = pd.DataFrame({"q": ["a", "b"], "answer": ["x", "y"]})
    frame.to_csv(tmp_path / "a.csv")
    assert load_dataset(tmp_path / "a.csv").fields == ("q", "answer")
    assert "the first column has no name" in told.text
    read = pd.read_csv(tmp_path / "a.csv")
    assert next(iter(read.columns)) == "Unnamed: 0"
    assert load_dataset(read).rows() == load_dataset(tmp_path / "a.csv").rows()


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators_are_told(tmp_path, told, mark):
    (tmp_path / "a.csv").write_text(f"q{mark}answer\na, b{mark}1\n")
    assert load_dataset(tmp_path / "a.csv").rows() == [{"q": "a, b", "answer": 1}]
    assert f"read with {mark!r} as the separator" in told.text


def test_tabs_are_expected_in_a_tsv_file(tmp_path, told):
    (tmp_path / "a.tsv").write_text("q, really\tanswer\na\tb\n".replace(", really", ""))
    assert load_dataset(tmp_path / "a.tsv").rows() == [{"q": "a", "answer": "b"}]
    assert not told.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "q,answer\nä,1\n"),
        ("a.jsonl", '{"q": "ä", "answer": 1}\n'),
        ("a.json", '[{"q": "ä", "answer": 1}]'),
    ],
)
def test_byte_order_marks(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert load_dataset(tmp_path / name).rows() == [{"q": "ä", "answer": 1}]


def test_large_cells_quoted_lines_and_spaces_in_the_header(tmp_path):
    long = "word " * 100_000
    (tmp_path / "a.csv").write_text(f'q, answer,\n"{long}\nand more",b,\n\n"c",d,\n')
    assert load_dataset(tmp_path / "a.csv").rows() == [
        {"q": f"{long}\nand more", "answer": "b"},
        {"q": "c", "answer": "d"},
    ]


def test_parquet_and_tables(tmp_path):
    rows = [{"when": datetime.date(2024, 1, day), "tags": ["a", "b"], "answer": day} for day in (1, 2)]
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet")
    assert load_dataset(tmp_path / "a.parquet").rows() == rows
    assert load_dataset(table).rows() == rows
    pd.DataFrame(rows).to_parquet(tmp_path / "b.parquet")
    assert load_dataset(tmp_path / "b.parquet").rows() == rows


def test_a_frames_own_types():
    frame = pd.DataFrame({"when": pd.to_datetime(["2024-01-01"]), "n": [1], "part": [None], "answer": ["x"]})
    row = load_dataset(frame)[0].values
    assert row == {"when": datetime.datetime(2024, 1, 1), "n": 1, "part": None, "answer": "x"}
    assert [type(value) for value in row.values()] == [datetime.datetime, int, type(None), str]


class LikeADataset:
    """What Hugging Face's `datasets` gives: an iterable of dicts."""

    column_names = ("q", "answer")

    def __iter__(self):
        return iter([{"q": "a", "answer": "b"}])


def test_a_split_of_a_hugging_face_data_set():
    assert load_dataset(LikeADataset()).rows() == [{"q": "a", "answer": "b"}]
    with pytest.raises(DataError, match=r"pass one of its parts \(train, test\)"):
        load_dataset({"train": LikeADataset(), "test": LikeADataset()})


def test_columns_that_appear_twice():
    with pytest.raises(DataError, match="column q appears twice"):
        load_dataset(pd.DataFrame([[1, 2, 3]], columns=["q", "q", "answer"]))


def test_examples_keep_their_values():
    history = dspy.History(messages=[{"q": "a"}])
    data = load_dataset([dspy.Example(history=history, answer={1, 2}).with_inputs("history")])
    assert data[0].values["history"] is history
    assert data[0].values["answer"] == {1, 2}
