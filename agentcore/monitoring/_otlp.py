"""Exports a collector's windows over OTLP, where an endpoint is set and the extra is installed."""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from agentcore.errors import TrackingError
from agentcore.monitoring import _genai as names
from agentcore.monitoring._totals import Distribution, Totals, value_of

_logger = logging.getLogger("agentcore")
_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
_SECONDS = 5.0


def exporter_of(agent: str) -> "Exporter | None":
    """An exporter to the endpoint that the environment names; None if it names none."""
    if not any(os.environ.get(name) for name in _VARIABLES):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError:
        _logger.warning(
            "%s is set, but the exporter is missing: pip install 'agentcore[otel]'", _VARIABLES[0]
        )
        return None
    return Exporter(agent, OTLPMetricExporter(timeout=_SECONDS))


class Exporter:
    """Cumulative metrics of one agent in this process."""

    def __init__(self, agent: str, exporter: Any) -> None:
        self.agent = agent
        self._exporter = exporter
        self._began = time.time_ns()

    def export(self, totals: Totals) -> None:
        """Send everything recorded so far.

        Raises:
            TrackingError: the endpoint didn't take it.
        """
        from opentelemetry.sdk.metrics.export import (
            MetricExportResult,
            MetricsData,
            ResourceMetrics,
            ScopeMetrics,
        )
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        scope = ScopeMetrics(InstrumentationScope("agentcore"), self._metrics(totals), "")
        resource = Resource.create({"service.name": self.agent})
        result = self._exporter.export(MetricsData([ResourceMetrics(resource, [scope], "")]))
        if result is not MetricExportResult.SUCCESS:
            raise TrackingError("the metrics couldn't be sent over OTLP: check OTEL_EXPORTER_OTLP_ENDPOINT")

    def _metrics(self, totals: Totals) -> list[Any]:
        found = [
            self._counter(names.REQUESTS, "{request}", {names.STATUS: dict(totals.requests)}),
            self._counter(names.ERRORS, "{error}", {names.ERROR_TYPE: dict(totals.errors)}),
            self._tokens(totals),
        ]
        if totals.durations.count:
            found.append(self._durations(totals.durations))
        return [item for item in found if item.data.data_points]

    def _attributes(self, **more: Any) -> dict[str, Any]:
        return {names.AGENT: self.agent, names.OPERATION: names.INVOKE_AGENT, **more}

    def _point(self, value: int, **attributes: Any) -> Any:
        from opentelemetry.sdk.metrics.export import NumberDataPoint

        return NumberDataPoint(self._attributes(**attributes), self._began, time.time_ns(), value)

    def _sum(self, name: str, unit: str, points: list[Any]) -> Any:
        from opentelemetry.sdk.metrics.export import AggregationTemporality, Metric, Sum

        return Metric(name, "", unit, Sum(points, AggregationTemporality.CUMULATIVE, True))

    def _counter(self, name: str, unit: str, by: Mapping[str, Mapping[str, int]]) -> Any:
        points = [
            self._point(count, **{attribute: value})
            for attribute, counts in by.items()
            for value, count in counts.items()
        ]
        return self._sum(name, unit, points)

    def _tokens(self, totals: Totals) -> Any:
        """The conventions make it a histogram; without single calls, it has one bucket."""
        from opentelemetry.sdk.metrics.export import (
            AggregationTemporality,
            Histogram,
            HistogramDataPoint,
            Metric,
        )

        points = [
            HistogramDataPoint(
                attributes=self._attributes(
                    **{names.MODEL: model, **({names.TOKEN_TYPE: kind} if kind else {})}
                ),
                start_time_unix_nano=self._began,
                time_unix_nano=time.time_ns(),
                count=calls,
                sum=tokens,
                bucket_counts=[calls],
                explicit_bounds=[],
                min=0,
                max=tokens,
            )
            for model, (read, written, untold, calls) in totals.tokens.items()
            for kind, tokens in ((names.INPUT, read), (names.OUTPUT, written), ("", untold))
            if tokens
        ]
        return Metric(names.TOKENS, "", "{token}", Histogram(points, AggregationTemporality.CUMULATIVE))

    def _durations(self, found: Distribution) -> Any:
        from opentelemetry.sdk.metrics.export import (
            AggregationTemporality,
            Histogram,
            HistogramDataPoint,
            Metric,
        )

        counts = [0] * (len(names.DURATION_BOUNDS) + 1)
        counts[0] += found.zeros
        for key, count in found.bins.items():
            seconds = value_of(key) / 1000
            counts[sum(seconds > bound for bound in names.DURATION_BOUNDS)] += count
        point = HistogramDataPoint(
            attributes=self._attributes(),
            start_time_unix_nano=self._began,
            time_unix_nano=time.time_ns(),
            count=found.count,
            sum=found.sum / 1000,
            bucket_counts=counts,
            explicit_bounds=names.DURATION_BOUNDS,
            min=found.low / 1000,
            max=found.high / 1000,
        )
        data = Histogram([point], AggregationTemporality.CUMULATIVE)
        return Metric(names.DURATION, "", "s", data)
