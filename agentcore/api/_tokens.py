"""Bearer tokens and their roles, and the sessions of browsers."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from pydantic import SecretStr

from agentcore.errors import ConfigurationError

_SHORTEST = 16
_SESSION_SECONDS = 12 * 3600
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


class Role(IntEnum):
    """What a token allows. Each role includes the ones before it."""

    read = 1
    """See agents, operations and figures."""
    run = 2
    """Predict, evaluate, optimize, cancel."""
    promote = 3
    """Move aliases."""


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    name: str
    role: Role


@dataclass(frozen=True)
class _Token:
    caller: Caller
    secret: bytes = field(repr=False)

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.secret).digest()

    def session(self, expires: int) -> str:
        return hmac.new(self.secret, f"agentcore session {expires}".encode(), hashlib.sha256).hexdigest()


class Tokens:
    """The tokens that the API accepts."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tuple(tokens)

    @classmethod
    def parse(cls, text: SecretStr) -> "Tokens":
        """The tokens of `AGENTCORE_API_TOKENS`.

        Raises:
            ConfigurationError: one can't be read, is too short, or occurs twice. No message shows a token.
        """
        found: list[_Token] = []
        for number, item in enumerate(re.split(r"[,\s]+", text.get_secret_value().strip()), 1):
            name, _, rest = item.partition(":")
            role, _, secret = rest.partition(":")
            if not _NAME.fullmatch(name) or role not in Role.__members__:
                raise ConfigurationError(
                    f"AGENTCORE_API_TOKENS, token {number}: write name:role:token, where the role is read, "
                    "run or promote"
                )
            if len(secret) < _SHORTEST or not secret.isascii():
                raise ConfigurationError(
                    f"AGENTCORE_API_TOKENS, token {number} ({name}): use at least {_SHORTEST} ASCII "
                    "characters, such as those that `openssl rand -hex 24` prints"
                )
            found.append(_Token(Caller(name, Role[role]), secret.encode()))
        if len({item.secret for item in found}) < len(found):
            raise ConfigurationError("AGENTCORE_API_TOKENS: two tokens are the same: give each its own")
        return cls(found)

    @classmethod
    def make(cls) -> tuple["Tokens", str]:
        """One new token that allows everything, and its text."""
        text = secrets.token_urlsafe(24)
        return cls([_Token(Caller("local", Role.promote), text.encode())]), text

    def caller(self, token: str) -> Caller | None:
        """Who a token belongs to."""
        found = self._known(token)
        return None if found is None else found.caller

    def session(self, token: str) -> str | None:
        """The value of a session's cookie, which holds no token; None if the token is unknown."""
        found = self._known(token)
        if found is None:
            return None
        expires = int(time.time()) + _SESSION_SECONDS
        return f"{expires}.{found.session(expires)}"

    def _known(self, token: str) -> _Token | None:
        """It takes the same time for every token."""
        asked = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = None
        for item in self._tokens:
            if hmac.compare_digest(item.digest, asked):
                found = item
        return found

    def caller_of_session(self, cookie: str) -> Caller | None:
        """Who a session belongs to. It only allows reading."""
        text, _, given = cookie.partition(".")
        if not (text.isascii() and text.isdigit() and len(text) < 12) or not given.isascii():
            return None
        found = None
        for item in self._tokens:
            if hmac.compare_digest(item.session(int(text)), given):
                found = Caller(item.caller.name, Role.read)
        return found if int(text) > time.time() else None
