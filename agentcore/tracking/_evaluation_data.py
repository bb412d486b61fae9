"""`EvaluationDatasets`: MLflow's own evaluation data sets, from ours and back."""

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from agentcore._sync import SyncTwin, blocking
from agentcore._threads import run_in_thread
from agentcore.data import StoredDataset
from agentcore.errors import ConfigurationError, DataError
from agentcore.settings import MLflowConfig
from agentcore.tracking._connection import Unreachable
from agentcore.tracking._gateway import Gateway
from agentcore.tracking._requests import get_or_create_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "agentcore.digest"
_BATCH = 100


_PAUSES = (0.5, 2.0, 5.0)
"""Seconds before each further attempt."""


class EvaluationDatasets:
    """MLflow's evaluation data sets, which its pages show and `mlflow.genai.evaluate` takes.

    Args:
        config: the MLflow server; default: from the environment. Data sets that are pushed belong to its
            experiment.
    """

    def __init__(self, config: MLflowConfig | None = None) -> None:
        self.config = config or MLflowConfig()
        self.gateway = Gateway(self.config)

    @cached_property
    def sync(self) -> "SyncEvaluationDatasets":
        """The blocking version."""
        return SyncEvaluationDatasets(self)

    async def push(self, dataset: StoredDataset, targets: Sequence[str]) -> str:
        """Copy a version to MLflow, as `{name}_{version}`; its id there. Pushing it again changes nothing.

        MLflow keeps one record for equal inputs.

        Args:
            targets: the fields that are expectations; all others are inputs.

        Raises:
            DataError: there is no such field, or no input is left.
            ConfigurationError: MLflow has another data set of that name.
            TrackingError: MLflow can't be reached, or has no evaluation data sets.
        """
        unknown = sorted(set(targets) - set(dataset.fields))
        if unknown or not set(dataset.fields) - set(targets):
            wrong = f"no field {', '.join(unknown)}" if unknown else "no input would be left"
            raise DataError(f"{dataset.full_name}: {wrong}; it has {', '.join(dataset.fields)}")
        dataset_id = await self.gateway.call(partial(_created, dataset=dataset, config=self.config))
        rows = iter(dataset)
        while batch := await run_in_thread(lambda: _records(itertools.islice(rows, _BATCH), targets)):
            await self._upserted(dataset_id, batch)
        return dataset_id

    async def _upserted(self, dataset_id: str, batch: list[dict[str, Any]]) -> None:
        """Write records, which are known by their inputs. A request that takes too long is sent again by
        MLflow's client, and the server may refuse one of the two, which run at the same time."""
        for pause in (*_PAUSES, None):
            try:
                await self.gateway.call(partial(_upsert, dataset_id=dataset_id, records=batch))
            except Unreachable:
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            else:
                return

    async def pull(self, name: str) -> list[dict[str, Any]]:
        """The rows of one of MLflow's data sets: each record's inputs and expectations.

        Raises:
            ConfigurationError: there is none of that name, or an input has the name of an expectation.
            TrackingError: MLflow can't be reached, or has no evaluation data sets.
        """
        records = await self.gateway.call(partial(_loaded, name=name))
        return [_row(record, name) for record in records]


class SyncEvaluationDatasets(SyncTwin):
    """`EvaluationDatasets`, blocking."""

    push = blocking(EvaluationDatasets.push)
    pull = blocking(EvaluationDatasets.pull)


def _found(client: "MlflowClient", name: str) -> Any:
    if "'" in name:
        raise ConfigurationError(f"{name!r} can't be searched for: it contains a quote")
    return next(iter(client.search_datasets(filter_string=f"name = '{name}'", max_results=1)), None)


def _created(client: "MlflowClient", dataset: StoredDataset, config: MLflowConfig) -> str:
    known = _found(client, dataset.full_name)
    if known is not None:
        if known.tags.get(DIGEST_TAG) != dataset.digest:
            raise ConfigurationError(
                f"MLflow has another data set {dataset.full_name!r}: save this one as another version, or "
                "delete that one in MLflow"
            )
        return str(known.dataset_id)
    experiment = get_or_create_experiment(client, config.experiment_name, config.artifact_location)
    tags = {**dataset.tags, DIGEST_TAG: dataset.digest}
    return str(client.create_dataset(dataset.full_name, experiment, tags).dataset_id)


def _upsert(client: "MlflowClient", dataset_id: str, records: list[dict[str, Any]]) -> None:
    # The data set's own merge_records uses the server that is set for the whole process.
    client._tracking_client.store.upsert_dataset_records(dataset_id, records)


def _loaded(client: "MlflowClient", name: str) -> list[Any]:
    known = _found(client, name)
    if known is None:
        raise ConfigurationError(f"MLflow has no evaluation data set {name!r}")
    store, records, token = client._tracking_client.store, [], None
    while True:
        page, token = store._load_dataset_records(known.dataset_id, max_results=_BATCH, page_token=token)
        records += page
        if not token:
            return records


def _records(rows: Iterator[dict[str, Any]], targets: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "inputs": {name: value for name, value in row.items() if name not in targets},
            "expectations": {name: row[name] for name in targets if name in row},
        }
        for row in rows
    ]


def _row(record: Any, name: str) -> dict[str, Any]:
    inputs: Mapping[str, Any] = record.inputs or {}
    expectations: Mapping[str, Any] = record.expectations or {}
    twice = sorted(inputs.keys() & expectations.keys())
    if twice:
        raise ConfigurationError(f"{name}: both an input and an expectation: {', '.join(twice)}")
    return {**inputs, **expectations}
