"""Keeps secrets out of everything that is written: errors, logs, tags, artifacts, the journal."""

import json
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit

_SECRET_NAME = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|PASSPHRASE)|_(AUTH|AUTHORIZATION|DSN|PASSWD|PWD)$", re.IGNORECASE
)
_NO_SECRETS = frozenset({"MLFLOW_TRACKING_AUTH"})
_MIN_LENGTH = 8
_RANDOM_LENGTH = 16
_CUT = "[redacted]"
_GIVEN = "a key of the language model"
_WORDS = re.compile(r"[A-Za-z]+([-_ .][A-Za-z]+)*")


class Redactor:
    """Redacts secrets in text and JSON values.

    A secret is a value passed in here, or the value of an environment variable whose name says that it
    holds one (KEY, TOKEN, SECRET, PASSWORD, CREDENTIAL), with at least 8 characters. It is also found the
    way JSON, a Python repr or a URL writes it.

    Args:
        secrets: values to redact, in addition to those in the environment.
        unmistakable: from the environment, redact only values that can't be ordinary text: at least 16
            characters with letters and digits, or with quotes or control characters.
    """

    def __init__(self, secrets: Iterable[str] = (), *, unmistakable: bool = False) -> None:
        self._given = list(secrets)
        self._unmistakable = unmistakable
        self._snapshot: dict[str, str] | None = None

    def for_content(self) -> "Redactor":
        """A redactor for the user's data and prompts, with a snapshot of the current environment.

        It redacts only unmistakable secrets. If a password is an ordinary word, redacting that word in an
        example would change the measurement and make the run impossible to resume.
        """
        return Redactor(filter(_not_words, self._given), unmistakable=True).snapshot()

    def snapshot(self) -> "Redactor":
        """A redactor of the same secrets, with a snapshot of the current environment."""
        made = Redactor(self._given, unmistakable=self._unmistakable)
        made._snapshot = made._named()
        return made

    def with_secrets(self, secrets: Iterable[str]) -> "Redactor":
        """A redactor of these secrets as well."""
        return Redactor([*self._given, *secrets], unmistakable=self._unmistakable)

    def add(self, secrets: Iterable[str]) -> None:
        self._given.extend(secrets)

    def text(self, text: str) -> str:
        """`text` without secrets."""
        pattern = self._pattern()
        return text if pattern is None else pattern.sub(_CUT, text)

    def value(self, value: Any) -> Any:
        """A JSON value with secrets redacted in keys and strings. Numbers are never changed."""
        pattern = self._pattern()
        return value if pattern is None else _map_texts(value, lambda text: pattern.sub(_CUT, text))

    def holds(self, content: bytes) -> bool:
        """Whether binary content contains a secret."""
        pattern = self._pattern()
        return pattern is not None and pattern.search(content.decode("latin-1")) is not None

    def names_in(self, value: Any) -> list[str]:
        """The names of the secrets in a JSON value: environment variables, or the language model's key."""
        patterns = {name: _compiled(frozenset({secret})) for secret, name in self._named().items()}
        found: dict[str, None] = {}

        def look(text: str) -> str:
            found.update(
                (name, None) for name, pattern in patterns.items() if pattern and pattern.search(text)
            )
            return text

        if patterns:
            _map_texts(value, look)
        return list(found)

    @property
    def empty(self) -> bool:
        return not self._named()

    def _named(self) -> dict[str, str]:
        """Maps each secret to its name."""
        if self._snapshot is not None:
            return self._snapshot
        found = {value: name for name, value in os.environ.items() if is_secret_name(name)}
        for name, value in os.environ.items():
            found |= dict.fromkeys(_url_passwords(value), name)
        if self._unmistakable:
            found = {secret: name for secret, name in found.items() if _looks_random(secret)}
        for secret in map(str, self._given):
            found.setdefault(secret, _GIVEN)
        return {secret: name for secret, name in found.items() if len(secret) >= _MIN_LENGTH}

    def _pattern(self) -> re.Pattern[str] | None:
        return _compiled(frozenset(self._named()))


@lru_cache(maxsize=256)
def _compiled(secrets: frozenset[str]) -> re.Pattern[str] | None:
    forms = {form for secret in secrets for form in _forms(secret)}
    # Longest first, since one secret may be a prefix of another.
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None


def _url_passwords(text: str) -> list[str]:
    """The passwords of the URL that a variable such as DATABASE_URL holds."""
    if "://" not in text or "@" not in text:
        return []
    try:
        password = urlsplit(text).password
    except ValueError:
        return []
    return [password, unquote(password)] if password else []


def _forms(secret: str) -> set[str]:
    """A secret as written in plain text, JSON, a repr or a URL, or in binary content searched as Latin-1."""
    utf8 = secret.encode("utf-8", "surrogatepass")
    escaped = {secret, *_escaped(secret)}
    # An error that quotes a JSON body, or JSON within JSON, escapes twice.
    escaped |= {twice for once in escaped for twice in _escaped(once)}
    return {*escaped, quote(utf8, safe=""), quote(utf8), utf8.decode("latin-1")}


def _escaped(text: str) -> set[str]:
    return {
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        repr(text)[1:-1],
        repr(f'"{text}')[2:-1],  # within a text that holds the other quotes
    }


def _map_texts(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            change(key) if isinstance(key, str) else key: _map_texts(item, change)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_map_texts(item, change) for item in value]
    return value


def _not_words(secret: str) -> bool:
    return _WORDS.fullmatch(secret) is None


def _looks_random(text: str) -> bool:
    if any(character in '"\\' or not character.isprintable() for character in text):
        return True
    return len(text) >= _RANDOM_LENGTH and any(map(str.isdigit, text)) and any(map(str.isalpha, text))


def is_secret_name(name: str) -> bool:
    """Whether a variable's name suggests that it holds a secret."""
    return name not in _NO_SECRETS and _SECRET_NAME.search(name) is not None


def encodable(text: str) -> str:
    """`text` with lone surrogates and NUL escaped: a model may produce them, UTF-8 can't encode the former,
    and Postgres can't store the latter."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def encodable_value(value: Any) -> Any:
    """A JSON value with `encodable` applied to its strings."""
    return _map_texts(value, encodable)


def first_line(error: BaseException, limit: int = 300, *, secrets: Iterable[str] = ()) -> str:
    """A third-party error on one line, with secrets redacted: its class and the start of its message."""
    # Redact first: a secret may contain whitespace, and truncating could leave part of one.
    message = " ".join(Redactor(secrets).text(str(error)).split())
    if len(message) > limit:
        message = message[: limit - 1] + "…"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
