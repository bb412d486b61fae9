"""The code of docs/monitoring.md runs as it is written."""

import re
from pathlib import Path

from agentcore.data import DatasetManager
from tests.monitoring.loans import applications

ROOT = Path(__file__).parents[2]


def test_the_page(config, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    monkeypatch.setenv("MLFLOW_ARTIFACT_LOCATION", config.artifact_location)
    manager = DatasetManager()
    for seed, name in enumerate(("test_set", "baseline_v1", "current_month")):
        manager.save_dataset(applications(150, seed, shifted=seed == 2), name)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/monitoring.md").read_text(), re.DOTALL):
        exec(compile(code, "<docs>", "exec"), names)
    assert 0 < names["metrics"].accuracy < 1
    assert names["report"].cause == "inputs"
    assert names["summary"]["total_requests"] == 1
    assert "annual_income" in capsys.readouterr().out
    for name in ("evaluator", "tracker", "generations", "collector"):
        names[name].flush(60)
    assert names["comparison"][names["first"]]["metrics"]["apps_per_dollar"] == 1.6
