"""Checks an agent's experiments against the layout."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from agentcore.tracking._gateway import search_pages
from agentcore.tracking._layout import REQUIRED, Stage, name_problem, wrong_values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_NO_RUN = re.compile(
    r"(create|register|log|save).*(data_?set|prompt|scorer)|(data_?set|prompt|scorer)s?_(creation|regist)"
)
"""Types and names of runs that should not exist: `dataset_creation`, `register_prompts`, …"""


@dataclass(frozen=True)
class Violation:
    """What breaks the layout.

    Attributes:
        run_id: None if it concerns no single run.
        rule: experiments, no_run, name, tags, dataset, deployment or model_logging.
    """

    run_id: str | None
    rule: str
    message: str

    def as_dict(self) -> dict[str, str | None]:
        """The fields by name."""
        return asdict(self)


def violations(
    client: "MlflowClient", agent: str, names: Mapping[Stage, str], domains: Sequence[str]
) -> list[Violation]:
    """All violations, experiment by experiment. Blocking."""
    found = []
    for stage, name in names.items():
        experiment = client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage == "deleted":
            what = (
                f"does not exist. Create it with: agentcore experiments init {agent}"
                if experiment is None
                else "is deleted: restore it in MLflow"
            )
            found.append(Violation(None, "experiments", f"experiment {name!r} {what}"))
            continue
        if not name.startswith("/Shared/"):
            found.append(
                Violation(None, "experiments", f"experiment {name!r} is not under /Shared/: rename it")
            )
        for run in search_pages(client, [experiment.experiment_id], "", ["attributes.start_time ASC"]):
            found += _of_run(run, stage, agent, domains)
    return found


def _of_run(run: "Run", stage: Stage, agent: str, domains: Sequence[str]) -> Iterator[Violation]:
    run_id, name, tags = run.info.run_id, str(run.info.run_name or ""), run.data.tags
    kind = tags.get("run_type", "")
    if stage != "development" and (kind == "model_logging" or (run.outputs and run.outputs.model_outputs)):
        yield Violation(
            run_id, "model_logging", f"the {stage} run {name!r} logs a model: log models in development"
        )
        return
    problem = name_problem(stage, agent, name)
    if _NO_RUN.search(kind) or (problem is not None and _NO_RUN.search(name)):
        yield Violation(
            run_id,
            "no_run",
            f"the run {name!r} only registers a data set, a prompt or a scorer: that needs no run",
        )
        return
    if stage == "deployment" and kind != "deployment":
        yield Violation(
            run_id,
            "deployment",
            f"the run {name!r} of type {kind or 'unknown'!r} is neither a deployment nor a validation",
        )
        return
    if problem is not None:
        yield Violation(run_id, "name", problem)
    missing = [tag for tag in REQUIRED[stage] if not tags.get(tag)]
    if missing:
        yield Violation(run_id, "tags", f"the run {name!r} has no tag {', '.join(missing)}")
    for message in wrong_values(stage, tags, domains).values():
        yield Violation(run_id, "tags", f"the run {name!r}: {message}")
    if tags.get("agent_name", agent) != agent:
        yield Violation(run_id, "tags", f"the run {name!r} belongs to another agent, {tags['agent_name']!r}")
    if stage == "evaluation" and not (run.inputs and run.inputs.dataset_inputs):
        yield Violation(run_id, "dataset", f"the evaluation run {name!r} has no data set as an input")
