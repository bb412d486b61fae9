"""Queries in MLflow's search syntax."""

from collections.abc import Mapping

from agentcore.errors import ConfigurationError


def best_run_query(
    metric: str, order_by: str, tags: Mapping[str, str] | None = None
) -> tuple[str, list[str]]:
    """Filter and order for the best FINISHED run with a finite `metric`; ties go to the earliest run.

    The bounds exclude MLflow's placeholder for infinities (±1.797e308) and runs without the metric, which
    would otherwise be ranked.

    Args:
        tags: consider only runs with these tags.

    Raises:
        ConfigurationError: a name or value that MLflow's search syntax can't quote, or an unknown order.
    """
    if not metric or "`" in metric:
        raise ConfigurationError(f"{metric!r} is not a metric name")
    if order_by.upper() not in ("ASC", "DESC"):
        raise ConfigurationError(f"order_by must be 'ASC' or 'DESC', got {order_by!r}")
    name = f"metrics.`{metric}`"
    clauses = ["attributes.status = 'FINISHED'", f"{name} > -1e308", f"{name} < 1e308"]
    for tag, value in (tags or {}).items():
        if "'" in value or "`" in tag:
            raise ConfigurationError(f"{tag} {value!r} can't be searched for: it contains a quote")
        clauses.append(f"tags.`{tag}` = '{value}'")
    return " and ".join(clauses), [f"{name} {order_by.upper()}", "attributes.start_time ASC"]
