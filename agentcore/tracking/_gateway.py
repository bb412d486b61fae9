"""`Gateway`: asynchronous access to MLflow's runs, search and model registry, raising AgentCore's errors."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agentcore._threads import start_in_thread
from agentcore.settings import MLflowConfig
from agentcore.tracking._connection import connection_to
from agentcore.tracking._requests import get_or_create_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

T = TypeVar("T")

_PAGE = 1000


class Gateway:
    """One MLflow server, or a local store, behind a bounded number of requests.

    No method blocks the event loop. All raise `TrackingError` if MLflow can't be reached or refuses.
    Blocking code that already runs in a thread should use `connection.run` instead of `call`.
    """

    def __init__(self, config: MLflowConfig) -> None:
        self.config = config
        self.connection = connection_to(config)

    async def call(self, work: Callable[[Any], T]) -> T:
        """`work(client)` in a thread, where `client` is an `MlflowClient`."""
        sent = start_in_thread(lambda: self.connection.run(work))
        # If the caller is cancelled, the request continues: retrieve its exception to avoid a warning.
        sent.add_done_callback(lambda future: future.cancelled() or future.exception())
        return await asyncio.shield(sent)

    async def experiment_id(self) -> str:
        """The configured experiment's id; creates the experiment if it doesn't exist."""
        name, location = self.config.experiment_name, self.config.artifact_location
        return await self.call(lambda client: get_or_create_experiment(client, name, location))

    async def get_run(self, run_id: str) -> "Run":
        """One run by its MLflow id."""
        return await self.call(lambda client: client.get_run(run_id))

    async def search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str,
        order_by: Sequence[str],
        max_results: int | None,
    ) -> "list[Run]":
        """Search runs with MLflow's syntax, fetching all pages needed; `max_results=None` means all."""

        def search(client: "MlflowClient") -> "list[Run]":
            return list(search_pages(client, experiment_ids, filter_string, order_by, max_results))

        return await self.call(search)

    async def registered_models(self) -> "list[RegisteredModel]":
        """All registered models, with their aliases."""
        return await self.call(registered_models)

    async def model_versions(self, name: str) -> "list[ModelVersion]":
        """All versions of a registered model, without aliases: for those see `registered_models`."""
        return await self.call(lambda client: model_versions(client, name))


def search_pages(
    client: "MlflowClient",
    experiment_ids: Sequence[str],
    filter_string: str,
    order_by: Sequence[str],
    max_results: int | None = None,
) -> "Iterator[Run]":
    """Runs, page by page; at most `max_results`. Blocking."""
    left, token = max_results, None
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        page = client.search_runs(list(experiment_ids), filter_string, 1, size, list(order_by), token)
        yield from page
        token = page.token
        if left is not None:
            left -= len(page)
        if not token:
            return


def registered_models(client: "MlflowClient") -> "list[RegisteredModel]":
    """Blocking."""
    found = pages(lambda token: client.search_registered_models(page_token=token))
    # A search returns no aliases.
    return [client.get_registered_model(model.name) for model in found]


def model_versions(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    """Blocking."""
    mark = '"' if "'" in name else "'"
    query = f"name = {mark}{name}{mark}"
    return list(pages(lambda token: client.search_model_versions(query, page_token=token)))


def pages(search: Callable[[Any], Any]) -> Iterator[Any]:
    """All items of a paged search."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return
