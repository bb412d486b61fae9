"""What an import may cost: MLflow takes 6-10 s, DSPy 2-3 s."""

import subprocess
import sys

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
        "from agentcore.settings import MLflowConfig; MLflowConfig()",
    ],
    ids=["import", "version", "help", "command help", "config"],
)
def test_light_entries_import_nothing_heavy(code):
    check = f"{code}\nimport sys; print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_litellm_is_kept_from_the_network():
    code = "import agentcore, os; print(os.environ['LITELLM_LOCAL_MODEL_COST_MAP'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_every_public_name_loads():
    import agentcore

    for name in agentcore.__all__:
        assert getattr(agentcore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        agentcore.nothing  # noqa: B018
