"""`agentcore optimize --data NAME`: a data set in AGENTCORE_DATA."""

import pytest

from agentcore.cli._data import stored_or_file
from agentcore.data import DatasetManager, StoredDataset
from agentcore.errors import DataError
from tests.support import colours


def test_a_stored_data_set_or_a_file(tmp_path):
    for text in (None, "rows.jsonl", "iris", "a b", "../x", "anything"):
        assert stored_or_file(text) == text  # nothing is stored: the reader of files says what is wrong
    manager = DatasetManager(tmp_path / "data" / "evaluation")
    saved = manager.save_dataset(colours(12).rows(), "tickets")
    for text in ("tickets", "tickets/v1"):
        found = stored_or_file(text)
        assert isinstance(found, StoredDataset)
        assert found.digest == saved.digest
    assert stored_or_file("iris") == "iris"
    (tmp_path / "tickets").write_text("a file of this name wins")
    assert stored_or_file("tickets") == "tickets"
    with pytest.raises(DataError, match="there is no data set 'ticket'"):
        stored_or_file("ticket")


def test_it_can_be_optimized(tmp_path, command):
    manager = DatasetManager(tmp_path / "data" / "evaluation")
    manager.save_dataset(colours(60).rows(), "things")
    asked = ("optimize", "thing -> colour", "--lm", "offline/knn", "--inputs", "thing", "--data")
    code, told = command(*asked, "things", "--plan")
    assert (code, "no LM call was made" in told.out) == (0, True), told.err
    code, told = command(*asked, "thing")
    assert (code, "there is no data set 'thing'" in told.err) == (2, True)
