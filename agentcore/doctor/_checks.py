"""All checks, and what they check."""

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from functools import partial

from agentcore._threads import run_in_thread
from agentcore.doctor._finding import Finding
from agentcore.doctor._local import check_journal, check_lm, check_settings
from agentcore.doctor._stores import check_database, check_s3
from agentcore.doctor._tracking import check_artifacts, check_clock, check_tracking
from agentcore.errors import ConfigurationError
from agentcore.settings import MLflowConfig, StackSettings


@dataclass(frozen=True)
class Places:
    """What to check.

    Attributes:
        config: how clients reach MLflow.
        lm: a language model's name; None uses AGENTCORE_LM.
        stack: the database and the object store behind MLflow, if known here.
    """

    config: MLflowConfig
    lm: str | None
    stack: StackSettings


_ALL: dict[str, Callable[[Places], list[Finding]]] = {
    "settings": lambda places: check_settings(places.config),
    "tracking": lambda places: check_tracking(places.config),
    "clock": lambda places: check_clock(places.config),
    "artifacts": lambda places: check_artifacts(places.config),
    "database": lambda places: check_database(places.stack),
    "s3": lambda places: check_s3(places.stack),
    "lm": lambda places: check_lm(places.lm),
    "journal": lambda places: check_journal(),
}
CHECKS = tuple(_ALL)


async def diagnose(places: Places, only: Collection[str] = ()) -> AsyncIterator[Finding]:
    """Run the checks one after the other, yielding findings as they come.

    Args:
        only: checks to run; empty for all.

    Raises:
        ConfigurationError: there is no such check.
    """
    unknown = [name for name in only if name not in _ALL]
    if unknown:
        raise ConfigurationError(f"no check {', '.join(unknown)}: there are {', '.join(CHECKS)}")
    unreachable = False
    for name in CHECKS:
        if only and name not in only:
            continue
        if unreachable and name in ("clock", "artifacts"):
            yield Finding(name, "skipped", "MLflow doesn't answer")
            continue
        for finding in await run_in_thread(partial(_ALL[name], places)):
            unreachable = unreachable or (name == "tracking" and finding.status == "failed")
            yield finding
