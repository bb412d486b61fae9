"""What a check found."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        check: name of the check.
        status: `skipped` if there is nothing to check; `message` says why.
        message: what was found.
        advice: how to fix a failure or improve things.
    """

    check: str
    status: Literal["ok", "failed", "skipped"]
    message: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)
