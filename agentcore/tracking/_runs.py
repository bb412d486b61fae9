"""A run as read from MLflow, and the queries that find runs."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from agentcore.errors import ConfigurationError


@dataclass(frozen=True)
class TrackedRun:
    """One run's data. Times are UTC."""

    run_id: str
    name: str
    status: str
    experiment_id: str
    start_time: datetime | None
    end_time: datetime | None
    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def tracked_run(run: Any) -> TrackedRun:
    info, data = run.info, run.data
    return TrackedRun(
        run_id=info.run_id,
        name=info.run_name or "",
        status=str(info.status),
        experiment_id=info.experiment_id,
        start_time=_utc(info.start_time),
        end_time=_utc(info.end_time),
        metrics=dict(data.metrics),
        params=dict(data.params),
        tags={key: value for key, value in data.tags.items() if not key.startswith("mlflow.")},
    )


def _utc(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def best_run_query(metric: str, order_by: str, target_id: str | None) -> tuple[str, list[str]]:
    """Filter and order for the best FINISHED run with a finite `metric`; the earliest of equals wins.

    The bounds exclude what MLflow stores for infinities (±1.797e308) and runs without the metric, which
    it would otherwise rank.

    Raises:
        ConfigurationError: a name that MLflow's search syntax can't quote, or an unknown order.
    """
    if not metric or "`" in metric:
        raise ConfigurationError(f"{metric!r} is no metric name")
    if order_by.upper() not in ("ASC", "DESC"):
        raise ConfigurationError(f"order_by must be 'ASC' or 'DESC', got {order_by!r}")
    name = f"metrics.`{metric}`"
    found = f"attributes.status = 'FINISHED' and {name} > -1e308 and {name} < 1e308"
    if target_id is not None:
        if "'" in target_id:
            raise ConfigurationError(f"{target_id!r} is no target id: it has a quote")
        found += f" and tags.target_id = '{target_id}'"
    return found, [f"{name} {order_by.upper()}", "attributes.start_time ASC"]
