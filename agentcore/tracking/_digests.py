"""The digests of a run's artifacts, in one tag: apart from the artifacts, so that a changed one is
noticed."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from agentcore.errors import ArtifactError

DIGESTS_TAG = "agentcore.sha256"
"""Its value maps paths to digests, as JSON; what doesn't fit continues in `agentcore.sha256.2`, …"""
_MOST = 4900
"""Characters per tag; MLflow takes 5000."""


def digests_of(tags: Mapping[str, str]) -> dict[str, str]:
    """The digests that a run's tags record.

    Raises:
        ArtifactError: they are damaged.
    """
    found: dict[str, str] = {}
    for name in _names():
        if name not in tags:
            return found
        try:
            part: Any = json.loads(tags[name])
        except ValueError:
            part = None
        if not isinstance(part, dict) or not all(isinstance(item, str) for item in part.values()):
            raise ArtifactError(f"tag {name} of the run has no valid digests: somebody has changed it")
        found |= part
    return found


def digest_tags(digests: Mapping[str, str]) -> dict[str, str]:
    """The tags that record digests, by path."""
    parts: list[dict[str, str]] = [{}]
    size = 2
    for path, digest in digests.items():
        more = len(json.dumps({path: digest}))
        if parts[-1] and size + more > _MOST:
            parts.append({})
            size = 2
        parts[-1][path] = digest
        size += more
    return {name: json.dumps(part) for name, part in zip(_names(), parts, strict=False)}


def _names() -> Iterator[str]:
    yield DIGESTS_TAG
    number = 2
    while True:
        yield f"{DIGESTS_TAG}.{number}"
        number += 1
