"""Old runs out of the way: deleted in MLflow, from where they can be restored until `mlflow gc`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from agentcore.tracking._requests import MODEL_TAG
from agentcore.tracking._runs import TrackedRun, best_run_query, tracked_run

_PAGE = 1000
_GONE = "RESOURCE_DOES_NOT_EXIST"
_ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class Archive:
    """What was archived, or would be.

    Attributes:
        runs: the oldest first.
        models: the ids of their LoggedModels, but those that are registered.
        kept: how many old runs stay, by the reason.
    """

    runs: list[TrackedRun] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
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
            if run.run_id not in registered:
                plan.models.extend(value for name, value in run.tags.items() if name.startswith(MODEL_TAG))
            continue
        plan.kept[reason] = plan.kept.get(reason, 0) + 1
    return plan


def delete_model(client: Any, model_id: str) -> None:
    """Delete a LoggedModel; one that is gone already is well."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != _GONE:
            raise


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
            runs = _runs_of(client, version)
            registered |= runs
            if str(version.version) in named:
                aliased |= runs
    return aliased, registered


def _pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _runs_of(client: Any, version: Any) -> set[str]:
    """The run that a model version names, and the one that made its LoggedModel."""
    from mlflow.exceptions import MlflowException

    runs = {version.run_id}
    model_id = str(version.source or "").removeprefix("models:/")
    if model_id.startswith("m-"):
        try:
            runs.add(client.get_logged_model(model_id).source_run_id)
        except MlflowException as error:
            if error.error_code != _GONE:
                raise
    return {str(run_id) for run_id in runs if run_id}
