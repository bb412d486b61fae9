"""Every asynchronous method has a blocking twin with the same signature, known to type checkers."""

import inspect
import subprocess
import sys

import pytest

from agentcore._sync import SyncTwin
from agentcore.dspy_optimization import MLflowTracker, OptimizationPipeline, SyncMLflowTracker, SyncPipeline
from agentcore.lm import offline_lm
from agentcore.tracking import RunTracker, SyncRunTracker

PAIRS = [
    (RunTracker, SyncRunTracker),
    (MLflowTracker, SyncMLflowTracker),
    (OptimizationPipeline, SyncPipeline),
]
NOT_FOR_USERS = {"opened"}  # gives the journal and the delivery, whose own methods block


@pytest.mark.parametrize(("asynchronous", "twin"), PAIRS)
def test_parity(asynchronous, twin):
    expected = {
        name
        for name, method in inspect.getmembers(asynchronous, inspect.iscoroutinefunction)
        if not name.startswith("_")
    } - NOT_FOR_USERS
    found = {name for name, method in inspect.getmembers(twin, callable) if not name.startswith("_")}
    assert found == expected
    assert issubclass(twin, SyncTwin)
    for name in expected:
        blocking, method = getattr(twin, name), getattr(asynchronous, name)
        assert inspect.signature(blocking) == inspect.signature(method), name
        assert blocking.__doc__ == method.__doc__
        assert not inspect.iscoroutinefunction(blocking)


def test_a_type_checker_knows_its_methods_and_results(tmp_path):
    (tmp_path / "use.py").write_text(
        "from agentcore import MLflowTracker, OptimizationPipeline, OptimizationRequest\n"
        "def use(\n"
        "    tracker: MLflowTracker, pipeline: OptimizationPipeline, request: OptimizationRequest\n"
        ") -> None:\n"
        "    reveal_type(tracker.sync.start_run(request))\n"
        "    reveal_type(tracker.sync.log_metrics({'x': 1.0}))\n"
        "    reveal_type(tracker.sync.get_best_run(target_id='a'))\n"
        "    reveal_type(pipeline.sync.run_optimization(request))\n"
        "    tracker.sync.log_metrics({'x': 'no number'})\n"
        "    tracker.sync.no_such_method()\n"
    )
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n"
        "[mypy-mlflow.*,dspy.*]\nfollow_imports = skip\nignore_missing_imports = true\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", ".cache", "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    revealed = [line.partition('Revealed type is "')[2].rstrip('"') for line in lines if "Revealed" in line]
    assert [item.replace("builtins.", "") for item in revealed] == [
        "str",
        "None",
        "Any | None",  # MLflow's Run, whose types MLflow doesn't ship
        "agentcore.dspy_optimization.models.OptimizationResult",
    ], lines
    errors = [line for line in lines if "error:" in line]
    assert len(errors) == 2, lines
    assert "no_such_method" in errors[1]


def test_blocking_calls_inside_of_what_a_blocking_call_runs(config):
    """In a metric, in `on_event`, which is called in the loop, and in `aforward`."""
    from tests.support import AsyncClassifier, colours, request

    tracker = MLflowTracker(config)
    run_id = tracker.sync.start_run(run_name="outer")
    logged = []

    def log(name):
        logged.append(name)
        tracker.sync.log_metrics({name: 1.0}, step=len(logged), run_id=run_id)

    def metric(example, prediction):
        log("metric")
        return example.colour == prediction.colour

    async def asynchronous(example, prediction):
        return metric(example, prediction)

    class Asks(AsyncClassifier):
        async def aforward(self, thing):
            log("aforward")
            return await super().aforward(thing)

    for judge in (metric, asynchronous):
        logged.clear()
        pipeline = OptimizationPipeline(
            Asks(), judge, lm=offline_lm(), enable_tracking=False, on_event=lambda event: log("event")
        )
        assert pipeline.sync.run_optimization(request(), training_data=colours()).status == "completed"
        assert set(logged) == {"metric", "event", "aforward"}
    tracker.sync.end_run(run_id=run_id)
