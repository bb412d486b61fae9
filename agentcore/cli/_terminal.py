"""A console that prints what others wrote without obeying it."""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class SafeConsole(Console):
    """Shows control characters in names, data and errors as U+FFFD; only Rich's own reach the terminal."""

    def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
        for segment in super().render(*args, **kwargs):
            if segment.control or not _CONTROL.search(segment.text):
                yield segment
            else:
                yield Segment(_CONTROL.sub("\ufffd", segment.text), segment.style)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **style: Any) -> None:
        """In a terminal, break lines between words; elsewhere, where programs read them, only if asked to."""
        super().print(*objects, soft_wrap=soft_wrap and not self.is_terminal, **style)
