"""Old runs out of the way: deleted in MLflow, from where they can be restored until `mlflow gc`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from agentcore.tracking._runs import TrackedRun, best_run_query, tracked_run

_PAGE = 1000
_ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class Archive:
    """What was archived, or would be.

    Attributes:
        runs: the oldest first.
        kept: how many old runs stay, by the reason.
    """

    runs: list[TrackedRun] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)


def plan_archive(
    client: Any, experiment_id: str, before_ms: int, keep_best: int, metric: str, *, keep_registered: bool
) -> Archive:
    """The ended runs that started before a time and are worth nothing any more; see `archive_runs`."""
    best = _best(client, experiment_id, keep_best, metric)
    aliased, registered = promoted_runs(client)
    plan = Archive()
    for run in _old(client, experiment_id, before_ms):
        if run.run_id in aliased:
            reason = "an alias of the model registry names its model"
        elif keep_registered and run.run_id in registered:
            reason = "its model is registered"
        elif run.run_id in best:
            reason = f"it is among the best {keep_best}"
        elif run.status not in _ENDED:
            reason = "it has not ended"
        else:
            plan.runs.append(run)
            continue
        plan.kept[reason] = plan.kept.get(reason, 0) + 1
    return plan


def _best(client: Any, experiment_id: str, count: int, metric: str) -> set[str]:
    if not count:
        return set()
    query, order = best_run_query(metric, "DESC", None)
    return {run.info.run_id for run in client.search_runs([experiment_id], query, 1, count, order)}


def _old(client: Any, experiment_id: str, before_ms: int) -> Iterator[TrackedRun]:
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"attributes.start_time < {before_ms}",
            max_results=_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from map(tracked_run, page)
        token = page.token
        if not token:
            return


def promoted_runs(client: Any) -> tuple[set[str], set[str]]:
    """The runs whose model an alias names, and those whose model is registered at all."""
    aliased: set[str] = set()
    registered: set[str] = set()
    for model in _pages(lambda token: client.search_registered_models(page_token=token)):
        # A search tells no aliases.
        named = {str(number) for number in client.get_registered_model(model.name).aliases.values()}
        mark = '"' if "'" in model.name else "'"
        query = f"name = {mark}{model.name}{mark}"
        for version in _pages(
            lambda token, query=query: client.search_model_versions(query, page_token=token)
        ):
            run_id = _run_of(client, version)
            if run_id:
                registered.add(run_id)
                if str(version.version) in named:
                    aliased.add(run_id)
    return aliased, registered


def _pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _run_of(client: Any, version: Any) -> str | None:
    """The run of a model version, by its LoggedModel where the version doesn't say."""
    from mlflow.exceptions import MlflowException

    if version.run_id:
        return str(version.run_id)
    model_id = str(version.source or "").removeprefix("models:/")
    if not model_id.startswith("m-"):
        return None
    try:
        found = client.get_logged_model(model_id).source_run_id
    except MlflowException:  # deleted meanwhile
        return None
    return str(found) if found else None
