"""Loads the program of a version, after checking every file against what was recorded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentcore._threads import run_in_thread
from agentcore.errors import ArtifactError
from agentcore.registry._events import Release
from agentcore.registry._models import download
from agentcore.registry._release import PROGRAM_FOLDER, check_files, check_new_files
from agentcore.tracking import Gateway, load_program, scratch

if TYPE_CHECKING:
    import dspy

    from agentcore.dspy_optimization import Candidate


async def fetch_release(gateway: Gateway, release: Release, directory: Path) -> None:
    """Download a release's files and check them.

    Raises:
        ArtifactError: a file is missing, was added or was changed.
        TrackingError: MLflow can't be reached.
    """
    found = await download(gateway, release.model_id, directory)
    check_files(found, release)


def program_in(directory: Path, release: Release, program: "dspy.Module" = None) -> Any:
    """The program of downloaded and checked files. Blocking.

    Raises:
        ArtifactError: it can't be loaded.
    """
    digests = {
        path.removeprefix(PROGRAM_FOLDER): digest
        for path, digest in release.files.items()
        if path.startswith(PROGRAM_FOLDER)
    }
    folder = directory / PROGRAM_FOLDER
    return load_program(folder, release.artifact, program=program, digests=digests)


async def load_release(gateway: Gateway, release: Release, program: "dspy.Module" = None) -> Any:
    """The program of a release."""
    with scratch() as directory:
        await fetch_release(gateway, release, directory)
        return await run_in_thread(lambda: program_in(directory, release, program))


async def new_files(gateway: Gateway, candidate: "Candidate") -> dict[str, str]:
    """The digests of a candidate's LoggedModel, which must hold what the run logged.

    Raises:
        ArtifactError: there is no LoggedModel, or it differs.
    """
    if candidate.model_id is None:
        raise ArtifactError(f"run {candidate.short_id} has no LoggedModel: nothing can be registered")
    with scratch() as directory:
        found = await download(gateway, candidate.model_id, directory)
        await run_in_thread(lambda: check_new_files(found, candidate.digests, directory))
        return found
