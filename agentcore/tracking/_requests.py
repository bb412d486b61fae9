"""Requests to an `MlflowClient`, each idempotent."""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentcore._version import __version__
from agentcore.errors import ArtifactError
from agentcore.tracking._connection import Held, Rejected
from agentcore.tracking._digests import digests_of
from agentcore.tracking._events import (
    DatasetUsed,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    TagsSet,
    VersionRegistered,
)
from agentcore.tracking._manifest import read_manifest
from agentcore.tracking._replies import NOT_MLFLOW

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import FileInfo

_RUN_ID = re.compile(r"[\w-]{8,64}")
KEY_TAG = "agentcore.key"
TAKEN_TAG = "agentcore.taken"
"""Changes whenever the run is resumed."""
ANOTHER_COPY = (
    "run {} has been resumed from another copy of this journal, such as a restored backup: continue it "
    "there, or start a new run here"
)
MODEL_TAG = "agentcore.model."
_ARTIFACT_TAG = "agentcore.artifact"
_MAX_DIGEST = 36


def register_scorer(client: "MlflowClient", experiment_id: str, name: str, content: str) -> int:
    """Register a serialized scorer; its version."""
    # MlflowClient has no method for it, and mlflow.genai's uses the server set for the whole process.
    return int(client._tracking_client.store.register_scorer(experiment_id, name, content).scorer_version)


def create_run(
    client: "MlflowClient",
    experiment_id: str,
    name: str,
    tags: dict[str, str],
    start_ms: int,
    *,
    attempted: bool,
) -> str:
    """Create a run once, even if the reply to an earlier request was lost.

    Args:
        attempted: an earlier request may have created it.
    """
    if attempted and (found := runs_of(client, experiment_id, tags[KEY_TAG])):
        return found[0]
    made = client.create_run(experiment_id, run_name=name, tags=tags, start_time=start_ms)
    run_id = str(made.info.run_id or "")
    if not _RUN_ID.fullmatch(run_id):
        raise Held(
            f"the reply to creating a run {NOT_MLFLOW}: it has no run id. Check the proxy in front of it"
        )
    return run_id


def upload(client: "MlflowClient", run_id: str, file: Path, folder: str) -> None:
    """Upload an artifact, and check that the store has it."""
    client.log_artifact(run_id, str(file), folder or None)
    path = f"{folder}/{file.name}" if folder else file.name
    _check_stored(client.list_artifacts(run_id, folder or None), {path: file.stat().st_size})


def _check_stored(listed: "Sequence[FileInfo]", expected: Mapping[str, int]) -> None:
    """Raise `Held` unless the store lists these files with these sizes in bytes."""
    sizes = {item.path: item.file_size for item in listed}
    for path, size in expected.items():
        if path not in sizes or sizes[path] not in (None, size):
            found = "doesn't have it" if path not in sizes else f"has {sizes[path]} of its {size} bytes"
            raise Held(
                f"artifact {path} was uploaded, but the store {found}. Check the store, and any proxy in "
                "front of MLflow"
            )


def take(client: "MlflowClient", run_id: str, token: str, previous: str | None) -> None:
    """Mark a run as resumed by the holder of `token`.

    Raises:
        Held: since `previous`, somebody else has resumed it: from another copy of the journal.
    """
    known = client.get_run(run_id).data.tags.get(TAKEN_TAG)
    if known not in (previous, token):
        raise Held(ANOTHER_COPY.format(run_id[:8]))
    client.set_tag(run_id, TAKEN_TAG, token)


def known_digests(client: "MlflowClient", run_id: str) -> dict[str, str]:
    """The digests of artifacts on a run; none if somebody damaged them."""
    try:
        return digests_of(client.get_run(run_id).data.tags)
    except ArtifactError:
        return {}


def deleted(client: "MlflowClient", run_id: str) -> str | None:
    """Which of a run and its experiment is deleted in MLflow, where both can be restored; None if neither."""
    info = client.get_run(run_id).info
    if info.lifecycle_stage == "deleted":
        return f"run {run_id} is deleted in MLflow: restore it (mlflow runs restore --run-id {run_id})"
    experiment = client.get_experiment(info.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        return f"experiment {experiment.name!r} is deleted: restore it in MLflow"
    return None


def runs_of(client: "MlflowClient", experiment_id: str, key: str) -> list[str]:
    """The ids of the runs with a client's key."""
    found = client.search_runs(
        [experiment_id], f"tags.`{KEY_TAG}` = '{key}'", order_by=["attributes.start_time ASC"]
    )
    return sorted(run.info.run_id for run in found)


def delete_doubles(client: "MlflowClient", run_id: str, experiment_id: str, key: str) -> None:
    """Delete other runs with this key: a request whose reply was lost created them after we looked."""
    for other in runs_of(client, experiment_id, key):
        if other != run_id:
            client.delete_run(other)


def get_or_create_experiment(client: "MlflowClient", name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":
                raise Held(
                    f"experiment {name!r} is deleted: restore it in MLflow, "
                    "or choose another MLFLOW_EXPERIMENT_NAME"
                )
            return str(experiment.experiment_id)
        with contextlib.suppress(MlflowException):  # another process may have created it: look it up again
            return str(client.create_experiment(name, artifact_location=artifact_location))
    return str(client.create_experiment(name, artifact_location=artifact_location))


def log_batch(
    client: "MlflowClient", run_id: str, batch: Sequence[MetricsLogged | ParamsLogged | TagsSet]
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    metrics: list[Metric] = []
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    for event in batch:
        if isinstance(event, MetricsLogged):
            metrics += [
                Metric(name, value, event.timestamp_ms, event.step) for name, value in event.metrics.items()
            ]
        elif isinstance(event, ParamsLogged):
            params |= event.params
        else:
            tags |= event.tags
    client.log_batch(
        run_id,
        metrics=metrics,
        params=[Param(name, value) for name, value in params.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )


def log_inputs(client: "MlflowClient", run_id: str, datasets: Sequence[DatasetUsed]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    client.log_inputs(
        run_id,
        datasets=[
            DatasetInput(
                Dataset(
                    name=item.name,
                    digest=item.digest[:_MAX_DIGEST],
                    source_type="agentcore",
                    source=json.dumps({"artifact": "training_data.json", "sha256": item.digest}),
                    profile=json.dumps({"num_rows": item.rows}),
                ),
                tags=[InputTag("mlflow.data.context", item.context)],
            )
            for item in datasets
        ],
    )


def log_model(
    client: "MlflowClient", run_id: str, event: ModelLogged, program_files: Path, scratch: Path
) -> str:
    """Create a READY LoggedModel from a program's files, as an output of the run; returns its id."""
    from mlflow.entities import LoggedModelOutput, RunTag

    run = client.get_run(run_id)
    model = _logged_model(client, run.info.experiment_id, run_id, event.name)
    if str(model.status) != "READY":
        _write_model(event, program_files, scratch)
        client.log_model_artifacts(model.model_id, str(scratch))
        files = {file.name: file.stat().st_size for file in scratch.iterdir() if file.is_file()}
        _check_stored(client.list_logged_model_artifacts(model.model_id), files)
        client.finalize_logged_model(model.model_id, "READY")
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [item.model_id for item in outputs]:
        client.log_outputs(run_id, models=[LoggedModelOutput(model.model_id, 0)])
    client.log_batch(run_id, tags=[RunTag(MODEL_TAG + event.name, model.model_id)])
    return str(model.model_id)


def _logged_model(client: "MlflowClient", experiment_id: str, run_id: str, name: str) -> Any:
    """The run's model of that name, created if needed; duplicates from lost replies are deleted."""

    def look() -> list[Any]:
        named = f"source_run_id = '{run_id}' AND name = '{name}'"
        found = client.search_logged_models([experiment_id], filter_string=named)
        return sorted(found, key=lambda model: (str(model.status) != "READY", model.model_id))

    if not (found := look()):
        client.create_logged_model(
            experiment_id, name=name, source_run_id=run_id, model_type="dspy", tags={"agentcore": __version__}
        )
        found = look()
    first, *doubles = found
    for double in doubles:
        client.delete_logged_model(double.model_id)
    return first


def register_version(client: "MlflowClient", run_id: str, event: VersionRegistered) -> None:
    """Create a version of a registered model from a program of the run, once."""
    from mlflow.exceptions import MlflowException

    run = client.get_run(run_id)
    model_id = run.data.tags.get(MODEL_TAG + event.artifact_name)
    if model_id is None:
        raise Rejected(f"the run has no model {event.artifact_name} to register as {event.model}")
    with contextlib.suppress(MlflowException):  # it exists
        client.create_registered_model(event.model)
    quoted = event.model.replace("'", "")
    made = client.search_model_versions(f"name = '{quoted}' and run_id = '{run_id}'")
    if any(item.tags.get(_ARTIFACT_TAG) == event.artifact_name for item in made):
        return
    # A local store would look up models:/… on the process's server.
    remote = str(client.tracking_uri).startswith("http")
    location = f"models:/{model_id}" if remote else client.get_logged_model(model_id).artifact_location
    client.create_model_version(
        event.model,
        source=str(location),
        run_id=run_id,
        tags={_ARTIFACT_TAG: event.artifact_name},
        model_id=model_id,
        await_creation_for=None,
    )


def _write_model(event: ModelLogged, program_files: Path, directory: Path) -> None:
    """Write a models-from-code MLflow model that wraps a program's files."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    for source in ("mlflow.pyfunc", "mlflow.utils.environment"):
        logging.getLogger(source).addFilter(_without_idle_warnings)
    save_model(
        str(directory),
        python_model=str(Path(__file__).with_name("_serving.py")),
        model_config={"name": event.name, "lm": event.default_lm},
        pip_requirements=event.requirements,
    )
    # Added by hand: save_model copies files in a thread pool, which is closed when a script ends, and with
    # a signature it wants an input example, whose prediction costs LM calls.
    shutil.copytree(program_files, directory / "artifacts" / "program")
    model = Model.load(str(directory))
    model.flavors["python_function"]["artifacts"] = {
        "program": {"path": "artifacts/program", "uri": event.name}
    }
    signature = served_signature(read_manifest(program_files, event.name))
    if signature is not None:
        model.signature = signature
    model.save(str(directory / "MLmodel"))


def serving_code() -> str:
    """The code that a LoggedModel runs when it is served."""
    return Path(__file__).with_name("_serving.py").read_text(encoding="utf-8")


def _without_idle_warnings(record: logging.LogRecord) -> bool:
    """Drops warnings that the signature (set right after) can't be inferred, and that pip is missing."""
    idle = ("Failed to infer model signature", "Failed to resolve installed pip version")
    return not record.getMessage().startswith(idle)


_COLUMN_TYPES = {"str": "string", "int": "long", "float": "double", "bool": "boolean"}


def served_signature(manifest: Mapping[str, Any]) -> Any:
    """The MLflow signature of a program with one predictor and plain inputs; None for other programs."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    if len(manifest["predictors"]) != 1:
        return None
    (spec,) = manifest["predictors"].values()
    if any(field["type"] not in _COLUMN_TYPES for field in spec["inputs"]):
        return None
    columns = [ColSpec(_COLUMN_TYPES[field["type"]], field["name"]) for field in spec["inputs"]]
    return ModelSignature(inputs=Schema(columns))
