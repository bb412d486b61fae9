"""What an import may cost: MLflow takes 6-10 s, DSPy 2-3 s."""

import importlib
import subprocess
import sys
import types

import pytest

HEAVY = ("mlflow", "dspy", "litellm", "sklearn", "scipy", "pandas", "matplotlib")


@pytest.mark.parametrize(
    "code",
    [
        "import agentcore",
        "import agentcore; agentcore.__version__; dir(agentcore)",
        "import sys; sys.argv = ['agentcore', '--help']\nfrom agentcore.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0, end.code",
        "import sys; sys.argv = ['agentcore', 'optimize', '--help']\nfrom agentcore.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0, end.code",
        "import agentcore.settings; agentcore.settings.MLflowConfig()",
        "import agentcore.tracking",
        "import agentcore.journal",
        "import agentcore.dspy_optimization.tracking",
        "import agentcore.dspy_optimization.events",
    ],
    ids=["import", "version", "help", "command help", "config", "tracking", "journal", "tracker", "events"],
)
def test_light_entries_import_nothing_heavy(code):
    check = f"{code}\nimport sys; print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_little_more_than_typer(arguments):
    """A bare typer command takes about 0.14 s here, and most of that is typer itself."""
    script = f"""
import sys
import types
sys.argv = ['agentcore', *{arguments!r}]
import typer.main
before = set(sys.modules)
from agentcore.cli import main
try:
    main()
except SystemExit:
    pass
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
heavy = {{"pydantic", "pydantic_settings", "sqlalchemy", "numpy", "asyncio", "logging"}}
print("LOADED", *sorted(new & heavy))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED"


@pytest.mark.parametrize("arguments", [["sync"], ["runs"], ["best"], ["journal", "ls"], ["journal", "prune"]])
def test_commands_that_optimize_nothing_load_no_dspy(config, monkeypatch, arguments):
    """With a run to deliver and to list."""
    from agentcore.tracking import RunTracker

    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    tracker = RunTracker(config)
    tracker.sync.start_run(run_name="a run")
    tracker.sync.log_metrics({"improvement_low": 0.1, "optimized_quality_low": 0.5})
    tracker.sync.end_run()
    script = f"""
import sys
import types
sys.argv = ['agentcore', *{arguments!r}]
from agentcore.cli import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
print("ENDED", code, *(name for name in ("dspy", "litellm") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "ENDED 0", done.stdout + done.stderr


def test_litellm_is_kept_from_the_network():
    code = "import agentcore, os; print(os.environ['LITELLM_LOCAL_MODEL_COST_MAP'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def documented(thing):
    """What a public class's readers would miss: its own docstring, and those of the methods it adds."""
    yield thing.__qualname__, thing.__doc__ if not isinstance(thing, type) else vars(thing).get("__doc__")
    if isinstance(thing, type):
        for name, method in vars(thing).items():
            inherited = any(hasattr(base, name) for base in thing.__mro__[1:])
            if isinstance(method, types.FunctionType) and not name.startswith("_") and not inherited:
                yield f"{thing.__qualname__}.{name}", method.__doc__


def test_every_public_name_has_a_docstring():
    missing = set()
    optimization = ".dspy_optimization", ".dspy_optimization.events", ".dspy_optimization.optimizers"
    for room in ("", *optimization, ".tracking", ".evaluation", ".data", ".lm", ".journal", ".doctor"):
        module = importlib.import_module(f"agentcore{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            if getattr(thing, "__module__", "").startswith("agentcore") and hasattr(thing, "__qualname__"):
                missing |= {label for label, text in documented(thing) if not text}
    assert not missing


def test_every_public_name_loads():
    import agentcore.dspy_optimization
    import agentcore.evaluation
    import agentcore.lm
    import agentcore.tracking

    for module in (
        agentcore,
        agentcore.dspy_optimization,
        agentcore.tracking,
        agentcore.evaluation,
        agentcore.lm,
    ):
        for name in module.__all__:
            assert getattr(module, name) is not None
    wanted = "OptimizationTarget OptimizationObjective OptimizationConstraints PerformanceMetrics"
    assert {*wanted.split(), "load_dataset", "RunTracker", "Progress", "MLflowTracker"} <= {
        *agentcore.__all__
    }
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        agentcore.nothing  # noqa: B018
