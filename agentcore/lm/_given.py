"""A model as the command line describes it: a name with an address and arguments, or an object to import."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from agentcore._imports import import_object
from agentcore.errors import ConfigurationError
from agentcore.lm._endpoint import endpoint_of
from agentcore.lm._resolve import GENERATION_SETTINGS, OFFLINE_LM
from agentcore.lm._secrets import is_secret_attribute
from agentcore.settings import Settings, nearest

if TYPE_CHECKING:
    import dspy

_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_ENV = "env:"
_HEADER = "header."
_KEYS = {"openai": "OPENAI_API_KEY"}
_NO_KEY = "not-needed"
"""Sent to a server of the user's own if there is no key: the client asks for one."""


def given_lm(
    name: str | None, base_url: str | None = None, arguments: Sequence[str] = ()
) -> "dspy.BaseLM | str | None":
    """A model from command-line options; without address and arguments, its name alone, or None.

    Args:
        name: `provider/model`, or `package.module:object` (an LM, or what makes one); None means
            AGENTCORE_LM.
        base_url: of an OpenAI-compatible server; a name without a provider is then a model of it.
        arguments: `key=value` of `dspy.LM`, where `env:NAME` is the value of an environment variable;
            `header.NAME=value` is an HTTP header.

    Raises:
        ConfigurationError: one of them is malformed, or a secret is written out.
    """
    if name is not None and _OBJECT.fullmatch(name):
        if base_url or arguments:
            raise ConfigurationError(
                f"--lm {name} is an object with its own settings: leave out --lm-base-url and --lm-arg"
            )
        return _imported(name)
    if not base_url and not arguments:
        return name
    name = name or Settings().lm
    if name is None:
        raise ConfigurationError("--lm-base-url and --lm-arg need a model: pass --lm, or set AGENTCORE_LM")
    if name == OFFLINE_LM:
        raise ConfigurationError(f"{OFFLINE_LM} runs in this process: it takes no --lm-base-url or --lm-arg")
    if base_url and "/" not in name:
        name = f"openai/{name}"
    values = _values(arguments)
    if base_url:
        if not re.match(r"https?://[^\s/]", base_url):
            raise ConfigurationError(
                f"--lm-base-url {base_url!r}: write an address such as http://localhost:8080/v1"
            )
        values["api_base"] = base_url.strip()
        values |= _key_for(name, values)
    import dspy

    try:
        return dspy.LM(name, **values)
    except (TypeError, ValueError, dspy.LMError) as error:
        raise ConfigurationError(f"language model {name!r}: {error}") from None


def recorded_model(spec: Mapping[str, Any]) -> "dspy.BaseLM | str":
    """The model that a run in the user's own journal has recorded: its name, settings and address."""
    name, settings, endpoint = str(spec["model"]), dict(spec["settings"]), spec.get("endpoint")
    if name == OFFLINE_LM or "/" not in name:
        return name
    if endpoint is not None and endpoint == endpoint_of(SimpleNamespace(model=name, kwargs={})):
        endpoint = None  # the environment's
    if endpoint is None and not settings:
        return name
    import dspy

    key = {} if endpoint is None else _key_for(name, settings)
    address = {} if endpoint is None else {"api_base": endpoint}
    try:
        return dspy.LM(name, **settings, **address, **key)
    except (TypeError, ValueError, dspy.LMError) as error:
        raise ConfigurationError(f"language model {name!r}: {error}. Pass it as lm= or --lm") from None


def _key_for(name: str, values: Mapping[str, Any]) -> dict[str, str]:
    """A placeholder for the key of a server of the user's own, if there is none."""
    provider = name.partition("/")[0]
    missing = provider in _KEYS and "api_key" not in values and not os.environ.get(_KEYS[provider])
    return {"api_key": _NO_KEY} if missing else {}


def _imported(path: str) -> "dspy.BaseLM":
    import dspy

    found = import_object(path, "lm")
    if not isinstance(found, dspy.BaseLM) and callable(found):
        try:
            found = found()
        except TypeError as error:
            raise ConfigurationError(f"lm {path!r}: can't be called without arguments ({error})") from None
    if not isinstance(found, dspy.BaseLM):
        raise ConfigurationError(f"lm {path!r} is a {type(found).__name__}, not a dspy.LM")
    return found


def _values(arguments: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    headers: dict[str, str] = {}
    for text in arguments:
        key, separator, written = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise ConfigurationError(f"--lm-arg {text!r}: write key=value, such as max_tokens=200")
        value = _from_environment(key, written) if written.startswith(_ENV) else _literal(key, written)
        if key.startswith(_HEADER):
            headers[key.removeprefix(_HEADER)] = str(value)
        elif key in ("api_base", "base_url"):
            raise ConfigurationError(f"--lm-arg {key}: pass it as --lm-base-url")
        else:
            values[key] = value
    return {**values, "extra_headers": headers} if headers else values


def _from_environment(key: str, written: str) -> str:
    name = written.removeprefix(_ENV)
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"--lm-arg {key}={written}: the environment variable {name} is not set")
    return value


def _literal(key: str, written: str) -> Any:
    if key not in GENERATION_SETTINGS and (hint := nearest(key, sorted(GENERATION_SETTINGS), 0.85)):
        raise ConfigurationError(f"--lm-arg {key}: no such argument{hint}")
    secret = is_secret_attribute(key.removeprefix(_HEADER)) and key not in GENERATION_SETTINGS
    if secret or key.lower() == "header.authorization":
        raise ConfigurationError(
            f"--lm-arg {key}: other users of this machine can read a command line. Put the value into an "
            f"environment variable and write {key}=env:NAME"
        )
    if key.startswith(_HEADER):
        return written
    try:
        return json.loads(written)
    except ValueError:
        return written
