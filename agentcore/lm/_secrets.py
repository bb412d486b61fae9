"""Finds the secrets that models, and programs around them, hold."""

import base64
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import dspy
from pydantic import SecretBytes, SecretStr

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_WORDS = frozenset(
    {
        *("apikey", "auth", "authorization", "authtoken", "bearer", "cookie", "credential", "credentials"),
        *("dsn", "key", "keys", "passphrase", "passwd", "password", "passwords", "pwd", "secret", "secrets"),
        *("token", "tokens"),
    }
)
"""Words of a name whose value is a secret."""
_LISTS = _WORDS - {"key", "keys", "token", "tokens"}
"""Words of a name whose value, if it is a list, is one of secrets and not of a text's tokens."""
_QUERY = frozenset({"sig", "code"})
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+")
_HEADERS = re.compile(r"headers$", re.IGNORECASE)
_PLAIN_HEADERS = re.compile(
    r"^(accept.*|content-.*|user-agent|host|connection|cache-control|.*-version|.*-beta|x-title|http-referer)$",
    re.IGNORECASE,
)
_USER_IS_KEY = 16
"""Characters from which the user in `https://user@host` is taken for a key."""
_DEPTH, _OBJECTS, _ITEMS = 8, 20_000, 1000
_DATA = (dspy.Example, type, types.ModuleType, types.FunctionType, types.MethodType)
"""What holds data or code, whose names say nothing about secrets."""
_SKIPPED = frozenset({"history", "callbacks", "demos", "traces", "train", "signature", "_model", "_control"})


def lm_secrets(*lms: Any) -> list[str]:
    """The secrets that LMs hold: keys, headers, credentials, and passwords in addresses."""
    return list(dict.fromkeys(text for lm in lms for text in _Walk().of("", lm, 0)))


def program_secrets(program: "dspy.Module") -> list[str]:
    """The secrets that a program holds, however deep: those of its models, of its predictors' settings, and
    of attributes whose names or values look like one."""
    return list(dict.fromkeys(_Walk().of("", program, 0)))


def is_secret_attribute(name: str) -> bool:
    """Whether a name says that its value is a secret."""
    joined = "".join(_WORD.findall(name)).lower()
    return "connectionstring" in joined or any(word.lower() in _WORDS for word in _WORD.findall(name))


class _Walk:
    """Walks through values and objects, each object once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def of(self, name: str, value: Any, depth: int) -> Iterator[str]:
        if isinstance(value, (SecretStr, SecretBytes)):
            yield from _whole(_text(value.get_secret_value()))
        elif isinstance(value, (str, bytes)):
            text = _text(value)
            if is_secret_attribute(name):
                yield from _whole(text)
            yield from _in_addresses(text)
        elif not isinstance(value, (bool, int, float, *_DATA)) and self._enter(value, depth):
            if isinstance(value, Mapping):
                yield from self._mapping(name, value, depth + 1)
            elif isinstance(value, (list, tuple, set, frozenset)):
                yield from self._list(name, value, depth + 1)
            elif hasattr(value, "__dict__"):
                if isinstance(value, dspy.BaseLM):  # a managed one delegates to the user's
                    yield from self.of("kwargs", getattr(value, "kwargs", None), depth + 1)
                yield from self._mapping("", vars(value), depth + 1)

    def _enter(self, value: Any, depth: int) -> bool:
        if value is None or depth > _DEPTH or len(self._seen) > _OBJECTS or id(value) in self._seen:
            return False
        self._seen.add(id(value))
        return True

    def _mapping(self, name: str, values: Mapping[Any, Any], depth: int) -> Iterator[str]:
        yield from _basic(values)
        for key, value in list(values.items())[:_ITEMS]:
            if str(key) in _SKIPPED:
                continue
            if _HEADERS.search(name):
                yield from self._header(str(key), value)
            # Everything within `credentials` is one.
            inner = str(key) if not (name and is_secret_attribute(name)) else f"{name}_{key}"
            yield from self.of(inner, value, depth)

    def _list(self, name: str, values: Iterable[Any], depth: int) -> Iterator[str]:
        secret = any(word.lower() in _LISTS for word in _WORD.findall(name))
        for number, item in enumerate(values):
            if number == _ITEMS:
                return
            if _HEADERS.search(name) and isinstance(item, (list, tuple)) and len(item) == 2:
                yield from self._header(str(item[0]), item[1])
            plain = isinstance(item, (str, bytes)) and not secret
            yield from self.of("" if plain else name, item, depth)

    def _header(self, header: str, value: Any) -> Iterator[str]:
        if isinstance(value, (SecretStr, SecretBytes)):
            value = value.get_secret_value()
        if isinstance(value, (str, bytes)) and not _PLAIN_HEADERS.match(header):
            yield from _whole(_text(value))


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _whole(text: str) -> Iterator[str]:
    """A value, what follows a scheme such as `Bearer`, and the secrets of a JSON object."""
    if not text.strip():
        return
    yield text
    if text.lstrip().startswith("{"):
        try:
            inner = json.loads(text)
        except ValueError:
            return
        yield from _Walk().of("credentials", inner, 0)
    else:
        yield text.rpartition(" ")[2]


def _basic(values: Mapping[Any, Any]) -> Iterator[str]:
    """What HTTP's Basic scheme makes of a user name and password that are held apart."""
    users = [values.get(name) for name in ("username", "user", "user_name")]
    password = values.get("password")
    if isinstance(password, (SecretStr, SecretBytes)):
        password = password.get_secret_value()
    for user in users:
        if isinstance(user, str) and isinstance(password, (str, bytes)):
            yield _encoded(user, _text(password))


def _encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogatepass")).decode()


def _in_addresses(text: str) -> Iterator[str]:
    """The passwords of URLs, from before their hosts or from their queries."""
    if "://" not in text:
        return
    for found in _ADDRESS.finditer(text):
        try:
            yield from _in_address(urlsplit(found[0]))
        except ValueError:
            continue


def _in_address(parts: "SplitResult") -> Iterator[str]:
    user, password = parts.username or "", parts.password
    if password:
        yield from {password, unquote(password)}
        # What clients send instead of it, and servers repeat.
        yield from {_encoded(user, password), _encoded(unquote(user), unquote(password))}
    elif len(user) >= _USER_IS_KEY:
        yield from {user, unquote(user)}
    for name, value in parse_qsl(parts.query):
        if is_secret_attribute(name) or name.lower() in _QUERY:
            yield value
