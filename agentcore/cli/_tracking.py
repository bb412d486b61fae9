"""Shared by commands that talk to MLflow: its configuration, the backlog, and finding runs."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from agentcore.cli._console import counted, out
from agentcore.errors import ConfigurationError, TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Run

    from agentcore.dspy_optimization.tracking import MLflowTracker
    from agentcore.journal import Journal
    from agentcore.settings import MLflowConfig

T = TypeVar("T")

LOCAL_TRACKING = "sqlite:///mlflow.db"
_BACKLOG_SECONDS = 20.0
_NO_RUNS = "Make one with: agentcore demo"


def tracking_config(experiment: str | None = None) -> "MLflowConfig":
    """The configured MLflow, else a SQLite file in the working directory, which needs no server."""
    from agentcore.settings import MLflowConfig

    config = MLflowConfig(experiment_name=experiment) if experiment else MLflowConfig()
    if "tracking_uri" not in config.model_fields_set:
        config = config.model_copy(update={"tracking_uri": LOCAL_TRACKING})
    return config


def runs_config(experiment: str | None, agent: str | None) -> "MLflowConfig":
    """The configuration of the experiment that a command works on: the one named, or the agent's
    development experiment (`AGENTCORE_AGENT` by default), or the configured one."""
    from agentcore.settings import Settings

    if experiment and agent:
        raise ConfigurationError("pass --experiment or --agent, not both")
    config = tracking_config(experiment)
    agent = agent or (None if experiment else Settings().agent)
    if agent is None:
        return config
    from agentcore.tracking import Experiments

    return Experiments(agent, config).stage_config("development")


async def after_backlog(tracker: "MLflowTracker", work: Coroutine[Any, Any, T]) -> T:
    """Do `work` after trying to deliver what earlier commands left."""
    import contextlib

    from agentcore._threads import run_in_thread
    from agentcore.dspy_optimization import mark_interrupted

    journal, delivery = await tracker.opened()
    try:
        await run_in_thread(lambda: mark_interrupted(journal, delivery.destination))
        with contextlib.suppress(TrackingError):  # then `work` fails too, or `print_waiting` reports the rest
            await tracker.deliver_backlog(_BACKLOG_SECONDS)
    except BaseException:
        work.close()
        raise
    return await work


async def find_run(tracker: "MLflowTracker", wanted: str) -> "Run":
    """Find a run by id or unique prefix, or as `latest` or `best`."""
    if wanted == "best":
        best = await tracker.get_best_run()
        if best is None:
            raise ConfigurationError(
                f"there is no run with a proven gain in quality. List all with: agentcore runs. {_NO_RUNS}"
            )
        return best
    if wanted == "latest":
        recent = await tracker.search_runs(max_results=1)
        if not recent:
            raise ConfigurationError(f"there is no run yet. {_NO_RUNS}")
        return recent[0]
    return await tracker.find_run(wanted)


def print_waiting(journal: "Journal", destination: str) -> None:
    """Print how much MLflow doesn't have yet."""
    waiting = journal.waiting(destination)
    if waiting:
        entries = counted(sum(item.waiting for item in waiting), "entry").replace("entrys", "entries")
        out.print(
            f"{entries} of {counted(len(waiting), 'run')} not in MLflow yet. "
            "List them: agentcore journal ls · deliver them: agentcore sync",
            soft_wrap=True,
        )
