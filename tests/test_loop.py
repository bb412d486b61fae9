"""The event loop stays free: large values, files, imports and preparation are the threads' work."""

import gc
import importlib
import pkgutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentcore import _imports
from agentcore.data import Dataset
from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.lm import offline_lm
from tests.support import AsyncClassifier, colours, request

ROOT = Path(__file__).parents[1]


class InThread:
    """Notes the thread in which a function is called."""

    def __init__(self, monkeypatch, path):
        owner, _, name = path.rpartition(".")
        real, self.threads = getattr(pkgutil.resolve_name(owner), name), []

        def noting(*arguments, **named):
            self.threads.append(threading.current_thread())
            return real(*arguments, **named)

        monkeypatch.setattr(path, noting)

    def check(self):
        assert self.threads
        assert threading.main_thread() not in self.threads


async def test_preparation_is_a_threads(tmp_path, monkeypatch):
    """It reads files, hashes them and imports the user's modules."""
    prepare = InThread(monkeypatch, "agentcore.dspy_optimization.pipeline.prepare")
    load = InThread(monkeypatch, "agentcore.dspy_optimization._prepare.load_dataset")
    (tmp_path / "own_metric_of_loop.py").write_text(
        "import threading\nimported = threading.current_thread()\n"
        "def judge(example, prediction):\n    return example.colour == prediction.colour\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pipeline = OptimizationPipeline(
        AsyncClassifier(), "own_metric_of_loop:judge", offline_lm(), enable_tracking=False
    )
    await pipeline.run_optimization(request(), training_data=colours(30))
    prepare.check()
    load.check()
    import own_metric_of_loop

    assert own_metric_of_loop.imported is not threading.main_thread()
    sys.modules.pop("own_metric_of_loop")


@pytest.mark.parametrize(
    ("kind", "made_by"),
    [
        ("json", "agentcore.tracking._entries.Entries.json"),
        ("file", "agentcore.tracking._entries.Entries.file"),
        ("rows", "agentcore.dspy_optimization._entries.OptimizationEntries.training_data"),
    ],
)
async def test_an_entry_is_made_by_a_thread(config, tmp_path, monkeypatch, kind, made_by):
    """Reading, hashing and redacting large ones takes seconds."""
    made = InThread(monkeypatch, made_by)
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    data = Dataset.from_rows([{"q": f"q {number}", "answer": "x"} for number in range(100)])
    (tmp_path / "file.txt").write_text("a line of text\n")
    await {
        "json": lambda: tracker.log_json("big.json", {"rows": data.rows()}),
        "file": lambda: tracker.log_artifact(tmp_path / "file.txt"),
        "rows": lambda: tracker.log_training_data(data, data.split()),
    }[kind]()
    made.check()


RACE = """
import threading
import agentcore
from agentcore.tracking._connection import import_mlflow
from agentcore._imports import import_litellm
failed, start = [], threading.Barrier(6)

def load(work):
    start.wait()
    try:
        work()
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=load, args=(work,)) for work in (import_mlflow, import_litellm) * 3]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failed)
"""


def test_threads_that_import_at_once_all_get_whole_modules():
    """MLflow's Protobuf definitions and litellm's tables break if two threads import them first."""
    done = subprocess.run([sys.executable, "-c", RACE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_every_import_of_them_in_product_code_is_alone():
    """Whoever imports them first must hold the lock; MLflow itself loads these two files."""
    allowed = {"_connection.py", "_imports.py"}
    for path in (ROOT / "agentcore").rglob("*.py"):
        if path.name in allowed:
            continue
        for line in path.read_text().splitlines():
            if line.startswith(("import mlflow", "from mlflow", "import litellm", "from litellm")):
                assert path.name in ("_auth.py", "_serving.py"), f"{path}: {line}"


def test_no_garbage_collection_stops_the_loop_during_a_large_import(tmp_path, monkeypatch):
    """What it brings lives as long as the process: it is not looked at again."""
    names = [f"part_of_a_large_import_{number}" for number in range(_imports._MANY + 1)]
    for name in names:
        (tmp_path / f"{name}.py").write_text(
            "import gc\nenabled = gc.isenabled()\nthings = [{} for _ in range(50)]\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    frozen = gc.get_freeze_count()
    with _imports.importing():
        modules = [importlib.import_module(name) for name in names]
    assert not any(module.enabled for module in modules)
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen + 50 * len(names)
    frozen = gc.get_freeze_count()
    with _imports.importing():
        kept = [[] for _ in range(1000)]
    assert gc.get_freeze_count() <= frozen  # a small one; what is frozen can still be freed
    for name in names:
        sys.modules.pop(name)
    assert kept
