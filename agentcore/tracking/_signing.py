"""Optional signatures of manifests (Ed25519, RFC 8032): proof that whoever holds the key saved a program.

Digests on a run say that a file is unchanged, unless whoever may write to MLflow changed both. A signature
can't be made without the key, which never leaves the machine that saves programs."""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agentcore.errors import ArtifactError, ConfigurationError
from agentcore.settings import Settings

_ALGORITHM = "ed25519"


def new_keys() -> tuple[str, str]:
    """A new private key, and its public key; both in base64."""
    private = Ed25519PrivateKey.generate()
    return _text(private.private_bytes_raw()), _text(private.public_key().public_bytes_raw())


def signature_file(name: str) -> str:
    return f"{name}.sig"


def signed(content: bytes) -> bytes | None:
    """The signature file of a manifest; None if `AGENTCORE_SIGNING_KEY` is not set.

    Raises:
        ConfigurationError: the key is not an Ed25519 key in base64.
    """
    key = Settings().signing_key
    if key is None:
        return None
    private = _key(Ed25519PrivateKey.from_private_bytes, key.get_secret_value(), "AGENTCORE_SIGNING_KEY")
    found = {
        "algorithm": _ALGORITHM,
        "key": _text(private.public_key().public_bytes_raw()),
        "signature": _text(private.sign(content)),
    }
    return json.dumps(found).encode()


def check_signature(directory: Path, name: str, content: bytes) -> None:
    """If `AGENTCORE_TRUSTED_KEYS` is set, require a manifest to be signed with one of these keys.

    Raises:
        ArtifactError: it is not signed, not by one of them, or was changed since.
        ConfigurationError: a key is not an Ed25519 key in base64.
    """
    given = Settings().trusted_keys
    if not given.strip():
        return
    trusted = [text.strip() for text in given.split(",")]
    keys = {
        text: _key(Ed25519PublicKey.from_public_bytes, text, "AGENTCORE_TRUSTED_KEYS") for text in trusted
    }
    file = directory / signature_file(name)
    if not file.is_file():
        raise ArtifactError(
            f"{name} is not signed, and AGENTCORE_TRUSTED_KEYS requires it: save it again with "
            "AGENTCORE_SIGNING_KEY set"
        )
    try:
        found = json.loads(file.read_bytes())
        key, signature = keys.get(found["key"]), base64.b64decode(found["signature"], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise ArtifactError(f"the signature of {name} can't be read: don't load it") from None
    if key is None:
        raise ArtifactError(
            f"{name} is signed with a key that is not in AGENTCORE_TRUSTED_KEYS: don't load it"
        )
    try:
        key.verify(signature, content)
    except InvalidSignature:
        raise ArtifactError(f"{name} was changed after it was signed: don't load it") from None


def _key(make: Any, text: str, variable: str) -> Any:
    try:
        return make(base64.b64decode(text.strip(), validate=True))
    except (ValueError, binascii.Error):
        raise ConfigurationError(
            f"{variable}: expected an Ed25519 key in base64; make one with: agentcore keys"
        ) from None


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
