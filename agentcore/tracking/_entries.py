"""Converts logged values to journal entries: validated, redacted, and truncated to MLflow's limits."""

import getpass
import json
import math
import operator
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentcore._redaction import Redactor, encodable
from agentcore._version import __version__
from agentcore.data import Dataset
from agentcore.errors import ArtifactError, ConfigurationError
from agentcore.journal import Event
from agentcore.settings import MLflowConfig, Settings
from agentcore.tracking._events import (
    ArtifactLogged,
    DatasetUsed,
    InputsLogged,
    MetricsLogged,
    ParamsLogged,
    RunCreated,
    TagsSet,
    TrackingEvent,
)
from agentcore.tracking._requests import KEY_TAG

_MAX_PARAM = 6000
_MAX_TAG = 8000
_MAX_RUN_NAME = 250
_MAX_PATH = 1000
"""Bytes; S3 allows 1024 for a key, of which MLflow takes its own part."""
_MAX_NAME = 200
"""Bytes; file systems allow 255, and artifact stores add to it."""


class RunRequest(Protocol):
    """Supplies a run's default name and tags, e.g. an `OptimizationRequest`."""

    def run_name(self) -> str:
        """A default name for the run."""
        ...

    def run_tags(self) -> dict[str, str]:
        """Default tags for the run."""
        ...


@dataclass(frozen=True)
class File:
    """An artifact to log. Its content is stored in the journal's payloads before its entry is written."""

    path: str
    content: bytes


Draft = Event | File


@dataclass
class Entries:
    """Creates entries, redacted with `redactor`."""

    redactor: Redactor = field(default_factory=Redactor)
    max_bytes: int = 256 * 2**20

    def run_created(
        self, config: MLflowConfig, key: str, run_name: str, tags: Mapping[str, str] | None = None
    ) -> RunCreated:
        """The entry of a run to be created, with `key` as its client key."""
        all_tags = {
            "mlflow.user": user_name(),
            "mlflow.source.name": "agentcore",
            "mlflow.source.type": "LOCAL",
            "environment": Settings().environment,
            "version": __version__,
            **(tags or {}),
            KEY_TAG: key,
        }
        return RunCreated(
            name=self.clean(run_name, _MAX_RUN_NAME),
            tags={check_name("tag", name): self.clean(value, _MAX_TAG) for name, value in all_tags.items()},
            experiment=config.experiment_name,
            artifact_location=config.artifact_location,
        )

    def metrics(self, values: Mapping[str, float | None], step: int = 0) -> list[Draft]:
        """None (unknown) is left out.

        Raises:
            ConfigurationError: a name that MLflow refuses, NaN, infinity or no number, or a step beyond 64
                bits.
        """
        known = {
            check_name("metric", name): _number(name, value)
            for name, value in values.items()
            if value is not None
        }
        return [MetricsLogged(metrics=known, step=_step(step))] if known else []

    def params(self, values: Mapping[str, Any]) -> list[Draft]:
        """Parameters; None is left out, and long values are shortened."""
        found = {
            check_name("parameter", key): self.clean(value, _MAX_PARAM)
            for key, value in values.items()
            if value is not None
        }
        return [ParamsLogged(params=found)] if found else []

    def tags(self, values: Mapping[str, Any]) -> list[Draft]:
        """Tags; long values are shortened."""
        found = {check_name("tag", key): self.clean(value, _MAX_TAG) for key, value in values.items()}
        return [TagsSet(tags=found)] if found else []

    def inputs(self, datasets: Mapping[str, Dataset]) -> list[Draft]:
        """Datasets by the context in which the run used them: training, validation, test, …"""
        used = [
            DatasetUsed(name=part.name, digest=part.digest, rows=len(part), context=context)
            for context, part in datasets.items()
        ]
        return [InputsLogged(datasets=used)]

    def clean(self, value: Any, limit: int) -> str:
        """Redacted text, truncated with an ellipsis where MLflow would truncate it silently."""
        text = encodable(self.redactor.text(str(value)))
        return text if len(text) <= limit else text[: limit - 1] + "…"

    def text(self, path: str, text: str) -> list[Draft]:
        """A text artifact."""
        return self.file_as_it_is(path, encodable(self.redactor.text(text)).encode())

    def json(self, path: str, content: Any, *, redactor: Redactor | None = None) -> list[Draft]:
        """A JSON artifact; secrets are redacted from its values before JSON escapes them.

        Args:
            redactor: used instead of this object's.
        """
        plain = json.loads(json.dumps(content, ensure_ascii=False, default=str))
        cleaned = (redactor or self.redactor).value(plain)
        return self.file_as_it_is(path, encodable(json.dumps(cleaned, indent=2, ensure_ascii=False)).encode())

    def file(self, path: str, content: bytes) -> list[Draft]:
        """A file of any kind. Text is redacted.

        Raises:
            ArtifactError: it is too large, or is binary and contains a secret.
        """
        try:
            return self.text(path, content.decode())
        except UnicodeDecodeError:
            if self.redactor.holds(content):
                raise ArtifactError(f"artifact {path} contains a secret and is not logged") from None
            return self.file_as_it_is(path, content)

    def file_as_it_is(self, path: str, content: bytes) -> list[Draft]:
        """A file that needs no redaction."""
        check_path(path)
        if len(content) > self.max_bytes:
            raise ArtifactError(
                f"artifact {path} is {len(content) / 2**20:.3g} MiB, over the limit of "
                f"{self.max_bytes / 2**20:.3g}: make it smaller, or set AGENTCORE_MAX_ARTIFACT_MB"
            )
        return [File(path, content)]


def stored(draft: File, sha256: str) -> list[TrackingEvent]:
    """The entries of an artifact whose content is in the journal."""
    return [ArtifactLogged(path=draft.path, sha256=sha256, size=len(draft.content))]


_NAME = re.compile(r"[/\w.\- :]+")
_MAX_KEY = 250
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f#?]|%[0-9A-Fa-f]{2}")
"""What a URL takes for something else: MLflow's stores lose such a file, or keep it under another name."""


def check_name(what: str, name: Any) -> str:
    """A metric's, parameter's or tag's name, by MLflow's rules.

    Raises:
        ConfigurationError: MLflow would refuse it.
    """
    fits = isinstance(name, str) and len(name) <= _MAX_KEY and _NAME.fullmatch(name) is not None
    if not fits or posixpath.normpath(name) != name or name.startswith(("/", "..")) or name == ".":
        shown = repr(name if len(str(name)) <= 80 else str(name)[:79] + "…")
        raise ConfigurationError(
            f"{what} name {shown}: MLflow takes letters, digits, spaces and _ - . : / (no / at the ends, no "
            f"//, no . or .. between slashes), at most {_MAX_KEY} characters. Rename it"
        )
    return str(name)


def refusal(event: Event) -> str | None:
    """Why MLflow would refuse an entry whatever happens; None if it may take it."""
    try:
        if isinstance(event, MetricsLogged):
            _step(event.step)
            for name, value in event.metrics.items():
                _number(check_name("metric", name), value)
        elif isinstance(event, ParamsLogged):
            for name in event.params:
                check_name("parameter", name)
        elif isinstance(event, TagsSet):
            for name in event.tags:
                check_name("tag", name)
    except ConfigurationError as error:
        return str(error)
    return None


def check_path(path: str) -> None:
    """Raise `ConfigurationError` for an artifact path that a store can't keep as it is."""
    parts = path.split("/")
    encodable_path = encodable(path) == path
    if (
        not encodable_path
        or len(path.encode()) > _MAX_PATH
        or any(part in ("", ".", "..") or len(part.encode()) > _MAX_NAME for part in parts)
        or _FORBIDDEN.search(path)
    ):
        raise ConfigurationError(
            f"artifact path {encodable(path)[:80]!r}: use a relative path without '..', control characters, "
            f"#, ? or %20, of at most {_MAX_PATH} bytes, each part of at most {_MAX_NAME}"
        )


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigurationError(f"metric {name} must be a number, not {type(value).__name__}") from None
    if isinstance(value, (str, bytes)) or not math.isfinite(number):
        raise ConfigurationError(f"metrics must be finite numbers: {name} is {value!r}")
    return number


def _step(step: Any) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        raise ConfigurationError(f"step must be a whole number, not {step!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ConfigurationError(f"step {number} is beyond 64 bits")
    return number


def user_name() -> str:
    """The name of the user running this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        return "unknown"
