"""Archives old runs by deleting them in MLflow; they can be restored until `mlflow gc` is run."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentcore.tracking._best import best_run_query
from agentcore.tracking._gateway import model_versions, registered_models, search_pages
from agentcore.tracking._requests import MODEL_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_GONE = "RESOURCE_DOES_NOT_EXIST"
_ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class Archive:
    """The runs and models that were archived, or would be.

    Attributes:
        runs: oldest first.
        models: the ids of their LoggedModels, except registered ones.
        kept: number of old runs that are not archived, by reason.
    """

    runs: "list[Run]" = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)


def plan_archive(
    client: "MlflowClient",
    experiment_name: str,
    before_ms: int,
    keep_best: int,
    metric: str,
    *,
    keep_registered: bool,
) -> Archive:
    """Plan which ended runs from before `before_ms` to archive; see `MLflowTracker.archive_runs`."""
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        return Archive()
    experiment_id = experiment.experiment_id
    best = _best(client, experiment_id, keep_best, metric)
    aliased, registered = promoted_runs(client)
    plan = Archive()
    old = f"attributes.start_time < {before_ms}"
    for run in search_pages(client, [experiment_id], old, ["attributes.start_time ASC"]):
        run_id = run.info.run_id
        if run_id in aliased:
            reason = "their model has a registry alias"
        elif keep_registered and run_id in registered:
            reason = "their model is registered"
        elif run_id in best:
            reason = f"they are among the best {keep_best}"
        elif run.info.status not in _ENDED:
            reason = "they have not ended"
        else:
            plan.runs.append(run)
            if run_id not in registered:
                plan.models.extend(
                    value for name, value in run.data.tags.items() if name.startswith(MODEL_TAG)
                )
            continue
        plan.kept[reason] = plan.kept.get(reason, 0) + 1
    return plan


def archive(client: "MlflowClient", plan: Archive) -> None:
    """Delete the planned runs and models."""
    for model_id in plan.models:
        delete_model(client, model_id)
    for run in plan.runs:
        client.delete_run(run.info.run_id)


def delete_model(client: "MlflowClient", model_id: str) -> None:
    """Delete a LoggedModel unless it is already gone."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != _GONE:
            raise


def _best(client: "MlflowClient", experiment_id: str, count: int, metric: str) -> set[str]:
    if not count:
        return set()
    query, order = best_run_query(metric, "DESC")
    return {run.info.run_id for run in search_pages(client, [experiment_id], query, order, count)}


def promoted_runs(client: "MlflowClient") -> tuple[set[str], set[str]]:
    """The runs whose model has a registry alias, and the runs whose model is registered."""
    aliased: set[str] = set()
    registered: set[str] = set()
    for model in registered_models(client):
        named = {str(number) for number in model.aliases.values()}
        for version in model_versions(client, model.name):
            runs = _runs_of(client, version)
            registered |= runs
            if str(version.version) in named:
                aliased |= runs
    return aliased, registered


def _runs_of(client: "MlflowClient", version: Any) -> set[str]:
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
