"""MLflow's own evaluation data sets, both ways."""

import pytest

from agentcore.data import DatasetManager
from agentcore.errors import ConfigurationError, DataError
from agentcore.tracking import EvaluationDatasets, RunTracker

ROWS = [
    {"amount": number, "name": f"n{number}", "outcome": "yes" if number % 3 else "no"}
    for number in range(2500)
]


@pytest.fixture(params=["local", "server"])
def config_of_store(request):
    return request.getfixturevalue("config" if request.param == "local" else "server")


async def test_there_and_back(tmp_path, config_of_store):
    manager, sets = DatasetManager(tmp_path / "data"), EvaluationDatasets(config_of_store)
    name = f"loan-{tmp_path.name}"
    saved = manager.save_dataset(ROWS, name, tags={"month": "october"})
    first = await sets.push(saved, ["outcome"])
    assert await sets.push(saved, ["outcome"]) == first
    found = await sets.pull(f"{name}_v1")
    assert sorted(found, key=lambda row: row["amount"]) == ROWS
    back = manager.save_dataset(sorted(found, key=lambda row: row["amount"]), f"{name}_back")
    assert back.digest == saved.digest
    assert await RunTracker(config_of_store).search_runs() == []
    other = DatasetManager(tmp_path / "other").save_dataset(ROWS[:5], name)
    with pytest.raises(ConfigurationError, match="another data set"):
        await sets.push(other, ["outcome"])
    with pytest.raises(DataError, match="no field result"):
        await sets.push(saved, ["result"])
    with pytest.raises(DataError, match="no input would be left"):
        await sets.push(saved, list(saved.fields))
    with pytest.raises(ConfigurationError, match="no evaluation data set"):
        await sets.pull("nothing")
    with pytest.raises(ConfigurationError, match="quote"):
        await sets.pull("it's")
