"""`agentcore data ls`, `show`, `save`, `split` and `diff`."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentcore.cli._console import counted, out
from agentcore.cli._options import AsJson
from agentcore.errors import ConfigurationError

if TYPE_CHECKING:
    from agentcore.data import DatasetManager, StoredDataset

data = typer.Typer(
    name="data", help="Versions of evaluation data sets, which never change.", no_args_is_help=True
)

Base = Annotated[
    str | None,
    typer.Option(
        "--base", help="A directory, or s3://bucket/prefix [default: AGENTCORE_DATA or data/evaluation]."
    ),
]
Name = Annotated[str, typer.Argument(help="The data set's name.")]
Version = Annotated[str | None, typer.Option(help="A version [default: the latest].")]


@data.command()
def ls(base: Base = None, as_json: AsJson = False) -> None:
    """List every version of every data set."""
    from rich.table import Table

    manager = manager_of(base)
    found = manager.list_datasets()
    if as_json:
        typer.echo(json.dumps([item.as_dict() for item in found], indent=2, ensure_ascii=False))
        return
    if not found:
        out.print(
            f"no data sets in {manager.base_path}. Save one with: agentcore data save FILE NAME",
            soft_wrap=True,
        )
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "version", "rows", "digest", "created, UTC", "from"):
        table.add_column(title, justify="right" if title == "rows" else "left", no_wrap=title != "from")
    for item in found:
        table.add_row(
            item.name,
            item.version,
            f"{item.rows:,}",
            item.digest[:8],
            item.created.replace("T", " ").removesuffix("Z"),
            _origin(item),
        )
    out.print(table)


@data.command()
def show(
    name: Name,
    version: Version = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to print.")] = 3,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Print a version's record and its first rows, after checking that nothing was changed."""
    found = manager_of(base).load_dataset(name, version)
    first = [row for row, _ in zip(found, range(rows), strict=False)]
    if as_json:
        typer.echo(json.dumps({**found.as_dict(), "first_rows": first}, indent=2, ensure_ascii=False))
        return
    out.print(
        f"{found.name} {found.version}: {counted(found.rows, 'row')}, digest {found.digest}", soft_wrap=True
    )
    for label, text in (
        ("description", found.description),
        ("created", found.created),
        ("from", _origin(found)),
        ("tags", ", ".join(f"{key}={value}" for key, value in found.tags.items())),
    ):
        if text:
            out.print(f"{label}: {text}", soft_wrap=True, markup=False)
    for field, rule in found.schema.get("properties", {}).items():
        types = rule.get("type")
        shown = types if isinstance(types, str) else " or ".join(types)
        optional = "" if field in found.schema.get("required", ()) else ", not in every row"
        out.print(f"  {field}: {shown}{optional}", soft_wrap=True, markup=False)
    for row in first:
        typer.echo(json.dumps(row, ensure_ascii=False))


@data.command()
def save(
    file: Annotated[str, typer.Argument(help="A .jsonl, .json, .csv, .tsv or .parquet file.")],
    name: Name,
    version: Annotated[str | None, typer.Option(help="The version [default: the next of v1, v2, …].")] = None,
    description: Annotated[str, typer.Option(help="What it is.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; may be repeated.")] = None,
    personal: Annotated[
        list[str] | None,
        typer.Option(help="A field with personal data, kept out of reports; may be repeated."),
    ] = None,
    base: Base = None,
) -> None:
    """Save a file as a version."""
    tags = {}
    for item in tag or []:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise ConfigurationError(f"--tag {item!r}: write KEY=VALUE")
        tags[key] = value
    found = manager_of(base).save_dataset(file, name, description, version, tags, personal=personal or ())
    _print_saved(found)


@data.command()
def split(
    name: Name,
    version: Version = None,
    train_ratio: Annotated[float, typer.Option(help="Share of the rows in the train part.")] = 0.8,
    stratify: Annotated[
        str | None, typer.Option(help="A field whose values are spread in proportion.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="A field whose equal values stay together.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random split.")] = 0,
    base: Base = None,
) -> None:
    """Save the train and test parts of a version as NAME_train and NAME_test."""
    parts = manager_of(base).split_dataset(
        name, train_ratio, True, stratify, group, version=version, seed=seed
    )
    for part in parts:
        _print_saved(part)


@data.command()
def diff(
    name: Name,
    old: Annotated[str, typer.Argument(help="A version.")],
    new: Annotated[str, typer.Argument(help="Another version.")],
    base: Base = None,
) -> None:
    """Print what changed from one version to another. Exits with 1 if anything did."""
    found = manager_of(base).diff(name, old, new)
    out.print(
        f"{name} {old} → {new}: {found.added_rows:,} rows added, {found.removed_rows:,} removed, "
        f"{found.common_rows:,} in both",
        soft_wrap=True,
    )
    for sign, fields in (("+", found.added_fields), ("-", found.removed_fields)):
        for field in fields:
            out.print(f"{sign} field {field}", markup=False)
    for sign, rows in (("-", found.removed), ("+", found.added)):
        for row in rows:
            typer.echo(f"{sign} {json.dumps(row, ensure_ascii=False)}")
    if found.added_rows or found.removed_rows:
        raise typer.Exit(1)


def manager_of(base: str | None) -> "DatasetManager":
    from agentcore.data import DatasetManager
    from agentcore.settings import Settings

    return DatasetManager(base or Settings().data)


def stored_or_file(text: str | None) -> Any:
    """A data set in AGENTCORE_DATA if there is one of this name and no such file; else the text itself."""
    if text is None or Path(text).suffix or Path(text).exists():
        return text
    from agentcore.data import BUILTIN_DATASETS

    name, _, version = text.partition("/")
    if text in BUILTIN_DATASETS or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", text):
        return text
    manager = manager_of(None)
    if manager.exists(name) or manager.list_datasets():  # if not, the error says which there are
        return manager.load_dataset(name, version or None)
    return text


def _print_saved(found: "StoredDataset") -> None:
    out.print(
        f"{found.name} {found.version}: {counted(found.rows, 'row')}, digest {found.digest[:8]}",
        soft_wrap=True,
    )


def _origin(found: "StoredDataset") -> str:
    lineage: dict[str, Any] = dict(found.lineage)
    parent = lineage.get("parent")
    if isinstance(parent, dict):
        part = (lineage.get("split") or {}).get("part")
        text = f"{parent.get('name')} {parent.get('version')}"
        return f"{text}, {part} part" if part else text
    return str(lineage.get("source") or "")
