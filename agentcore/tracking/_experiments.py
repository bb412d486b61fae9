"""`Experiments`: an agent's three experiments, with consistently named and tagged runs."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import cached_property, partial, wraps
from string import Formatter
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from agentcore._sync import SyncTwin, blocking, run_blocking
from agentcore._version import __version__
from agentcore.data import Dataset
from agentcore.errors import ConfigurationError
from agentcore.settings import MLflowConfig, Settings
from agentcore.tracking._gateway import Gateway
from agentcore.tracking._layout import (
    STAGES,
    Stage,
    check_agent,
    check_tags,
    deployment_name,
    development_name,
    evaluation_name,
    known_domains,
)
from agentcore.tracking._layout_check import Violation, violations
from agentcore.tracking._requests import get_or_create_experiment, register_scorer
from agentcore.tracking._run_tracker import RunStatus, RunTracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

P = ParamSpec("P")
T = TypeVar("T")

TEMPLATE = "/Shared/{agent}_{stage}"


def _of_run(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """A method of `StageRun` that logs to its run by the tracker's method."""

    @wraps(method)
    async def call(run: "StageRun", *args: P.args, **kwargs: P.kwargs) -> T:
        kwargs["run_id"] = run.id
        return await method(run.tracker, *args, **kwargs)

    return cast("Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]", call)


class StageRun:
    """A run in one of the three experiments.

    Attributes:
        id: the run's id, as `RunTracker.start_run` gives it.
        tracker: of the run's experiment.
    """

    def __init__(self, run_id: str, tracker: RunTracker) -> None:
        self.id = run_id
        self.tracker = tracker

    log_metrics = _of_run(RunTracker.log_metrics)
    log_params = _of_run(RunTracker.log_params)
    set_tags = _of_run(RunTracker.set_tags)
    log_input = _of_run(RunTracker.log_input)
    log_json = _of_run(RunTracker.log_json)
    log_artifact = _of_run(RunTracker.log_artifact)
    log_model_artifact = _of_run(RunTracker.log_model_artifact)


class SyncStageRun(SyncTwin):
    """`StageRun`, blocking."""

    def __init__(self, run: StageRun) -> None:
        super().__init__(run)
        self.id = run.id

    log_metrics = blocking(StageRun.log_metrics)
    log_params = blocking(StageRun.log_params)
    set_tags = blocking(StageRun.set_tags)
    log_input = blocking(StageRun.log_input)
    log_json = blocking(StageRun.log_json)
    log_artifact = blocking(StageRun.log_artifact)
    log_model_artifact = blocking(StageRun.log_model_artifact)


class Experiments:
    """The development, evaluation and deployment experiments of one agent.

    `development, evaluation, deployment = Experiments("support")` gives their names. Data sets, prompts and
    scorers get no runs of their own: a data set is an input of the runs that use it.

    Args:
        agent: its name.
        config: the MLflow server; default: from the environment. Its experiment name is not used.
        template: the experiments' names; another common layout is `"/Shared/{agent}/{stage}"`.
        environment: dev, staging or production; default: `AGENTCORE_ENVIRONMENT`.
        agent_version: default: `AGENTCORE_AGENT_VERSION`.
        domains: values of the tag `domain` in addition to the standard ones and `AGENTCORE_DOMAINS`.

    Raises:
        ConfigurationError: an invalid name, template or environment.
    """

    def __init__(
        self,
        agent: str,
        config: MLflowConfig | None = None,
        *,
        template: str = TEMPLATE,
        environment: str | None = None,
        agent_version: str | None = None,
        domains: Sequence[str] = (),
    ) -> None:
        settings = Settings()
        self.agent = check_agent(agent)
        self.config = config or MLflowConfig()
        self.names: Mapping[Stage, str] = _names(agent, template)
        self.environment = environment or settings.environment
        self.agent_version = agent_version or settings.agent_version
        self.domains = known_domains(domains)
        self.gateway = Gateway(self.config)
        self._trackers: dict[Stage, RunTracker] = {}
        check_tags("development", {"environment": self.environment}, self.domains)

    @property
    def development(self) -> str:
        """The name of the experiment for development runs, model logging and optimizations."""
        return self.names["development"]

    @property
    def evaluation(self) -> str:
        """The name of the experiment for evaluation runs."""
        return self.names["evaluation"]

    @property
    def deployment(self) -> str:
        """The name of the experiment for deployment runs and pre-deployment validations."""
        return self.names["deployment"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names[stage] for stage in STAGES)

    @cached_property
    def sync(self) -> "SyncExperiments":
        """The blocking version."""
        return SyncExperiments(self)

    def tracker(self, stage: Stage) -> RunTracker:
        """The tracker of one of the experiments."""
        if stage not in self._trackers:
            self._trackers[stage] = RunTracker(self.stage_config(stage))
        return self._trackers[stage]

    def stage_config(self, stage: Stage) -> MLflowConfig:
        """The configuration with the experiment of a stage."""
        return self.config.model_copy(update={"experiment_name": self.names[stage]})

    async def create(self) -> dict[str, str]:
        """Create the experiments that don't exist; returns the id of each, by stage. Any number of processes
        may do this at once.

        Raises:
            TrackingError: MLflow can't be reached, or an experiment of that name is deleted.
        """
        location = self.config.artifact_location
        found = {}
        for stage, name in self.names.items():
            found[str(stage)] = await self.gateway.call(partial(_created, name=name, location=location))
        return found

    def tags(self, stage: Stage, **tags: Any) -> dict[str, str]:
        """The standard tags of a run; `tags` override them or are added.

        Raises:
            ConfigurationError: a value is not in its list.
        """
        found = {
            "agent_name": self.agent,
            "run_type": stage,
            "domain": "all",
            "agent_version": self.agent_version,
            "dataset_type": "none",
            "evaluation_type": "none",
            "environment": self.environment,
            "version": __version__,
            **{name: _text(value) for name, value in tags.items()},
        }
        check_tags(stage, found, self.domains)
        return found

    @contextlib.asynccontextmanager
    async def development_run(self, feature: str | None = None, **tags: Any) -> AsyncIterator[StageRun]:
        """A run `dev_{feature}_{timestamp}`, ended as FINISHED, FAILED or KILLED when the block ends.

        Args:
            tags: further tags, or other values of the standard ones, such as `run_type="model_logging"`.
        """
        async with self._run("development", development_name(feature), tags) as run:
            yield run

    @contextlib.asynccontextmanager
    async def evaluation_run(
        self,
        domain: str = "all",
        dataset: Dataset | None = None,
        pre_deploy: bool = False,
        evaluation_type: str | None = None,
        **tags: Any,
    ) -> AsyncIterator[StageRun]:
        """A run `eval_{domain}_{timestamp}`, or `eval_pre_deploy_{timestamp}`.

        Args:
            dataset: becomes an input of the run; every evaluation run needs one.
            evaluation_type: default: comprehensive for the domain `all`, else domain_specific; with
                `pre_deploy`, pre_deploy_validation.
        """
        kind = "comprehensive" if domain == "all" else "domain_specific"
        if pre_deploy:
            kind = "pre_deploy_validation"
            tags.setdefault("deployment_candidate", True)
        tags = {"dataset_type": "evaluation", **tags, "domain": domain}
        tags["evaluation_type"] = evaluation_type or kind
        name = evaluation_name(domain, pre_deploy=pre_deploy)
        async with self._run("evaluation", name, tags) as run:
            if dataset is not None:
                await run.log_input(dataset, "evaluation")
            yield run

    @contextlib.asynccontextmanager
    async def deployment_run(
        self,
        model_version: str | int,
        promotion_target: str | None = None,
        validation: bool = False,
        **tags: Any,
    ) -> AsyncIterator[StageRun]:
        """A run `deploy_{timestamp}`, or `pre_deploy_validation_{timestamp}`. Its tag `deployment_status` is
        success or failed when the block ends, unless `tags` set it."""
        status = tags.get("deployment_status")
        found = self.deployment_tags(model_version, promotion_target, validation=validation, **tags)
        async with self._run("deployment", deployment_name(validation=validation), found) as run:
            try:
                yield run
            except BaseException:
                if status is None:
                    await asyncio.shield(run.set_tags({"deployment_status": "failed"}))
                raise
            if status is None:
                await run.set_tags({"deployment_status": "success"})

    def deployment_tags(
        self, model_version: str | int, promotion_target: str | None, *, validation: bool = False, **tags: Any
    ) -> dict[str, Any]:
        """The tags of a deployment run."""
        of_validation = {"evaluation_type": "pre_deploy_validation", "dataset_type": "evaluation"}
        return {
            **(of_validation if validation else {}),
            "model_version": model_version,
            "promotion_target": promotion_target or "none",
            "deployment_candidate": validation,
            "deployment_status": "in_progress",
            **tags,
        }

    def deployment_run_name(self, at_ms: int) -> str:
        """The name of a deployment run that began at a Unix time in milliseconds."""
        return deployment_name(at_ms=at_ms)

    def evaluation_run_name(self, at_ms: int) -> str:
        """The name of a pre-deployment evaluation that began at a Unix time in milliseconds."""
        return evaluation_name("all", pre_deploy=True, at_ms=at_ms)

    @contextlib.asynccontextmanager
    async def _run(self, stage: Stage, name: str, tags: Mapping[str, Any]) -> AsyncIterator[StageRun]:
        tracker = self.tracker(stage)
        outer = tracker._current.get()
        run_id = await tracker.start_run(run_name=name, tags=self.tags(stage, **tags))
        status: RunStatus = "FAILED"
        try:
            yield StageRun(run_id, tracker)
            status = "FINISHED"
        except asyncio.CancelledError:
            status = "KILLED"
            raise
        finally:
            await asyncio.shield(tracker.end_run(status, run_id=run_id))
            tracker._current.set(outer)

    async def latest_evaluation_run(self) -> "Run | None":
        """The evaluation run that started last; None if there is none."""
        found = await self.tracker("evaluation").search_runs("tags.run_type = 'evaluation'", 1)
        return found[0] if found else None

    async def deployment_runs(self, model_version: str | int) -> "list[Run]":
        """All deployment runs of a model version, newest first."""
        version = str(model_version)
        if "'" in version:
            raise ConfigurationError(f"model version {version!r} contains a quote")
        found = f"tags.model_version = '{version}'"
        return await self.tracker("deployment").search_runs(found, 10_000)

    async def register_scorer(self, scorer: Any, name: str | None = None) -> int:
        """Register an `mlflow.genai` scorer in the evaluation experiment, without a run; returns its version.

        Args:
            name: default: the scorer's.

        Raises:
            ConfigurationError: not a scorer.
            TrackingError: MLflow can't be reached, has no scorers, or refuses this kind.
        """
        if not callable(getattr(scorer, "model_dump", None)) or not getattr(scorer, "name", None):
            raise ConfigurationError(f"{scorer!r} is not a scorer: pass one of mlflow.genai.scorers")
        content = {**scorer.model_dump(), "name": name or scorer.name}
        experiment_id = (await self.create())["evaluation"]
        return await self.gateway.call(
            lambda client: register_scorer(client, experiment_id, content["name"], json.dumps(content))
        )

    async def check(self) -> list[Violation]:
        """Every violation of the layout: missing experiments, runs that don't belong, wrong names and tags,
        evaluation runs without a data set."""
        for tracker in self._trackers.values():
            await tracker.flush()
        return await self.gateway.call(
            lambda client: violations(client, self.agent, self.names, self.domains)
        )


def _names(agent: str, template: str) -> dict[Stage, str]:
    try:
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        fields = set()
    if fields != {"agent", "stage"}:
        raise ConfigurationError(
            f"template {template!r}: it needs {{agent}} and {{stage}}, and no other names in braces"
        )
    return {stage: template.format(agent=agent, stage=stage) for stage in STAGES}


def _created(client: "MlflowClient", name: str, location: str | None) -> str:
    return get_or_create_experiment(client, name, location)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class SyncExperiments(SyncTwin):
    """`Experiments`, blocking."""

    _target: Experiments

    create = blocking(Experiments.create)
    latest_evaluation_run = blocking(Experiments.latest_evaluation_run)
    deployment_runs = blocking(Experiments.deployment_runs)
    register_scorer = blocking(Experiments.register_scorer)
    check = blocking(Experiments.check)

    @contextlib.contextmanager
    def development_run(self, feature: str | None = None, **tags: Any) -> Iterator[SyncStageRun]:
        """See `Experiments.development_run`."""
        with _entered(self._target.development_run(feature, **tags)) as run:
            yield run

    @contextlib.contextmanager
    def evaluation_run(
        self,
        domain: str = "all",
        dataset: Dataset | None = None,
        pre_deploy: bool = False,
        evaluation_type: str | None = None,
        **tags: Any,
    ) -> Iterator[SyncStageRun]:
        """See `Experiments.evaluation_run`."""
        with _entered(
            self._target.evaluation_run(domain, dataset, pre_deploy, evaluation_type, **tags)
        ) as run:
            yield run

    @contextlib.contextmanager
    def deployment_run(
        self,
        model_version: str | int,
        promotion_target: str | None = None,
        validation: bool = False,
        **tags: Any,
    ) -> Iterator[SyncStageRun]:
        """See `Experiments.deployment_run`."""
        entered = self._target.deployment_run(model_version, promotion_target, validation, **tags)
        with _entered(entered) as run:
            yield run


@contextlib.contextmanager
def _entered(manager: contextlib.AbstractAsyncContextManager[StageRun]) -> Iterator[SyncStageRun]:
    """An asynchronous context manager, entered and left by blocking calls."""
    run = run_blocking(_awaited(manager.__aenter__()))
    try:
        yield SyncStageRun(run)
    except BaseException as error:
        if not run_blocking(_awaited(manager.__aexit__(type(error), error, error.__traceback__))):
            raise
    else:
        run_blocking(_awaited(manager.__aexit__(None, None, None)))


async def _awaited(work: Any) -> Any:
    return await work
