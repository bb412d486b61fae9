"""Saves programs as DSPy's JSON state, a manifest, and a pickle that is only read on request."""

import copy
import hashlib
import inspect
import io
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import cloudpickle
import dspy
from dspy.utils.saving import get_dependency_versions
from pydantic import SecretStr

from agentcore._redaction import Redactor, encodable, first_line
from agentcore._types import parse_type, type_text
from agentcore.errors import ArtifactError, ConfigurationError
from agentcore.lm import is_secret_attribute, program_secrets
from agentcore.tracking._demos import as_prompted, dump_demos, load_demos, messages_of
from agentcore.tracking._manifest import FORMAT, NAME, checked_file, read_manifest
from agentcore.tracking._signing import signature_file, signed
from agentcore.tracking._trust import (
    stored_class,
    stored_program,
    stored_settings,
    stored_state,
    stored_type,
)

_logger = logging.getLogger(__name__)

_BY_SIGNATURE: dict[str, type] = {
    "dspy.predict.predict:Predict": dspy.Predict,
    "dspy.predict.chain_of_thought:ChainOfThought": dspy.ChainOfThought,
}


def save_program(
    program: dspy.Module,
    directory: Path,
    name: str = "optimized_model",
    *,
    metadata: Mapping[str, Any] | None = None,
    program_path: str | None = None,
    redactor: Redactor | None = None,
    attributes: Mapping[str, Any] | None = None,
    example: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Write `{name}.json`, `{name}.pkl` and `{name}_metadata.json`, and `{name}.sig` if
    `AGENTCORE_SIGNING_KEY` is set; return the sha256 of each file.

    LMs are left out of the state and the pickle, and secrets are redacted. What was written is loaded again
    and must make the same messages for `example` as the program itself.

    Args:
        program: a `dspy.Module`.
        program_path: `package.module:object`, where the program can be imported from.
        attributes: `program_attributes` of the program before it ran, if it has run.
        example: the inputs of a real example.

    Raises:
        ArtifactError: the saved program would prompt differently.
    """
    if not NAME.fullmatch(name):
        raise ConfigurationError(f"artifact name {name!r}: use letters, digits, '_', '-' and '.'")
    redactor = (redactor or Redactor()).with_secrets(program_secrets(program))
    directory.mkdir(parents=True, exist_ok=True)
    digests = {}

    def write(filename: str, content: bytes) -> None:
        (directory / filename).write_bytes(content)
        digests[filename] = hashlib.sha256(content).hexdigest()

    content = redactor.for_content()
    state = json.loads(_json(_state(program)))
    cleaned = content.value(state)
    write(f"{name}.json", _json(cleaned).encode())
    pickled, why_not = _pickled(program, content)
    if pickled is not None:
        write(f"{name}.pkl", pickled)
    manifest = {
        "format": FORMAT,
        "name": name,
        "program": {
            "class": _class_path(program),
            "path": program_path,
            **(program_attributes(program) if attributes is None else attributes),
        },
        "predictors": _signatures(program),
        "versions": _versions(),
        "files": dict(digests),
        "redacted": cleaned != state,
        "pickle": "read it only with trust_pickle=True" if pickled is not None else f"not written: {why_not}",
        "metadata": dict(metadata or {}),
    }

    def finish() -> None:
        written = _json(redactor.value(json.loads(_json(manifest)))).encode()
        write(f"{name}_metadata.json", written)
        if (signature := signed(written)) is not None:
            write(signature_file(name), signature)

    finish()
    if manifest["redacted"]:
        return digests
    wanted = messages_of(program, example or {})
    if _messages_again(manifest, cleaned, program, example or {}) != wanted:
        # JSON's forms of the demonstrations make another prompt: keep their types as well.
        manifest["demos"] = _typed_demos(program)
        finish()
    found = _messages_again(manifest, cleaned, program, example or {})
    if found != wanted:
        raise ArtifactError(_difference(name, wanted, found))
    return digests


def _messages_again(
    manifest: Mapping[str, Any], state: Any, program: dspy.Module, example: Mapping[str, Any]
) -> dict[str, Any]:
    """The messages of the program, as it is loaded from what was just written."""
    manifest, name = json.loads(_json(manifest)), manifest["name"]
    try:
        again = _rebuild(manifest)
        _check_fit(again, manifest, name)
    except ArtifactError:  # its class needs arguments, or is a notebook's
        again = program.deepcopy()
    _fill(again, _json(state).encode(), manifest, name)
    return messages_of(again, example)


def _typed_demos(program: dspy.Module) -> dict[str, Any]:
    return {name: dump_demos(predictor.demos) for name, predictor in program.named_predictors()}


def _difference(name: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    place = next(key for key in [*wanted, *found] if wanted.get(key) != found.get(key))
    before, after = _json(wanted.get(place)), _json(found.get(place))
    start = next((at for at, pair in enumerate(zip(before, after, strict=False)) if len(set(pair)) > 1), 0)
    around = slice(max(0, start - 20), start + 60)
    return (
        f"{name} was not saved: after reloading, the prompt of predictor {place} would contain "
        f"{after[around]!r} where the measured program's has {before[around]!r}. Give the field a type that "
        "Pydantic can write as JSON and read back"
    )


def _json(content: Any) -> str:
    return encodable(json.dumps(content, indent=2, ensure_ascii=False, default=str))


def load_program(
    directory: Path,
    name: str = "optimized_model",
    *,
    program: dspy.Module = None,
    digests: Mapping[str, str] | None = None,
    trust_pickle: bool = False,
) -> Any:
    """The program that `save_program` wrote, without an LM.

    Files are checked against `digests` before they are loaded, or against those in the manifest if None.
    Pass digests from another store than the files.

    Args:
        program: a fresh instance to load into, for a class that can't be imported (a notebook's).
        trust_pickle: read the pickle instead of the JSON state. It can run arbitrary code, so use this only
            for files that you created.

    Raises:
        ArtifactError: a file is missing or changed, the class can't be imported, or its fields differ.
    """
    manifest = read_manifest(directory, name, digests)
    wanted = f"{name}.pkl" if trust_pickle else f"{name}.json"
    content = checked_file(directory, wanted, manifest, digests)
    if manifest["redacted"]:
        _logger.warning("the prompt of %s held a secret, which was redacted when it was saved", name)
    if trust_pickle:
        return cloudpickle.loads(content)  # the caller asked for it
    fresh = program.deepcopy() if program is not None else _rebuild(manifest)
    _check_fit(fresh, manifest, name)
    _fill(fresh, content, manifest, name)
    return fresh


def _fill(program: dspy.Module, content: bytes, manifest: Mapping[str, Any], name: str) -> None:
    """Load a stored state; demonstrations get the types that the prompt depends on."""
    state = json.loads(content)
    state.pop("metadata", None)
    _tell_left_out(stored_state(program, state))
    program.load_state(state)
    typed = manifest.get("demos") or {}
    for place, predictor in program.named_predictors():
        if place in typed:
            try:
                predictor.demos = load_demos(typed[place], manifest["program"]["class"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ArtifactError(
                    f"{name}: the demonstrations of {place} can't be restored ({first_line(error)})"
                ) from None


def program_state(program: dspy.Module) -> dict[str, Any]:
    """The state that an optimizer changes, as JSON values: instructions and demonstrations, without LMs."""

    def dump(parameter: Any) -> Any:
        if not isinstance(parameter, dspy.Predict):
            return parameter.dump_state()
        bare = copy.copy(parameter)
        bare.lm = None  # some LMs can't be dumped, and none belongs here
        bare.demos = []
        demos = [{key: as_prompted(item) for key, item in demo.items()} for demo in parameter.demos]
        return {**bare.dump_state(), "traces": [], "train": [], "demos": demos}

    if isinstance(program, dspy.Predict):
        return cast(dict[str, Any], dump(program))
    return {name: dump(parameter) for name, parameter in program.named_parameters()}


def _state(program: dspy.Module) -> dict[str, Any]:
    """DSPy's JSON state (its own `program.load` reads it too) without LMs."""
    state = program_state(program)
    return {**state, "metadata": {"dependency_versions": get_dependency_versions()}}


class _Pickler(cloudpickle.CloudPickler):
    """Replaces LMs and secrets with None, wherever they are referenced."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (dspy.BaseLM, SecretStr)):
            return getattr, (object, "no_such_attribute", None)
        return super().reducer_override(obj)


def _pickled(program: dspy.Module, redactor: Redactor) -> tuple[bytes | None, str]:
    if type(program).__module__ == "__main__":
        return None, "the class is defined in a script, all of which would be pickled with it"
    clean = program.deepcopy()
    for name, predictor in clean.named_predictors():
        predictor.config, left_out = stored_settings(dict(predictor.config))
        if left_out:
            _logger.warning(
                "predictor %s is saved without %s, which could change where its calls go",
                name,
                ", ".join(left_out),
            )
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(clean)
    except Exception as error:  # noqa: BLE001 - user objects may fail to pickle in any way; said in the manifest
        return None, f"the program can't be pickled ({type(error).__name__})"
    if redactor.holds(buffer.getvalue()):
        return None, "it would hold a secret"
    return buffer.getvalue(), ""


def _without_connection(config: Mapping[str, Any]) -> dict[str, Any]:
    """A predictor's generation settings, without keys, addresses, headers and callbacks."""
    return stored_settings(dict(config))[0]


def program_attributes(program: dspy.Module) -> dict[str, dict[str, Any]]:
    """The plain attributes of the user's modules, which DSPy doesn't save: `attributes` that constructors
    take, which decide what the program is, and a `state` of others, which may change as it runs."""
    found: dict[str, dict[str, Any]] = {"attributes": {}, "state": {}}
    for path, module in program.named_sub_modules():
        if type(module).__module__.startswith("dspy."):
            continue
        taken = inspect.signature(type(module).__init__).parameters
        for name, value in vars(module).items():
            secret = isinstance(value, str) and is_secret_attribute(name)
            if not name.startswith("_") and isinstance(value, (bool, int, float, str)) and not secret:
                found["attributes" if name in taken else "state"][f"{path}.{name}"] = value
    return found


def _class_path(program: dspy.Module) -> str:
    return f"{type(program).__module__}:{type(program).__qualname__}"


def _signatures(program: dspy.Module) -> dict[str, Any]:
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
    """A fresh program: imported, built from its signature, or created from its class without arguments."""
    class_path, path = manifest["program"]["class"], manifest["program"]["path"]
    advice = "Pass a fresh instance as program="
    try:
        if path:
            return stored_program(path)
        if class_path in _BY_SIGNATURE:
            (spec,) = manifest["predictors"].values()
            settings, left_out = stored_settings(spec["config"])
            _tell_left_out(left_out)
            return _BY_SIGNATURE[class_path](_signature(spec, class_path), **settings)
        if class_path.startswith("__main__:"):
            raise ArtifactError(
                f"the program's class {class_path!r} was defined in a script or notebook. {advice}"
            )
        return stored_class(class_path)()
    except ConfigurationError as error:
        raise ArtifactError(f"{error}. {advice}") from None
    except ArtifactError:
        raise
    except Exception as error:
        message = f"{class_path} can't be created without arguments ({first_line(error)}). {advice}"
        raise ArtifactError(message) from error


def _tell_left_out(names: Sequence[str]) -> None:
    if names:
        _logger.warning(
            "not loaded from the stored program, because they could change where its calls go: %s",
            ", ".join(names),
        )


def _signature(spec: Mapping[str, Any], class_path: str) -> Any:
    outputs = spec["outputs"]
    if class_path.endswith("ChainOfThought"):
        outputs = [field for field in outputs if field["name"] != "reasoning"]
    fields: dict[str, Any] = {}
    for group, make in ((spec["inputs"], dspy.InputField), (outputs, dspy.OutputField)):
        for field in group:
            kind = parse_type(field["type"], lambda path: stored_type(path, class_path))
            fields[field["name"]] = (kind, make(desc=field["desc"]))
    return dspy.Signature(fields, spec["instructions"])


def _check_fit(program: dspy.Module, manifest: Mapping[str, Any], name: str) -> None:
    """Raise `ArtifactError` for a different program: DSPy would silently load the state anyway."""

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
    own = program_attributes(program)
    if told := _changes(manifest["program"]["attributes"], own["attributes"]):
        raise ArtifactError(f"{name} doesn't fit the program: {told}. Pass the right instance as program=")
    if told := _changes(manifest["program"].get("state", {}), own["state"]):
        _logger.warning("%s was saved with a different state, which DSPy doesn't restore: %s", name, told)


def _changes(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{path} was {value!r} and is {own[path]!r}"
        for path, value in saved.items()
        if own.get(path, value) != value
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
