"""Requests of more than one call to an `MlflowClient`; they run in the client's threads."""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentcore._version import __version__
from agentcore.data import Dataset
from agentcore.errors import TrackingError
from agentcore.tracking._program_files import read_manifest

KEY_TAG = "agentcore.key"
_MAX_DIGEST = 36


def create_run(client: Any, experiment_id: str, name: str, tags: dict[str, str]) -> str:
    """Create a run once, also where the reply to the first request was lost."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)
    except MlflowException:
        found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{tags[KEY_TAG]}'", max_results=1)
        if not found:
            raise
        return str(found[0].info.run_id)


def get_or_create_experiment(client: Any, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"experiment {name!r} is deleted: restore it in MLflow, "
                    "or choose another MLFLOW_EXPERIMENT_NAME"
                )
            return str(experiment.experiment_id)
        with contextlib.suppress(MlflowException):  # another process was faster: the next look-up tells
            return str(client.create_experiment(name, artifact_location=artifact_location))
    return str(client.create_experiment(name, artifact_location=artifact_location))


def log_inputs(client: Any, run_id: str, parts: Mapping[str, Dataset]) -> None:
    from mlflow.entities import Dataset as DatasetEntity
    from mlflow.entities import DatasetInput, InputTag

    client.log_inputs(
        run_id,
        datasets=[
            DatasetInput(
                DatasetEntity(
                    name=part.name,
                    digest=part.digest[:_MAX_DIGEST],
                    source_type="agentcore",
                    source=json.dumps({"artifact": "training_data.json", "sha256": part.digest}),
                    profile=json.dumps({"num_rows": len(part)}),
                ),
                tags=[InputTag("mlflow.data.context", context)],
            )
            for context, part in parts.items()
        ],
    )


def log_model(
    client: Any,
    experiment_id: str,
    run_id: str,
    name: str,
    program_files: Path,
    scratch: Path,
    default_lm: str | None,
) -> str:
    import dspy
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import set_signature
    from mlflow.pyfunc import save_model

    for pickle_file in program_files.glob("*.pkl"):
        pickle_file.unlink()  # the served model has no use for it
    logging.getLogger("mlflow.pyfunc").addFilter(_without_signature_warning)
    model = client.create_logged_model(
        experiment_id, name=name, source_run_id=run_id, model_type="dspy", tags={"agentcore": __version__}
    )
    save_model(
        str(scratch),
        python_model=str(Path(__file__).with_name("_serving.py")),
        artifacts={"program": str(program_files)},
        model_config={"name": name, "lm": default_lm},
        pip_requirements=[f"agentcore=={__version__}", f"dspy=={dspy.__version__}"],
    )
    signature = served_signature(read_manifest(program_files, name))
    if signature is not None:
        # Given to save_model, it would ask for an input example, whose prediction costs LM calls.
        set_signature(str(scratch), signature)
    client.log_model_artifacts(model.model_id, str(scratch))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, models=[LoggedModelOutput(model.model_id, 0)])
    return str(model.model_id)


def _without_signature_warning(record: logging.LogRecord) -> bool:
    """MLflow warns that it can't infer the signature that is set right after."""
    return not record.getMessage().startswith("Failed to infer model signature")


_COLUMN_TYPES = {"str": "string", "int": "long", "float": "double", "bool": "boolean"}


def served_signature(manifest: Mapping[str, Any]) -> Any:
    """MLflow's signature of a program of one predictor with plain inputs; None for others."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    if len(manifest["predictors"]) != 1:
        return None
    (spec,) = manifest["predictors"].values()
    if any(field["type"] not in _COLUMN_TYPES for field in spec["inputs"]):
        return None
    columns = [ColSpec(_COLUMN_TYPES[field["type"]], field["name"]) for field in spec["inputs"]]
    return ModelSignature(inputs=Schema(columns))
