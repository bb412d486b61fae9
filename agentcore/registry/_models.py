"""Requests to MLflow's model registry, each idempotent. Blocking: for `Gateway.call`."""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentcore.errors import ArtifactError, ConfigurationError
from agentcore.registry._events import Release
from agentcore.tracking import Gateway, model_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

OWNER_TAG = "agentcore.registry"
DECISION_TAG = "agentcore.decision"
RELEASE_TAG = "agentcore.release"
_LINKED = "mlflow.linkedPrompts"
_IS_PROMPT = "mlflow.prompt.is_prompt"
_SHOWN_IN = "_mlflow_experiment_ids"


def ensure_model(client: "MlflowClient", agent: str, token: str) -> None:
    """Create the agent's registered model unless it exists, and mark it as this journal's.

    Raises:
        ConfigurationError: another journal has the agent's history.
    """
    from mlflow.exceptions import MlflowException

    found = registered(client, agent)
    if found is None:
        with contextlib.suppress(MlflowException):  # a reply was lost, or another process was faster
            client.create_registered_model(agent, tags={OWNER_TAG: token})
        found = client.get_registered_model(agent)
    known = found.tags.get(OWNER_TAG)
    if known is None:
        client.set_registered_model_tag(agent, OWNER_TAG, token)
    elif known != token:
        raise ConfigurationError(
            f"model {agent!r} was registered from another journal, which has its history and its ledger: set "
            "AGENTCORE_JOURNAL_URL (or AGENTCORE_STATE_DIR) to that journal. If it is lost, remove the tag "
            f"{OWNER_TAG} from the model"
        )


def registered(client: "MlflowClient", agent: str) -> Any:
    """The registered model with its aliases; None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(agent)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def aliases(client: "MlflowClient", agent: str) -> dict[str, str]:
    """The version of each alias."""
    found = registered(client, agent)
    return {} if found is None else {name: str(version) for name, version in found.aliases.items()}


def find_version(client: "MlflowClient", agent: str, which: str) -> "ModelVersion":
    """A version by its number or an alias.

    Raises:
        ConfigurationError: there is none.
    """
    found = aliases(client, agent)
    number = which if which.isdigit() else found.get(which)
    version = next((item for item in model_versions(client, agent) if str(item.version) == number), None)
    if version is None:
        named = ", ".join(f"{agent}@{name}" for name in sorted(found)) or "none"
        mark = "/" if which.isdigit() else "@"
        raise ConfigurationError(f"there is no {agent}{mark}{which}. Aliases: {named}")
    return version


def version_of(client: "MlflowClient", agent: str, decision: str) -> "ModelVersion | None":
    """The version that a decision created."""
    return next(
        (item for item in model_versions(client, agent) if item.tags.get(DECISION_TAG) == decision), None
    )


def ensure_version(client: "MlflowClient", agent: str, release: Release, tags: Mapping[str, str]) -> str:
    """The number of a release's version, which is created unless it exists."""
    found = version_of(client, agent, release.decision)
    if found is None:
        made = client.create_model_version(
            agent,
            source=release.source,
            run_id=release.run_id,
            tags=dict(tags),
            model_id=release.model_id,
            await_creation_for=None,
        )
        return str(made.version)
    for name, value in tags.items():
        if found.tags.get(name) != value:
            client.set_model_version_tag(agent, str(found.version), name, value)
    return str(found.version)


def source_of(client: "MlflowClient", model_id: str, *, local: bool) -> str:
    """The source of a version of a LoggedModel. A server resolves `models:/m-…` itself, and its pages link to
    the model; a local store would look it up on the process's server."""
    return str(client.get_logged_model(model_id).artifact_location) if local else f"models:/{model_id}"


async def download(gateway: Gateway, model_id: str, directory: Path) -> dict[str, str]:
    """Download a LoggedModel; returns the sha256 of each file by path.

    Raises:
        ArtifactError: there is no such model.
        TrackingError: MLflow or its artifact store can't be reached.
    """

    def work(client: "MlflowClient") -> dict[str, str]:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        config = gateway.config
        repository = get_artifact_repository(
            client.get_logged_model(model_id).artifact_location,
            tracking_uri=config.tracking_uri,
            registry_uri=config.registry_uri or config.tracking_uri,
        )
        repository.download_artifacts("", str(directory))
        return {
            path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }

    found = await gateway.call(work)
    if not found:
        raise ArtifactError(f"model {model_id} has no files")
    return found


def ensure_prompts(
    client: "MlflowClient",
    agent: str,
    instructions: Mapping[str, str],
    decision: str,
    run_id: str,
    model_id: str,
) -> dict[str, str]:
    """Register each predictor's instruction as prompt `{agent}.{predictor}`, linked to the run and the
    model; returns the version of each by name.

    MLflow's `register_prompt`, `load_prompt` and `link_prompt_version_to_run` also contact the server
    and experiment set for the whole process, so they are not used.
    """
    run = client.get_run(run_id)
    found = {}
    for predictor, text in instructions.items():
        name = _prompt_name(agent, predictor)
        version = _prompt_of(client, name, decision)
        if version is None:
            version = _new_prompt(client, name, text, decision, run)
        found[name] = version
    linked = _with_links(run.data.tags.get(_LINKED), found)
    client.set_tag(run_id, _LINKED, linked)
    tags = client.get_logged_model(model_id).tags
    client.set_logged_model_tags(model_id, {_LINKED: _with_links(tags.get(_LINKED), found)})
    return found


def _prompt_name(agent: str, predictor: str) -> str:
    """MLflow allows letters, digits, `_`, `-` and `.`; a predictor may be `steps['first']`."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", predictor).strip("_")
    if plain != predictor:
        plain += "-" + hashlib.sha256(predictor.encode()).hexdigest()[:6]
    return f"{agent}.{plain}"


def _prompt_of(client: "MlflowClient", name: str, decision: str) -> str | None:
    """The prompt version that a decision created."""
    # Without the last clause, MLflow leaves prompts out.
    made = client.search_model_versions(
        f"name = '{name}' and tags.`{DECISION_TAG}` = '{decision}' and tags.`{_IS_PROMPT}` = 'true'"
    )
    return str(made[0].version) if made else None


def _new_prompt(client: "MlflowClient", name: str, text: str, decision: str, run: "Run") -> str:
    from mlflow.exceptions import MlflowException

    if client.get_prompt(name) is None:
        with contextlib.suppress(MlflowException):  # a reply was lost, or another process was faster
            # The experiment's page lists the prompts with its id.
            client.create_prompt(name, tags={_SHOWN_IN: f",{run.info.experiment_id},"})
    run_id = str(run.info.run_id)
    tags = {DECISION_TAG: decision, "run_id": run_id}
    made = client.create_prompt_version(name, text, description=f"run {run_id}", tags=tags)
    return str(made.version)


def _with_links(text: str | None, versions: Mapping[str, str]) -> str:
    """MLflow's list of linked prompts with these added; a damaged list is replaced."""
    try:
        known = json.loads(text) if text else []
    except ValueError:
        known = []
    known = known if isinstance(known, list) else []
    links = [{"name": name, "version": version} for name, version in versions.items()]
    return json.dumps([*known, *(link for link in links if link not in known)])
