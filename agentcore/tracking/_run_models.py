"""Logs programs as a run's models, and lists their names."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentcore._threads import run_in_thread
from agentcore._version import __version__
from agentcore.errors import ArtifactError
from agentcore.tracking._entries import Draft, Entries
from agentcore.tracking._events import ModelLogged
from agentcore.tracking._manifest import recorded_digests

if TYPE_CHECKING:
    from mlflow.entities import Run

PROGRAM_TAG = "agentcore.program."
"""Tag prefix, followed by a model's name. Its value holds the digests of the model's files."""


async def model_drafts(
    entries: Entries,
    model: Any,
    artifact_name: str,
    metadata: Mapping[str, Any] | None,
    *,
    program_path: str | None,
    default_lm: str | None = None,
    as_logged_model: bool = True,
    attributes: Mapping[str, Any] | None = None,
    example: Mapping[str, Any] | None = None,
) -> list[Draft]:
    """The entries of a model; see `RunTracker.log_model_artifact`."""
    import dspy

    from agentcore.tracking._program_files import save_program

    def save() -> tuple[dict[str, str], list[Draft]]:
        with scratch() as directory:
            digests = save_program(
                model,
                directory,
                artifact_name,
                metadata=metadata,
                program_path=program_path,
                redactor=entries.redactor,
                attributes=attributes,
                example=example,
            )
            files: list[Draft] = []
            for name in digests:
                files += entries.file_as_it_is(f"models/{name}", (directory / name).read_bytes())
            return digests, files

    digests, drafts = await run_in_thread(save)
    drafts += entries.tags({PROGRAM_TAG + artifact_name: json.dumps(digests)})
    if as_logged_model:
        drafts.append(
            ModelLogged(
                name=artifact_name,
                # The served model doesn't need the pickle.
                files={name: sha for name, sha in digests.items() if not name.endswith(".pkl")},
                requirements=[f"agentcore=={__version__}", f"dspy=={dspy.__version__}"],
                default_lm=default_lm,
            )
        )
    return drafts


def program_digests(run: "Run", name: str) -> dict[str, str]:
    """The digests of a model's files that the run's tag records.

    Raises:
        ArtifactError: there is no such model, or the tag was changed.
    """
    recorded = run.data.tags.get(PROGRAM_TAG + name)
    if recorded is None:
        others = ", ".join(model_names(run)) or "none"
        raise ArtifactError(f"run {run.info.run_id} has no model {name!r}; it has {others}")
    return recorded_digests(recorded, name)


def model_names(run: "Run") -> list[str]:
    """The names of a run's models."""
    return sorted(tag.removeprefix(PROGRAM_TAG) for tag in run.data.tags if tag.startswith(PROGRAM_TAG))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary directory."""
    with tempfile.TemporaryDirectory(prefix="agentcore-") as directory:
        yield Path(directory)
