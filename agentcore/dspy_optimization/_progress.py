"""Where a running optimization stands, for whoever draws it."""

import time
from dataclasses import dataclass, field

from agentcore.lm import Meter


@dataclass
class Progress:
    """Read it at any time; the pipeline writes it."""

    stage: str = "preparing"
    done: int = 0
    total: int = 0
    trial: int = 0
    trials: int = 0
    best_score: float | None = None
    meter: Meter = field(default_factory=Meter)
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def begin(self, stage: str, total: int = 0) -> None:
        self.stage, self.done, self.total = stage, 0, total
