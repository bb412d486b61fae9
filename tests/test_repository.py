"""Rules of the repository that no linter knows."""

import ast
import re
import tomllib
from pathlib import Path

import grimp

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


def test_no_import_cycle():
    """Over all modules, imports within functions and for type checkers included."""
    graph = grimp.build_graph("agentcore", cache_dir=None)
    known = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    left = dict(known)
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def test_every_package_and_module_is_on_a_floor():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = [
        item["layers"] for item in project["tool"]["importlinter"]["contracts"] if item["type"] == "layers"
    ]
    floors = {name for layer in layers for name in layer.split(" | ")}
    graph = grimp.build_graph("agentcore", cache_dir=None)
    rooms = {
        f"agentcore.{path.name}" for path in (ROOT / "agentcore").iterdir() if (path / "__init__.py").exists()
    }
    own = {name for name in graph.find_children("agentcore") if name not in rooms}
    assert rooms | own <= floors | {"agentcore.__main__", "agentcore._version"}
    told = (ROOT / "docs/architecture.md").read_text()
    for room in rooms:
        assert f"`{room.replace('.', '/')}/`" in told, room


def test_no_function_takes_a_dozen_arguments():
    """Except commands, whose arguments typer reads, and the documented constructor; `self` doesn't count."""
    dspys = "_optimize_prompt_parameters"
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = node.args
                first = arguments.args[:1]
                own = bool(first) and first[0].arg in ("self", "cls")
                count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs) - own
                positional = len(arguments.posonlyargs) + len(arguments.args)
                most = {"__init__": 14}.get(node.name, 10) if path.name != "pipeline.py" else 20
                command = path.parent.name == "cli"
                if not command and node.name != dspys and (count > most or positional > 8):
                    found.append(f"{path.name}: {node.name} takes {count}")
    assert found == []


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


def documents():
    return "\n".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))


def test_the_documents_name_every_command():
    from agentcore.cli._app import app

    readme = documents()
    for command in app.registered_commands:
        assert f"agentcore {command.name or command.callback.__name__}" in readme
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            name = f"{group.typer_instance.info.name} {command.name or command.callback.__name__}"
            assert f"agentcore {name}" in " ".join(readme.split()), name


REFERENCE = (ROOT / "docs/reference.md").read_text()


def test_the_reference_has_every_setting_of_every_optimizer_with_its_default():
    from importlib.metadata import entry_points

    rows, owner = {}, ""
    for line in REFERENCE.partition("### Settings")[2].partition("###")[0].splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) >= 4 and cells[1] not in ("setting", "---"):
            owner = cells[0] or owner
            rows[owner, cells[1]] = cells[2]
    expected = {}
    for entry in entry_points(group="agentcore.optimizers"):
        for name, info in entry.load().settings_type.model_fields.items():
            default = info.default
            text = str(default).lower() if isinstance(default, bool) else str(default)
            expected[entry.name, name] = "" if default is None else text
    assert rows == expected


def test_the_reference_has_every_event_result_field_and_variable():
    from agentcore.dspy_optimization import OptimizationResult, events
    from agentcore.dspy_optimization.events import OptimizationEvent
    from agentcore.dspy_optimization.optimizers import SearchTask
    from agentcore.settings import ApiSettings, MLflowConfig, Settings

    told = REFERENCE.partition("## Events")[2].partition("\n## ")[0]
    for name in events.__all__:
        kind = getattr(events, name)
        internal = ("JobRecorded", "ResultRecorded", "OptimizationEvent")
        if isinstance(kind, type) and issubclass(kind, OptimizationEvent) and name not in internal:
            assert f"`{name}`" in told
            for field in kind.model_fields.keys() - {*OptimizationEvent.model_fields, "kind"}:
                assert f"`{field}`" in told or field == "metrics", (name, field)
    told = REFERENCE.partition("## Results")[2].partition("\n## ")[0]
    for field in OptimizationResult.model_fields:
        assert f"`{field}`" in told or field == "schema_version", field
    told = REFERENCE.partition("### An optimizer")[2].partition("\n## ")[0]
    public = [
        name for name in dir(SearchTask) if not name.startswith("_") and callable(getattr(SearchTask, name))
    ]
    for name in set(public) - {"part", "scored", "durable", "slot", "demos", "go_on_without"}:
        assert f"{name}(" in told, name
    told = REFERENCE.partition("## Environment variables")[2]
    for kind, prefix in (
        (Settings, "AGENTCORE_"),
        (ApiSettings, "AGENTCORE_API_"),
        (MLflowConfig, "MLFLOW_"),
    ):
        for field in kind.model_fields:
            name = str(kind.model_fields[field].validation_alias or prefix + field.upper())
            assert name in told or field == "request_timeout", field


def test_the_readme_is_a_page_and_a_half():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 160
