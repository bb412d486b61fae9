"""The code of docs/data.md runs as it is written."""

import ast
import inspect
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


async def test_the_data_sets(config, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    monkeypatch.setenv("MLFLOW_ARTIFACT_LOCATION", config.artifact_location)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL):
        found = eval(compile(code, "<docs>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if inspect.isawaitable(found):
            await found
    assert len(names["train"]) == 80
    assert len(names["rows"]) == 100
    assert names["frame"].shape == (100, 3)
    (run,) = await names["tracker"].search_runs()
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "loan_approval_test_set_2026.11"
    assert "loan_approval_test_set_test_2026.11" in capsys.readouterr().out
