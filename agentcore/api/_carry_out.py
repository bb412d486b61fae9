"""Carries out operations with what `agents.toml` allows: the only place that turns names into programs."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agentcore._json import jsonable
from agentcore._threads import run_in_thread
from agentcore.api._agents import AgentEntry, Agents
from agentcore.api._events import Kind
from agentcore.api._models import (
    DriftRequest,
    EvaluateRequest,
    OptimizeRequest,
    PromoteRequest,
    RollbackRequest,
)
from agentcore.api._operations import Operation
from agentcore.data import DatasetManager, StoredDataset
from agentcore.dspy_optimization import OptimizationPipeline, OptimizationResult
from agentcore.errors import ConfigurationError, DataError, NotFoundError, RunFinishedError, TrackingError
from agentcore.monitoring import AsyncModelEvaluator
from agentcore.registry import Registry
from agentcore.settings import MLflowConfig, Settings

_DELIVERY_SECONDS = 60.0

Result = tuple[str | None, dict[str, Any]]
"""The id of the run, and what a reply shows."""


@dataclass(frozen=True)
class Surroundings:
    """What operations work with."""

    agents: Agents
    config: MLflowConfig

    def datasets(self) -> DatasetManager:
        """Where data sets are (`AGENTCORE_DATA`)."""
        return DatasetManager(Settings().data)

    def dataset(self, agent: str, wanted: str) -> StoredDataset:
        """A data set that requests about an agent may use. Blocking.

        Raises:
            NotFoundError: it isn't allowed, or there is none.
        """
        if not self.agents.get(agent).allows(wanted):
            known = ", ".join(self.agents.get(agent).datasets) or "none"
            raise NotFoundError(
                f"agent {agent!r} may not use data set {wanted!r}: add it to its datasets in agents.toml, "
                f"which are: {known}"
            )
        name, _, version = wanted.partition("/")
        manager = self.datasets()
        try:
            return manager.load_dataset(name, version or None)
        except DataError as error:
            raise NotFoundError(str(error)) from None


class Carrier:
    """Carries out one operation after the other."""

    def __init__(self, where: Surroundings) -> None:
        self.where = where
        self._by_kind: dict[Kind, Callable[[Operation, AgentEntry], Awaitable[Result]]] = {
            "optimization": self._optimize,
            "evaluation": self._evaluate,
            "drift": self._drift,
            "promotion": self._promote,
            "rollback": self._roll_back,
        }

    async def __call__(self, operation: Operation) -> Result:
        """Carry out an operation, or continue it.

        Raises:
            AgentCoreError: see `OptimizationPipeline.run_optimization`, `AsyncModelEvaluator` and `Registry`.
        """
        entry = self.where.agents.get(operation.requested.agent)
        return await self._by_kind[operation.requested.operation](operation, entry)

    async def _optimize(self, operation: Operation, entry: AgentEntry) -> Result:
        # Validated again: in a shared journal, others may have written it.
        asked = OptimizeRequest.model_validate(operation.requested.request)
        agent = operation.requested.agent
        pipeline = OptimizationPipeline(
            entry.program,
            entry.metric,
            await run_in_thread(entry.model),
            mlflow_config=self.where.config,
            max_concurrency=entry.max_concurrency,
            seed=asked.seed,
            agent=agent,
            sealed=asked.sealed,
        )
        name = operation.run_name
        request = optimization_request(agent, entry, asked)
        stored = await run_in_thread(lambda: self.where.dataset(agent, asked.dataset_name))
        try:
            result = await pipeline.run_optimization(request, training_data=stored, once=name)
        except RunFinishedError as finished:  # by a replica that died before it could record the end
            result = await pipeline.result(finished.run_id)
        with suppress(TrackingError):  # then it waits in the journal, and the service delivers it
            await pipeline.flush(_DELIVERY_SECONDS)
        return await pipeline.tracking_id(result.run_id), shown_result(result)

    async def _evaluate(self, operation: Operation, entry: AgentEntry) -> Result:
        asked = EvaluateRequest.model_validate(operation.requested.request)
        evaluator = await self._evaluator(operation, entry)
        await run_in_thread(lambda: self.where.dataset(evaluator.agent_name, asked.dataset_name))
        target = asked.target_field or entry.target_field
        if target is None:
            target = await evaluator.target_of(asked.dataset_name)
        name, _, version = asked.dataset_name.partition("/")
        found = await evaluator.evaluate_dataset(
            name, target, version or None, asked.prediction_field, repeats=asked.repeats
        )
        await evaluator.flush_or_say()
        return await self._tracked(evaluator, found.run_id), jsonable(found.as_dict())

    async def _drift(self, operation: Operation, entry: AgentEntry) -> Result:
        asked = DriftRequest.model_validate(operation.requested.request)
        evaluator = await self._evaluator(operation, entry)
        for name in (asked.baseline_dataset, asked.current_dataset):
            await run_in_thread(lambda name=name: self.where.dataset(evaluator.agent_name, name))  # type: ignore[misc]
        found = await evaluator.detect_drift(
            asked.baseline_dataset,
            asked.current_dataset,
            asked.threshold,
            asked.target_field or entry.target_field,
            prediction_field=asked.prediction_field,
        )
        await evaluator.flush_or_say()
        return await self._tracked(evaluator, found.run_id), jsonable(found.as_dict())

    async def _promote(self, operation: Operation, entry: AgentEntry) -> Result:
        asked = PromoteRequest.model_validate(operation.requested.request)
        registry = self._registry(operation, entry)
        model = await run_in_thread(entry.model)
        found = await registry.promote(
            asked.run, asked.to, metric=entry.metric, lm=model, dry_run=asked.dry_run
        )
        return found.run_id, jsonable({**found.as_dict(), "summary": str(found)})

    async def _roll_back(self, operation: Operation, entry: AgentEntry) -> Result:
        asked = RollbackRequest.model_validate(operation.requested.request)
        found = await self._registry(operation, entry).rollback(asked.to)
        return found.deployment_run, jsonable(vars(found))

    async def _evaluator(self, operation: Operation, entry: AgentEntry) -> AsyncModelEvaluator:
        model = await run_in_thread(entry.model)
        return AsyncModelEvaluator(
            operation.requested.agent,
            entry.func,
            lm=model,
            datasets=self.where.datasets(),
            config=self.where.config,
            max_concurrency=entry.max_concurrency,
        )

    def _registry(self, operation: Operation, entry: AgentEntry) -> Registry:
        return Registry(
            operation.requested.agent,
            self.where.config,
            max_concurrency=entry.max_concurrency,
            by=operation.requested.by,
        )

    async def _tracked(self, evaluator: AsyncModelEvaluator, run_id: str | None) -> str | None:
        if run_id is None:
            return None
        return await evaluator.runs.tracker.tracking_id(run_id) or run_id


def optimization_request(agent: str, entry: AgentEntry, asked: OptimizeRequest) -> dict[str, Any]:
    """The request of the pipeline, within the limits of the agent.

    Raises:
        ConfigurationError: it asks for more than they allow.
    """
    constraints: dict[str, Any] = {}
    for name, most in entry.limits.model_dump().items():
        wanted = getattr(asked, name)
        if wanted is not None and most is not None and wanted > most:
            raise ConfigurationError(
                f"{name} is {wanted:g}, but agents.toml allows at most {most:g} for agent {agent!r}"
            )
        value = most if wanted is None else wanted
        if value is not None:
            constraints[name] = value
    settings: dict[str, Any] = dict(asked.settings)
    if asked.auto is not None:
        settings["auto"] = None if asked.auto == "none" else asked.auto
    if settings and len(asked.algorithms) > 1:
        raise ConfigurationError("settings and auto belong to one algorithm: name only one in algorithms")
    return {
        "target": {"type": "agent", "id": agent},
        "objectives": [{"metric": name} for name in dict.fromkeys(asked.objectives)],
        "algorithms": asked.algorithms,
        "optimizer_settings": {asked.algorithms[0]: settings} if settings else {},
        "constraints": constraints,
    }


def shown_result(result: OptimizationResult) -> dict[str, Any]:
    """What a reply says of a finished optimization; everything is in its run."""
    content = result.model_dump(mode="json")
    names = (
        *("status", "verdict", "baseline_performance", "optimized_performance", "improvement_percentage"),
        *("statistical_significance", "interval", "smallest_detectable_gain", "winning_optimizer"),
        *("meets_threshold", "claims", "spend", "warnings"),
    )
    return {name: content[name] for name in names}
