"""Reads a saved program's manifest and prompt as data, importing neither the program nor DSPy."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentcore.errors import ArtifactError
from agentcore.tracking._signing import check_signature, signature_file

FORMAT = "agentcore-program/1"
NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def model_files(name: str) -> frozenset[str]:
    """The names of a model's files; raises `ArtifactError` if `name` could be more than a file's name."""
    if not NAME.fullmatch(name):
        raise ArtifactError(
            f"{name!r} is not a model's name: use letters, digits, dots, dashes and underscores"
        )
    return frozenset({f"{name}.json", f"{name}_metadata.json", f"{name}.pkl", signature_file(name)})


def recorded_digests(text: str, name: str) -> dict[str, str]:
    """The digests that a run's tag records, which anybody who may write to MLflow can change.

    Raises:
        ArtifactError: they are not those of the model's files.
    """
    try:
        digests = json.loads(text)
    except ValueError:
        digests = None
    known = model_files(name)
    if (
        not isinstance(digests, dict)
        or not digests.keys() <= known
        or not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests.values())
    ):
        raise ArtifactError(
            f"the digests of model {name!r} on the run are not those of a model's files "
            f"({', '.join(sorted(known))}): somebody changed the tag. Don't load the model"
        )
    return digests


def read_manifest(directory: Path, name: str, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The checked manifest of `name`; raises `ArtifactError` if it is missing, changed or of another
    format."""
    filename = f"{name}_metadata.json"
    content = checked_bytes(
        directory / filename, digests.get(filename) if digests else None, digests is not None
    )
    check_signature(directory, name, content)
    try:
        manifest = json.loads(content)
    except ValueError:
        raise ArtifactError(f"{filename} is not JSON: the artifact is damaged") from None
    wanted = {"format", "program", "predictors", "files", "redacted"}
    if not isinstance(manifest, dict) or not wanted <= manifest.keys() or manifest["format"] != FORMAT:
        raise ArtifactError(f"{filename} does not have the format {FORMAT}: another program wrote it")
    if manifest.get("name", name) != name:
        raise ArtifactError(f"{filename} belongs to another program, {manifest['name']!r}: don't load it")
    return manifest


def checked_file(
    directory: Path, filename: str, manifest: Mapping[str, Any], digests: Mapping[str, str] | None
) -> bytes:
    """A file of a saved program, as the run and the manifest, which may be signed, record it."""
    content = checked_bytes(directory / filename, manifest["files"].get(filename))
    if digests is not None:
        checked_bytes(directory / filename, digests.get(filename))
    return content


def read_prompt(directory: Path, name: str, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The prompt that `save_program` wrote, checked, as data: by predictor its `inputs` and `outputs` (field
    names), `instruction` and `demos` (dicts of fields). Raises `ArtifactError` as `load_program` does."""
    manifest = read_manifest(directory, name, digests)
    filename = f"{name}.json"
    state = json.loads(checked_file(directory, filename, manifest, digests))
    found = {}
    for name, spec in manifest["predictors"].items():
        # The state of a bare dspy.Predict is not nested under a name.
        predictor = state.get(name, state)
        found[name] = {
            "inputs": [field["name"] for field in spec["inputs"]],
            "outputs": [field["name"] for field in spec["outputs"]],
            "instruction": predictor["signature"]["instructions"],
            "demos": [
                {key: value for key, value in demo.items() if key != "augmented"}
                for demo in predictor["demos"]
            ],
        }
    return found


def checked_bytes(path: Path, expected: str | None, must_match: bool = True) -> bytes:
    if not path.is_file():
        raise ArtifactError(f"{path.name} is missing from the artifact")
    content = path.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if must_match and actual != expected:
        raise ArtifactError(
            f"{path.name} was changed after it was logged: its sha256 is {actual[:12]}…, "
            f"recorded is {expected[:12] + '…' if expected else 'none'}. Don't use it; log the model again"
        )
    return content
