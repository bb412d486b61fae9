"""A program as files: DSPy's JSON state, a manifest beside it, and a pickle that nobody reads unasked."""

import copy
import hashlib
import io
import json
import logging
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import cloudpickle
import dspy
from dspy.utils.saving import get_dependency_versions
from pydantic import SecretStr

from agentcore._imports import import_object
from agentcore.errors import (
    ArtifactError,
    ConfigurationError,
    environment_secrets,
    first_line,
    looks_random,
    redact,
    replace_secrets,
)
from agentcore.tracking._types import parse_type, type_text

_logger = logging.getLogger(__name__)

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
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
        raise ConfigurationError(f"artifact name {name!r}: use letters, digits, '_', '-' and '.'")
    directory.mkdir(parents=True, exist_ok=True)
    digests = {}

    def write(filename: str, content: bytes) -> None:
        (directory / filename).write_bytes(content)
        digests[filename] = hashlib.sha256(content).hexdigest()

    # An ordinary word that happens to be someone's password must not be cut out of a prompt.
    hidden = {*secrets, *filter(looks_random, environment_secrets())}
    text = _json(_state(program))
    state = replace_secrets(text, hidden)
    write(f"{name}.json", state.encode())
    pickled, why_not = _pickled(program, hidden)
    if pickled is not None:
        write(f"{name}.pkl", pickled)
    manifest = {
        "format": FORMAT,
        "program": {
            "class": _class_path(program),
            "path": program_path,
            "attributes": _attributes(program),
        },
        "predictors": _signatures(program),
        "versions": _versions(),
        "files": dict(digests),
        "redacted": state != text,
        "pickle": "read it only with trust_pickle=True" if pickled is not None else f"not written: {why_not}",
        "metadata": dict(metadata or {}),
    }
    write(f"{name}_metadata.json", redact(_json(manifest), secrets).encode())
    return digests


def _json(content: Any) -> str:
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate is no UTF-8


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
    if manifest["redacted"]:
        _logger.warning("%s held a secret in its prompt, which was cut out when it was saved", name)
    if trust_pickle:
        return cloudpickle.loads(content)  # the caller asked for it
    fresh = program.deepcopy() if program is not None else _rebuild(manifest)
    _check_fit(fresh, manifest, name)
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
    wanted = {"format", "program", "predictors", "files", "redacted"}
    if not isinstance(manifest, dict) or not wanted <= manifest.keys() or manifest["format"] != FORMAT:
        raise ArtifactError(f"{filename} is not of the format {FORMAT}: another program wrote it")
    return manifest


def read_prompt(directory: Path, name: str, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The prompt that `save_program` wrote, checked, as data: by predictor its `inputs` and `outputs` (field
    names), `instruction` and `demos` (dicts of fields). Raises `ArtifactError` as `load_program` does."""
    manifest = read_manifest(directory, name, digests)
    filename = f"{name}.json"
    state = json.loads(_checked_bytes(directory / filename, (digests or manifest["files"]).get(filename)))
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


def program_state(program: Any) -> dict[str, Any]:
    """What an optimizer changes of a program, as JSON values: instructions and demonstrations, no LM."""

    def dump(parameter: Any) -> Any:
        if not isinstance(parameter, dspy.Predict):
            return parameter.dump_state()
        bare = copy.copy(parameter)
        bare.lm = None  # some LMs can't be dumped, and none belongs here
        return {**bare.dump_state(), "traces": [], "train": []}

    if isinstance(program, dspy.Predict):
        return cast(dict[str, Any], dump(program))
    return {name: dump(parameter) for name, parameter in program.named_parameters()}


def _state(program: Any) -> dict[str, Any]:
    """DSPy's JSON state (its own `program.load` reads it too) without LMs."""
    state = program_state(program)
    return {**state, "metadata": {"dependency_versions": get_dependency_versions()}}


class _Pickler(cloudpickle.CloudPickler):
    """Leaves out LMs and secrets, wherever they hang: None takes their place."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (dspy.BaseLM, SecretStr)):
            return getattr, (object, "no_such_attribute", None)
        return super().reducer_override(obj)


def _pickled(program: Any, secrets: Iterable[str]) -> tuple[bytes | None, str]:
    if type(program).__module__ == "__main__":
        return None, "the class would be pickled with all that its script holds"
    clean = program.deepcopy()
    for _, predictor in clean.named_predictors():
        predictor.config = _without_connection(predictor.config)
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(clean)
    except Exception as error:  # noqa: BLE001 - user objects may fail to pickle in any way; said in the manifest
        return None, f"the program can't be pickled ({type(error).__name__})"
    text = buffer.getvalue().decode("latin-1")
    if replace_secrets(text, secrets) != text:
        return None, "it would hold a secret"
    return buffer.getvalue(), ""


def _without_connection(config: Mapping[str, Any]) -> dict[str, Any]:
    """A predictor's LM settings without keys and addresses."""
    return {key: value for key, value in config.items() if not key.startswith(("api_", "base_url"))}


def _attributes(program: Any) -> dict[str, Any]:
    """Plain attributes of the user's own modules, such as constructor arguments: no part of DSPy's state."""
    found = {}
    for path, module in program.named_sub_modules():
        if type(module).__module__.startswith("dspy."):
            continue
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, (bool, int, float, str)):
                found[f"{path}.{name}"] = value
    return found


def _class_path(program: Any) -> str:
    return f"{type(program).__module__}:{type(program).__qualname__}"


def _signatures(program: Any) -> dict[str, Any]:
    def fields(group: Mapping[str, Any]) -> list[dict[str, str]]:
        return [
            {
                "name": name,
                "type": type_text(info.annotation),
                "desc": (info.json_schema_extra or {}).get("desc", ""),
                "constraints": (info.json_schema_extra or {}).get("constraints") or "",
            }
            for name, info in group.items()
        ]

    return {
        name: {
            "instructions": predictor.signature.instructions,
            "inputs": fields(predictor.signature.input_fields),
            "outputs": fields(predictor.signature.output_fields),
            "config": _without_connection(predictor.config),
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
            (spec,) = manifest["predictors"].values()
            return _BY_SIGNATURE[class_path](_signature(spec, class_path), **spec["config"])
        if class_path.startswith("__main__:"):
            raise ArtifactError(f"the program's class {class_path!r} was defined in a script. {advice}")
        return import_object(class_path, "program")()
    except ConfigurationError as error:
        raise ArtifactError(f"{error}. {advice}") from None
    except ArtifactError:
        raise
    except Exception as error:
        message = f"{class_path} can't be made without arguments ({first_line(error)}). {advice}"
        raise ArtifactError(message) from error


def _signature(spec: Mapping[str, Any], class_path: str) -> Any:
    outputs = spec["outputs"]
    if class_path.endswith("ChainOfThought"):
        outputs = [field for field in outputs if field["name"] != "reasoning"]
    fields: dict[str, Any] = {}
    for group, make in ((spec["inputs"], dspy.InputField), (outputs, dspy.OutputField)):
        for field in group:
            fields[field["name"]] = (parse_type(field["type"]), make(desc=field["desc"]))
    return dspy.Signature(fields, spec["instructions"])


def _check_fit(program: Any, manifest: Mapping[str, Any], name: str) -> None:
    """DSPy loads a state into other fields without a word, and knows nothing of constructor arguments."""

    def shape(signatures: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
        return {
            predictor: [
                (field["name"], f"{field['type']} {field['constraints']}".strip())
                for field in spec["inputs"] + spec["outputs"]
            ]
            for predictor, spec in signatures.items()
        }

    expected, actual = shape(manifest["predictors"]), shape(_signatures(program))
    if expected != actual:
        raise ArtifactError(
            f"{name} doesn't fit the program: saved with {_shape_text(expected)}, "
            f"but the program has {_shape_text(actual)}"
        )
    saved, own = manifest["program"]["attributes"], _attributes(program)
    differing = [path for path, value in saved.items() if own.get(path, value) != value]
    if differing:
        told = ", ".join(f"{path} was {saved[path]!r} and is {own[path]!r}" for path in differing)
        raise ArtifactError(f"{name} doesn't fit the program: {told}. Pass the right instance as program=")


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
