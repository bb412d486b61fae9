"""What the page shows of each agent, gathered in the background: the page never waits for MLflow."""

import asyncio
import json
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agentcore._naming import now_ms
from agentcore._redaction import first_line
from agentcore.api._models import ChampionReply
from agentcore.api._operations import iso
from agentcore.errors import AgentCoreError, ConfigurationError, NotFoundError
from agentcore.registry import CHAMPION, HistoryEntry, Registry
from agentcore.settings import MLflowConfig
from agentcore.tracking import Experiments

if TYPE_CHECKING:
    from mlflow.entities import Run

_logger = logging.getLogger("agentcore")

_SECONDS = 15.0
_SHOWN = 10


@dataclass(frozen=True)
class EvaluationView:
    """An evaluation, as its run has it."""

    run_id: str
    dataset: str
    at: str
    accuracy: float | None
    low: float | None
    high: float | None
    f1: float | None
    rows: int | None


@dataclass(frozen=True)
class DriftView:
    """A drift check, as its run has it."""

    run_id: str
    baseline: str
    current: str
    at: str
    drift: bool
    inputs: bool
    cause: str


@dataclass(frozen=True)
class AgentView:
    """An agent's state.

    Attributes:
        error: why it could not be read; the rest is then what was known before.
        at: when it was read; UTC, ISO 8601.
    """

    name: str
    champion: ChampionReply | None = None
    evaluations: tuple[EvaluationView, ...] = ()
    drifts: tuple[DriftView, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    error: str | None = None
    at: str | None = None


async def champion_of(registry: Registry) -> ChampionReply:
    """The version in production.

    Raises:
        NotFoundError: there is none.
        ArtifactError, TrackingError: see `Registry.current`.
    """
    try:
        version, release = await registry.current()
    except ConfigurationError as error:
        raise NotFoundError(str(error)) from None
    history = await registry.history()
    moved = [
        item
        for item in history
        if item.alias == CHAMPION
        and item.version == version
        and item.what in ("promote", "rollback", "adopted")
    ]
    last = moved[-1] if moved else None
    return ChampionReply(
        agent=registry.agent,
        version=version,
        semantic_version=release.semantic_version,
        run_id=release.run_id,
        since=last.at if last is not None else None,
        by=last.by if last is not None else None,
    )


class Overview:
    """The agents' states, refreshed every 15 seconds."""

    def __init__(self, agents: list[str], config: MLflowConfig) -> None:
        self._views = {name: AgentView(name) for name in agents}
        self._registries = {name: Registry(name, config) for name in agents}
        self._experiments = {name: Experiments(name, config) for name in agents}

    def agents(self) -> list[AgentView]:
        """Every agent's state, as it was last read."""
        return list(self._views.values())

    def agent(self, name: str) -> AgentView:
        """An agent's state, as it was last read.

        Raises:
            NotFoundError: there is no such agent.
        """
        if name not in self._views:
            raise NotFoundError(f"there is no agent {name!r} here")
        return self._views[name]

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            for name in self._views:
                await self.refresh(name)
            await asyncio.sleep(_SECONDS)

    async def refresh(self, name: str) -> None:
        """Read an agent's state."""
        before = self._views[name]
        try:
            self._views[name] = await self._read(name)
        except AgentCoreError as error:
            self._views[name] = replace(before, error=str(error))
        except Exception as error:  # noqa: BLE001 - shown; what one agent's runs hold must not end the others'
            _logger.warning("the state of %s can't be read: %s", name, first_line(error))
            self._views[name] = replace(before, error=first_line(error))

    async def _read(self, name: str) -> AgentView:
        registry = self._registries[name]
        try:
            champion = await champion_of(registry)
        except NotFoundError:
            champion = None
        tracker = self._experiments[name].tracker("evaluation")
        finished = "attributes.status = 'FINISHED'"
        drifts = await tracker.search_runs(f"{finished} and tags.evaluation_type = 'regression'", _SHOWN)
        evaluations = await tracker.search_runs(
            f"{finished} and tags.evaluation_type = 'comprehensive'", _SHOWN
        )
        return AgentView(
            name,
            champion,
            tuple(_evaluation(run) for run in evaluations),
            tuple(_drift(run) for run in drifts),
            tuple((await registry.history())[-_SHOWN:][::-1]),
            at=iso(now_ms()),
        )


def _evaluation(run: "Run") -> EvaluationView:
    metrics, params = run.data.metrics, run.data.params
    rows = [item.dataset.profile for item in (run.inputs.dataset_inputs if run.inputs else ())]
    return EvaluationView(
        run.info.run_id,
        params.get("dataset", "?"),
        iso(run.info.start_time),
        metrics.get("accuracy"),
        metrics.get("accuracy_low"),
        metrics.get("accuracy_high"),
        metrics.get("f1_score"),
        _rows_in(rows[0]) if rows else None,
    )


def _rows_in(profile: str | None) -> int | None:
    try:
        found = json.loads(profile or "{}")
    except (ValueError, RecursionError):
        return None
    rows = found.get("num_rows") if isinstance(found, dict) else None
    return rows if isinstance(rows, int) else None


def _drift(run: "Run") -> DriftView:
    metrics, params = run.data.metrics, run.data.params
    return DriftView(
        run.info.run_id,
        params.get("baseline_dataset", "?"),
        params.get("current_dataset", "?"),
        iso(run.info.start_time),
        metrics.get("has_drift") == 1.0,
        metrics.get("has_input_drift") == 1.0,
        run.data.tags.get("drift_cause", "unknown"),
    )
