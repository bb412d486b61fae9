"""A program as files: DSPy's JSON state, a manifest beside it, and a pickle that nobody reads unasked."""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
from dspy.utils.saving import get_dependency_versions

from agentcore._imports import import_object
from agentcore.errors import ArtifactError, ConfigurationError, redact
from agentcore.tracking._types import parse_type, type_text

FORMAT = "agentcore-program/1"
_BY_SIGNATURE: dict[str, type] = {
    "dspy.predict.predict:Predict": dspy.Predict,
    "dspy.predict.chain_of_thought:ChainOfThought": dspy.ChainOfThought,
}


def save_program(
    program: Any,
    directory: Path,
    name: str = "optimized_model",
    *,
    metadata: Mapping[str, Any] | None = None,
    program_path: str | None = None,
    secrets: Sequence[str] = (),
) -> dict[str, str]:
    """Write `{name}.json`, `{name}.pkl` and `{name}_metadata.json` and return the sha256 of each file.

    LMs are taken out of state and pickle; `secrets` and secret environment variables are redacted.

    Args:
        program: a `dspy.Module`.
        program_path: `package.module:object`, where the program can be imported from.
    """
    directory.mkdir(parents=True, exist_ok=True)
    digests = {}

    def write(filename: str, content: bytes) -> None:
        (directory / filename).write_bytes(content)
        digests[filename] = hashlib.sha256(content).hexdigest()

    state = json.dumps(_state(program), indent=2, ensure_ascii=False, default=str)
    write(f"{name}.json", redact(state, secrets).encode())
    pickled, why_not = _pickled(program, secrets)
    if pickled is not None:
        write(f"{name}.pkl", pickled)
    manifest = {
        "format": FORMAT,
        "program": {"class": _class_path(program), "path": program_path},
        "predictors": _signatures(program),
        "versions": _versions(),
        "files": dict(digests),
        "pickle": "read it only with trust_pickle=True" if pickled is not None else f"not written: {why_not}",
        "metadata": dict(metadata or {}),
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str)
    write(f"{name}_metadata.json", redact(text, secrets).encode())
    return digests


def load_program(
    directory: Path,
    name: str = "optimized_model",
    *,
    program: Any = None,
    digests: Mapping[str, str] | None = None,
    trust_pickle: bool = False,
) -> Any:
    """The program that `save_program` wrote, without an LM.

    Digests are checked before anything is read: those given (from another store than the files), else
    those in the manifest.

    Args:
        program: a fresh instance to load into, for a class that can't be imported (a notebook's).
        trust_pickle: read the pickle instead of the JSON state. It can run any code: only for files that
            you made.

    Raises:
        ArtifactError: a file is missing or changed, the class can't be imported, or its fields differ.
    """
    manifest = read_manifest(directory, name, digests)
    wanted = f"{name}.pkl" if trust_pickle else f"{name}.json"
    content = _checked_bytes(directory / wanted, (digests or manifest["files"]).get(wanted))
    if trust_pickle:
        return cloudpickle.loads(content)  # the caller asked for it
    fresh = program.deepcopy() if program is not None else _rebuild(manifest)
    _check_fields(fresh, manifest, name)
    state = json.loads(content)
    state.pop("metadata", None)
    fresh.load_state(state)
    return fresh


def read_manifest(directory: Path, name: str, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The checked manifest of `name`; `ArtifactError` where it is missing, changed or of another format."""
    filename = f"{name}_metadata.json"
    content = _checked_bytes(
        directory / filename, digests.get(filename) if digests else None, digests is not None
    )
    try:
        manifest = json.loads(content)
    except ValueError:
        raise ArtifactError(f"{filename} is no JSON: the artifact is damaged") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(f"{filename} is not of the format {FORMAT}: another program wrote it")
    return manifest


def _checked_bytes(path: Path, expected: str | None, must_match: bool = True) -> bytes:
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


def _state(program: Any) -> dict[str, Any]:
    """DSPy's JSON state (its own `program.load` reads it too) without LMs."""
    state = program.dump_state()
    for predictor in [state] if isinstance(program, dspy.Predict) else state.values():
        predictor.update(lm=None, traces=[], train=[])
    return {**state, "metadata": {"dependency_versions": get_dependency_versions()}}


def _pickled(program: Any, secrets: Sequence[str]) -> tuple[bytes | None, str]:
    clean = program.deepcopy()
    for module in _modules(clean):
        for attribute, value in list(vars(module).items()):
            if isinstance(value, dspy.BaseLM):
                setattr(module, attribute, None)
    try:
        content = cloudpickle.dumps(clean)
    except Exception as error:  # noqa: BLE001 - user objects may fail to pickle in any way; said in the manifest
        return None, f"the program can't be pickled ({type(error).__name__})"
    text = content.decode("latin-1")
    if redact(text, secrets) != text:
        return None, "it would hold a secret"
    return content, ""


def _modules(program: Any) -> Iterator[Any]:
    yield program
    for _, module in program.named_sub_modules():
        yield module


def _class_path(program: Any) -> str:
    return f"{type(program).__module__}:{type(program).__qualname__}"


def _signatures(program: Any) -> dict[str, Any]:
    def fields(group: Mapping[str, Any]) -> list[dict[str, str]]:
        return [
            {
                "name": name,
                "type": type_text(info.annotation),
                "desc": (info.json_schema_extra or {}).get("desc", ""),
            }
            for name, info in group.items()
        ]

    return {
        name: {
            "instructions": predictor.signature.instructions,
            "inputs": fields(predictor.signature.input_fields),
            "outputs": fields(predictor.signature.output_fields),
        }
        for name, predictor in program.named_predictors()
    }


def _rebuild(manifest: Mapping[str, Any]) -> Any:
    """A fresh program: imported, made from its signature, or by its class without arguments."""
    class_path, path = manifest["program"]["class"], manifest["program"]["path"]
    advice = "Pass a fresh instance as program="
    try:
        if path:
            found = import_object(path, "program")
            return found() if isinstance(found, type) else found.deepcopy()
        if class_path in _BY_SIGNATURE:
            return _BY_SIGNATURE[class_path](_signature(manifest, class_path))
        if class_path.startswith("__main__:"):
            raise ArtifactError(f"the program's class {class_path!r} was defined in a script. {advice}")
        return import_object(class_path, "program")()
    except ConfigurationError as error:
        raise ArtifactError(f"{error}. {advice}") from None
    except TypeError as error:
        raise ArtifactError(f"{class_path} can't be made without arguments ({error}). {advice}") from None


def _signature(manifest: Mapping[str, Any], class_path: str) -> Any:
    (spec,) = manifest["predictors"].values()
    outputs = spec["outputs"]
    if class_path.endswith("ChainOfThought"):
        outputs = [field for field in outputs if field["name"] != "reasoning"]
    fields: dict[str, Any] = {}
    for group, make in ((spec["inputs"], dspy.InputField), (outputs, dspy.OutputField)):
        for field in group:
            fields[field["name"]] = (parse_type(field["type"]), make(desc=field["desc"]))
    return dspy.Signature(fields, spec["instructions"])


def _check_fields(program: Any, manifest: Mapping[str, Any], name: str) -> None:
    """DSPy loads a state into other fields without a word."""

    def shape(signatures: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
        return {
            predictor: [(field["name"], field["type"]) for field in spec["inputs"] + spec["outputs"]]
            for predictor, spec in signatures.items()
        }

    expected, actual = shape(manifest["predictors"]), shape(_signatures(program))
    if expected != actual:
        raise ArtifactError(
            f"{name} doesn't fit the program: saved with {_shape_text(expected)}, "
            f"but the program has {_shape_text(actual)}"
        )


def _shape_text(shape: Mapping[str, list[tuple[str, str]]]) -> str:
    return "; ".join(
        f"{name}({', '.join(f'{field}: {kind}' for field, kind in fields)})" for name, fields in shape.items()
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("agentcore", "dspy", "cloudpickle"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
