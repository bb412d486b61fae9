"""A split gives a fair test: nothing the search has seen, whatever was added, reworded or clustered."""

import random
from dataclasses import replace

import pytest

from agentcore.data import Dataset, fold, given_splits, planned_sizes, shared_questions, too_few_clusters
from agentcore.errors import DataError


def rows(count, answer=lambda index: "ab"[index % 2], start=0):
    return [{"question": f"Q {index}?", "answer": answer(index)} for index in range(start, start + count)]


def where(splits):
    return {item.values["question"]: name for name, part in splits.parts.items() for item in part}


@pytest.mark.parametrize("answer", [lambda index: "ab"[index % 2], str], ids=["labels", "texts"])
@pytest.mark.parametrize("count", [60, 200, 2000])
def test_adding_examples_moves_few(count, answer):
    before = where(Dataset.from_rows(rows(count, answer)).split())
    more = [*rows(count, answer), *rows(count // 20, answer, start=10_000)]
    random.Random(0).shuffle(more)
    after = where(Dataset.from_rows(more).split())
    assert sum(before[key] != after[key] for key in before) <= 0.06 * count + 2


def test_none_moves_if_an_earlier_split_is_kept():
    earlier = Dataset.from_rows(rows(100)).split()
    later = Dataset.from_rows([*rows(100), *rows(40, start=500)]).split(seed=9, keep=earlier.members())
    before, after = where(earlier), where(later)
    assert all(after[key] == part for key, part in before.items())


def test_a_reworded_example_of_an_earlier_train_split_stays_there():
    earlier = Dataset.from_rows(rows(60)).split()
    (question, *_) = [item.values["question"] for item in earlier.train]
    again = [{"question": f"  {question.upper().rstrip('?')}!  ", "answer": "a"}, *rows(60, start=500)]
    later = Dataset.from_rows(again).split(keep=earlier.members())
    assert where(later)[again[0]["question"]] == "train"


@pytest.mark.parametrize(
    "twin",
    [
        str.upper,
        "  {}  ".format,
        "{}.".format,
        "{} !?".format,
        "\n{}\t".format,
        lambda text: text.replace(" ", "   "),
        lambda text: text.replace("What", "Ｗｈａｔ"),
        lambda text: text.replace("is", "i\u200bs"),
        lambda text: f"\ufeff{text}",
        lambda text: f"`{text}` 🙂",
    ],
)
def test_what_a_metric_would_fold_stays_together(twin):
    several = []
    for index in range(60):
        text = f"What is number {index}"
        several += [{"question": text, "answer": "x"}, {"question": twin(text), "answer": "y"}]
    splits = Dataset.from_rows(several).split()
    folded = [{fold(item.values["question"]) for item in part} for part in splits.parts.values()]
    assert sum(map(len, folded)) == len(set().union(*folded)) == 60


def test_words_that_differ_are_not_folded():
    assert fold("is 3 < 4") != fold("is 3 > 4")
    assert fold("resume") != fold("résumé")
    assert fold("C++") != fold("C")


def test_numbers_are_the_same_as_text():
    """A CSV file with one `unknown` makes text of a whole column."""
    assert fold({"Size": 5, "open": True}) == fold({"size": "5.0", "open": "true"})
    assert fold("it’s") == fold("it's")
    assert fold("1.50") == fold(1.5)
    assert len({str(fold(item)) for item in ("1", "-1", "01a", "1e5", "0.1", "$5", "5 %")}) == 7


def test_what_any_earlier_run_has_seen_stays_seen():
    """The third run starts from the second, which started from the first with other data."""
    first = Dataset.from_rows(rows(60)).split()
    second = replace(
        Dataset.from_rows(rows(60, start=500)).split(keep=first.members()), inherited=first.members()
    )
    third = Dataset.from_rows(rows(60)).split(seed=3, keep=second.members())
    assert where(third) == where(first)


def test_a_cluster_is_never_divided():
    several = [
        {"question": f"q{index}", "doc": index // 10, "answer": "ab"[index % 2]} for index in range(300)
    ]
    splits = Dataset.from_rows(several, cluster="doc").split()
    clusters = [set(part.clusters) for part in splits.parts.values() if len(part)]
    assert sum(map(len, clusters)) == len(set().union(*clusters)) == 30
    assert splits.test.input_fields == ("question",)
    assert splits.test.output_fields == ("answer",)
    assert Dataset.from_rows(several).with_cluster("doc").split().sizes == splits.sizes


def test_clusters_that_share_a_question_are_one():
    several = [{"question": f"q{index % 150}", "doc": index // 10, "answer": "a"} for index in range(300)]
    splits = Dataset.from_rows(several, cluster="doc").split()
    asked = [{item.values["question"] for item in part} for part in splits.parts.values()]
    assert sum(map(len, asked)) == len(set().union(*asked))


def test_a_field_that_is_not_there_is_no_cluster():
    with pytest.raises(DataError, match="no field 'conv' for cluster; it has question, answer"):
        Dataset.from_rows(rows(20), cluster="conv")


def test_too_few_clusters_are_named():
    several = [{"question": f"q{index}", "doc": index // 50, "answer": "a"} for index in range(200)]
    with pytest.raises(DataError, match="that share a cluster, count once"):
        Dataset.from_rows(several, cluster="doc").split()
    apart = [rows(12, start=start) for start in (0, 100, 200)]
    for part in apart:
        for number, row in enumerate(part):
            row["doc"] = f"{row['question']}{number // 3}"[:5]
    given = given_splits(*[Dataset.from_rows(part, cluster="doc") for part in apart])
    assert not too_few_clusters(given)
    for row in apart[2]:
        row["doc"] = "one"
    (warning,) = too_few_clusters(given_splits(*[Dataset.from_rows(part, cluster="doc") for part in apart]))
    assert warning == "the test split has 1 cluster: fewer than 6 can't prove a gain"


@pytest.mark.parametrize("seed", range(8))
def test_a_rare_label_is_in_train_and_test(seed):
    several = rows(50, lambda index: "rare" if index < 3 else "ab"[index % 2])
    splits = Dataset.from_rows(several).split(seed=seed)
    for part in (splits.train, splits.test):
        assert any(item.values["answer"] == "rare" for item in part)


def test_labels_are_in_proportion():
    several = rows(400, lambda index: "yes" if index % 10 == 0 else "no")
    splits = Dataset.from_rows(several).split()
    for part in splits:
        share = sum(item.values["answer"] == "yes" for item in part) / len(part)
        assert share == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("count", [10, 14, 50, 100, 1000, 10_000])
def test_the_sizes_are_those_planned(count):
    splits = Dataset.from_rows(rows(count, str)).split()
    train, validation, test = planned_sizes(count)
    assert train <= 150
    assert validation <= 300
    assert test <= 600
    sizes = splits.sizes
    assert sum(sizes.values()) == count == sum(len(part) for part in splits.parts.values())
    if count >= 50:
        assert (sizes["train"], sizes["validation"], sizes["test"]) == (train, validation, test)
    assert ("sealed" in sizes) == (splits.sealed is not None) == (count > 800)


def test_own_fractions_seal_nothing():
    splits = Dataset.from_rows(rows(5000, str)).split(fractions=(0.2, 0.2, 0.6))
    assert [len(part) for part in splits] == [1000, 1000, 3000]
    assert splits.sealed is None


def test_given_splits_that_share_a_question_are_told():
    data = Dataset.from_rows(rows(30))
    twin = [{"question": "q 0", "answer": "b"}, *rows(10, start=100)]
    splits = given_splits(data, Dataset.from_rows(rows(10, start=50)), Dataset.from_rows(twin))
    assert shared_questions(splits)
    apart = given_splits(data, Dataset.from_rows(rows(10, start=50)), Dataset.from_rows(rows(10, start=100)))
    assert not shared_questions(apart)


def test_too_few_are_left_to_test_on():
    earlier = Dataset.from_rows(rows(20)).split()
    seen = [*earlier.train, *earlier.validation]
    again = Dataset.from_rows([*[dict(item.values) for item in seen], *rows(4, start=100)])
    with pytest.raises(DataError, match="needed: the others are demonstrations of the program"):
        again.split(keep=earlier.members())
