"""What a version consists of: recorded at its promotion, checked at every load, comparison and rollback."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from agentcore._json import jsonable
from agentcore._version import __version__
from agentcore.data import sha256
from agentcore.errors import ArtifactError
from agentcore.registry._events import Release
from agentcore.registry._models import DECISION_TAG, RELEASE_TAG
from agentcore.tracking import program_state, serving_code

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PROGRAM_FOLDER = "artifacts/program/"


def interface_digest(program: "dspy.Module") -> str:
    """Digest of the predictors' fields and types."""
    return sha256(
        {
            name: [[key, str(info.annotation)] for key, info in predictor.signature.fields.items()]
            for name, predictor in program.named_predictors()
        }
    )


def prompt_digest(program: "dspy.Module") -> str:
    """Digest of the instructions and demonstrations."""
    return sha256(jsonable(program_state(program)))


def instructions(program: "dspy.Module") -> dict[str, str]:
    """The instruction of each predictor."""
    return {name: predictor.signature.instructions for name, predictor in program.named_predictors()}


def current_versions() -> dict[str, str]:
    """What a measurement depends on, apart from the program and the model."""
    adapter = dspy.settings.adapter
    return {
        "agentcore": __version__,
        "dspy": dspy.__version__,
        "adapter": type(adapter).__name__ if adapter is not None else "ChatAdapter",
    }


def next_version(earlier: Sequence[Release], files: Mapping[str, str], interface: str, prompt: str) -> str:
    """The semantic version after the highest of the earlier releases: different fields make a new major
    version, different instructions or demonstrations a minor one, anything else a patch. The same files keep
    their version."""
    same = next((item for item in earlier if dict(item.files) == dict(files)), None)
    if same is not None:
        return same.semantic_version
    if not earlier:
        return "1.0.0"
    last = max(earlier, key=lambda item: _numbers(item.semantic_version))
    major, minor, patch = _numbers(last.semantic_version)
    if interface != last.interface:
        return f"{major + 1}.0.0"
    return f"{major}.{minor + 1}.0" if prompt != last.prompt else f"{major}.{minor}.{patch + 1}"


def _numbers(version: str) -> tuple[int, int, int]:
    major, minor, patch = (int(part) for part in version.split("."))
    return major, minor, patch


def version_tags(release: Release) -> dict[str, str]:
    """The tags of a release's version: for people, and the whole release for programs."""
    tags = {
        RELEASE_TAG: release.model_dump_json(),
        DECISION_TAG: release.decision,
        "semantic_version": release.semantic_version,
        "verdict": release.verdict,
        "run_id": release.run_id,
    }
    if release.evidence is not None:
        tags["evidence_sha256"] = release.evidence
    return tags


def recorded_release(version: "ModelVersion") -> Release:
    """The release that a version's tags record.

    Raises:
        ArtifactError: there is none, or the tags contradict each other.
    """
    where = f"version {version.version} of {version.name}"
    text = version.tags.get(RELEASE_TAG)
    if text is None:
        raise ArtifactError(f"{where} was not promoted by AgentCore: it has no tag {RELEASE_TAG}")
    try:
        release = Release.model_validate_json(text)
    except (ValueError, RecursionError):
        raise ArtifactError(
            f"{where}: its tag {RELEASE_TAG} can't be read: somebody has changed it"
        ) from None
    check_tags(version, release)
    return release


def check_tags(version: "ModelVersion", release: Release) -> None:
    """Raise `ArtifactError` unless a version's tags and source are those of the release."""
    where = f"version {version.version} of {version.name}"
    for name, value in version_tags(release).items():
        found = version.tags.get(name)
        same = found == value
        if name == RELEASE_TAG and found is not None:
            same = _loaded(found) == json.loads(value)
        if not same:
            raise ArtifactError(
                f"{where}: its tag {name} is {str(found)[:80]!r}, but {value[:80]!r} was recorded when it "
                "was promoted: somebody has changed it. Don't use this version"
            )
    if version.source != release.source:
        raise ArtifactError(
            f"{where} points to {version.source}, but it was promoted with {release.source}: somebody has "
            "changed it. Don't use this version"
        )


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def check_files(found: Mapping[str, str], release: Release) -> None:
    """Raise `ArtifactError` unless downloaded files are the release's: no more, no fewer, none changed."""
    for path in sorted(found.keys() | release.files.keys()):
        if found.get(path) != release.files.get(path):
            what = (
                "is missing" if path not in found else
                "was added after the promotion" if path not in release.files else
                "was changed after the promotion"
            )  # fmt: skip
            raise ArtifactError(f"{path} of model {release.model_id} {what}: don't use this version")


def check_new_files(found: Mapping[str, str], digests: Mapping[str, str], directory: Path) -> None:
    """Raise `ArtifactError` unless a LoggedModel consists of a run's program files and AgentCore's code."""
    program = {
        path.removeprefix(PROGRAM_FOLDER): digest
        for path, digest in found.items()
        if path.startswith(PROGRAM_FOLDER)
    }
    wanted = {name: digest for name, digest in digests.items() if not name.endswith(".pkl")}
    if program != wanted:
        changed = sorted(
            name for name in program.keys() | wanted.keys() if program.get(name) != wanted.get(name)
        )
        raise ArtifactError(
            f"{', '.join(changed)} of the logged model differs from the run's: somebody has changed it"
        )
    code = [path for path in found if path.endswith(".py")]
    if len(code) != 1 or (directory / code[0]).read_text(encoding="utf-8") != serving_code():
        raise ArtifactError(
            "the logged model's code is not that of this AgentCore version: if another version logged it, "
            "optimize again; otherwise, somebody has changed it"
        )
