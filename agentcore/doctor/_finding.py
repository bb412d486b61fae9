"""What a check found."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        check: which check says so.
        status: `skipped` where there is nothing to check, said in `message`.
        message: what is so.
        advice: what to do, where it failed or may be better.
    """

    check: str
    status: Literal["ok", "failed", "skipped"]
    message: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
