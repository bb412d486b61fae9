"""Rules of the repository that no linter knows."""

import re
import tomllib
from pathlib import Path

from agentcore.errors import AgentCoreError

ROOT = Path(__file__).parents[1]


def sources():
    return sorted((ROOT / "agentcore").rglob("*.py"))


def test_the_lock_has_hashes_and_no_download_addresses():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert len(re.findall(r"^[a-z0-9.\-\[\]]+==", lock, re.MULTILINE)) > 100
    for block in re.split(r"\n(?=[a-zA-Z0-9])", lock):
        if "==" in block.splitlines()[0]:
            assert "--hash=sha256:" in block, block.splitlines()[0]


def test_every_dependency_is_justified():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(item for group in project["optional-dependencies"].values() for item in group),
    ]
    names = {re.split(r"[<>=\[;]", item)[0] for item in wanted}
    told = set(re.findall(r"^- `([^`]+)`", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE))
    assert names == told


def test_no_global_state_of_dspy_or_mlflow():
    forbidden = re.compile(
        r"dspy\.configure\(|dspy\.settings\.configure\(|"
        r"mlflow\.(start_run|log_metric|log_param|set_tag|set_experiment|end_run|set_tracking_uri)\("
    )
    assert not [path.name for path in sources() if forbidden.search(path.read_text())]


def test_errors_have_one_root_and_known_exit_codes():
    def leaves(kind):
        yield kind
        for sub in kind.__subclasses__():
            yield from leaves(sub)

    assert {kind.exit_code for kind in leaves(AgentCoreError)} == {2, 3}


def test_documents_name_files_that_exist():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(((?!http)[^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_readme_names_every_command():
    from agentcore.cli._app import app

    readme = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        assert f"agentcore {command.name or command.callback.__name__}" in readme
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            name = f"{group.typer_instance.info.name} {command.name or command.callback.__name__}"
            assert f"agentcore {name}" in " ".join(readme.split()), name
