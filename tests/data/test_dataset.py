import random

import dspy
import numpy as np
import pandas as pd
import pytest

from agentcore.data import BUILTIN_DATASETS, Dataset, given_splits, load_builtin, load_dataset
from agentcore.errors import DataError

ROWS = [{"question": f"q{index}", "answer": f"a{index}"} for index in range(30)]


def test_splits_share_no_example_and_lose_none():
    data = Dataset.from_rows(ROWS)
    splits = data.split(seed=3, fractions=(0.3, 0.3, 0.4))
    digests = [{item.digest for item in part} for part in splits]
    assert not digests[0] & digests[1]
    assert not digests[0] & digests[2]
    assert not digests[1] & digests[2]
    assert set().union(*digests) == {item.digest for item in data}
    assert splits.sizes == {"train": 9, "validation": 9, "test": 12}


def test_splits_depend_on_seed_and_content_not_on_order():
    shuffled = list(ROWS)
    random.Random(1).shuffle(shuffled)
    first, second = (Dataset.from_rows(rows).split(seed=0) for rows in (ROWS, shuffled))
    for one, other in zip(first, second, strict=True):
        assert {item.digest for item in one} == {item.digest for item in other}
    other_seed = Dataset.from_rows(ROWS).split(seed=1)
    assert {item.digest for item in other_seed.test} != {item.digest for item in first.test}


def test_rows_with_equal_inputs_stay_in_one_split():
    """Iris holds one flower twice: a split that let it stand on both sides would leak."""
    rows = [*ROWS, *[{"question": row["question"], "answer": "another"} for row in ROWS]]
    splits = Dataset.from_rows(rows).split()
    inputs = [{item.input_digest for item in part} for part in splits]
    assert not inputs[0] & inputs[1]
    assert not inputs[1] & inputs[2]
    assert not inputs[0] & inputs[2]
    assert sum(splits.sizes.values()) == 60


def test_digest_is_of_the_content():
    data = Dataset.from_rows(ROWS)
    assert data.digest == Dataset.from_rows([dict(reversed(row.items())) for row in ROWS]).digest
    changed = [*ROWS[:-1], {"question": "q29", "answer": "other"}]
    assert data.digest != Dataset.from_rows(changed).digest
    assert len(data.digest) == 64


@pytest.mark.parametrize("count", [1, 2, 9])
def test_too_few_examples_says_how_many_are_needed(count):
    with pytest.raises(DataError, match=r"at least 10 are needed"):
        Dataset.from_rows(ROWS[:count]).split()


def test_the_least_number_named_is_enough():
    assert Dataset.from_rows(ROWS[:10]).split().sizes == {"train": 2, "validation": 2, "test": 6}
    with pytest.raises(DataError, match="at least 10"):
        Dataset.from_rows(ROWS[:9]).split()


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.4, 0.7, -0.1)])
def test_wrong_fractions(fractions):
    with pytest.raises(DataError, match="sum to 1"):
        Dataset.from_rows(ROWS).split(fractions=fractions)


def test_given_splits_refuse_a_shared_example():
    parts = [Dataset.from_rows(ROWS[a:b]) for a, b in ((0, 10), (9, 20), (20, 30))]
    with pytest.raises(DataError, match=r"row 1 of the validation split is also in the train split.*q9"):
        given_splits(*parts)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no examples"),
        (["text"], "row 1: expected a dict"),
        ([{}], "row 1: no fields"),
        ([{"q": "a", "answer": "b"}, {"q": "a"}], r"row 2: its fields differ .*lacks answer"),
        ([{"q": "a", "answer": "b"}, {"q": "a", "answer": "b", "x": 1}], r"row 2: .*has extra x"),
        ([{"q": float("nan"), "answer": "b"}], r"row 1, field 'q': nan is not a finite number"),
        (
            [{"q": "a", "answer": object()}],
            r"row 1, field 'answer': a value of type object can't be stored as JSON",
        ),
        ([{"two words": "a", "answer": "b"}], r"'two words' is not a valid Python identifier.*'two_words'"),
        ([{"a": 1, "b": 2}], r"can't tell inputs from outputs"),
    ],
)
def test_unusable_rows(rows, message):
    with pytest.raises(DataError, match=message):
        load_dataset(rows)


def test_input_fields_must_leave_an_output():
    with pytest.raises(DataError, match="every field is an input"):
        Dataset.from_rows(ROWS, input_fields=["question", "answer"])
    with pytest.raises(DataError, match="no field 'nothing'"):
        Dataset.from_rows(ROWS, input_fields=["nothing"])


def test_all_sources_give_the_same_data(tmp_path):
    rows = [
        {"text": f"row, “{index}”", "weight": index / 2, "label": "ä" if index % 2 else "b"}
        for index in range(4)
    ]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "data.csv", index=False)
    frame.to_json(tmp_path / "data.jsonl", orient="records", lines=True, force_ascii=False)
    frame.to_json(tmp_path / "data.json", orient="records", force_ascii=False)
    examples = [dspy.Example(**row).with_inputs("text", "weight") for row in rows]
    sources = [rows, frame, examples, *(tmp_path / f"data.{kind}" for kind in ("csv", "jsonl", "json"))]
    assert {load_dataset(source).digest for source in sources} == {Dataset.from_rows(rows).digest}


def test_numpy_values_are_plain():
    data = load_dataset([{"x": np.float64(1.5), "n": np.int64(3), "label": np.str_("a")}])
    assert data[0].values == {"x": 1.5, "n": 3, "label": "a"}
    assert [type(value) for value in data[0].values.values()] == [float, int, str]


def test_marked_inputs_of_dspy_examples_win():
    data = load_dataset([dspy.Example(a=1, label=2).with_inputs("label")])
    assert data.input_fields == ("label",)
    assert data.output_fields == ("a",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"q": 1, "answer": 2}\n{"q": 1,', "line 2: not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object"),
        ("a.json", "{}", "expected a list"),
        ("a.json", "[", "a.json: not valid JSON"),
        ("a.csv", "q,answer\n1,2,3\n", "line 2: it has 3 columns, but the header has 2"),
        ("a.csv", "q,answer\n1\n", "line 2: it has 1 columns, but the header has 2"),
        ("a.csv", "q,answer\n", "no examples"),
        ("a.csv", "q,answer,q\n1,2,3\n", "column 'q' appears twice in the header"),
        ("a.csv", "q,answer\n1,2\nq,answer\n3,4\n", "line 3: this line repeats the header"),
        ("a.parquet", "x", "can't be read as Parquet"),
        ("a.txt", "x", "unknown data format"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / name)


def test_missing_file():
    with pytest.raises(DataError, match=r"nowhere.csv: no such file"):
        load_dataset("nowhere.csv")


def test_builtin_data_is_real():
    sizes = {name: len(load_builtin(name)) for name in BUILTIN_DATASETS}
    assert sizes == {"iris": 150, "wine": 178, "breast_cancer": 569}
    iris = load_dataset("iris")
    assert iris.output_fields == ("species",)
    assert iris.input_fields == ("sepal_length", "sepal_width", "petal_length", "petal_width")
    assert iris[0].values["sepal_length"] == 5.1
    with pytest.raises(DataError, match="no built-in data set 'mnist'"):
        load_builtin("mnist")


def test_dspy_examples_have_their_inputs_marked():
    example = load_builtin("iris").dspy()[0]
    assert set(example.inputs().keys()) == {"sepal_length", "sepal_width", "petal_length", "petal_width"}
    assert example.species == "setosa"


def test_csv_columns_keep_what_is_no_number(tmp_path):
    """Codes, names with underscores and ids beyond a float's digits stay text."""
    (tmp_path / "a.csv").write_text(
        "zip,version,id,amount,count,label\n01234,1_000,12345678901234567890,1.50,3,01\n90210,2_0,1,-2e3,-4,02\n"
    )
    assert load_dataset(tmp_path / "a.csv").rows() == [
        {
            "zip": "01234",
            "version": "1_000",
            "id": "12345678901234567890",
            "amount": 1.5,
            "count": 3,
            "label": "01",
        },
        {"zip": "90210", "version": "2_0", "id": "1", "amount": -2000.0, "count": -4, "label": "02"},
    ]


@pytest.mark.parametrize("name", ["base", "self", "dspy_uuid"])
def test_names_that_dspy_takes_for_itself(name):
    with pytest.raises(DataError, match="reserved by DSPy"):
        load_dataset([{name: "a", "answer": "b"}])


@pytest.mark.parametrize(
    "value",
    ["\ud83d", [float("inf")], {"a": object()}, 10**5000, {object(): 1}, lambda: 0],
    ids=["surrogate", "infinity", "object", "long integer", "object as key", "function"],
)
def test_values_that_json_cannot_hold(value):
    with pytest.raises(DataError, match="row 1, field 'q'"):
        load_dataset([{"q": value, "answer": "b"}])


def test_arrays_are_lists():
    assert load_dataset([{"q": np.array([1, 2]), "answer": "b"}])[0].values["q"] == [1, 2]


def test_files_that_break_their_parsers(tmp_path):
    (tmp_path / "a.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        load_dataset(tmp_path / "a.jsonl")
