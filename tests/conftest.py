"""Shared fixtures: a clean environment, a real MLflow store on SQLite, the offline engine."""

import os
import shutil
from pathlib import Path

# Before anything imports DSPy: its disk cache must not outlive the suite, nor come from the user's home.
os.environ.setdefault("DSPY_CACHEDIR", "/nonexistent/agentcore-tests")

import pytest

import agentcore  # noqa: F401 - sets LITELLM_LOCAL_MODEL_COST_MAP before litellm is imported
from agentcore.settings import MLflowConfig


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test starts in an empty directory without the developer's variables."""
    for name in list(os.environ):
        if name.startswith(("AGENTCORE_", "MLFLOW_", "AWS_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store after its migrations, which take seconds: copied for each test that needs one."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def config(migrated_store: Path, tmp_path: Path) -> MLflowConfig:
    """A store of the test's own."""
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    return MLflowConfig(
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifact_location=str(tmp_path / "artifacts")
    )
