"""From what is logged to entries of the journal: checked, without secrets, cut where MLflow would cut."""

import getpass
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from agentcore._version import __version__
from agentcore.data import Dataset, Splits
from agentcore.errors import ArtifactError, ConfigurationError, environment_secrets, redact
from agentcore.evaluation import Comparison, EvaluationReport, PerformanceMetrics
from agentcore.journal import (
    ArtifactLogged,
    DatasetUsed,
    InputsLogged,
    MetricsLogged,
    ParamsLogged,
    PlotsLogged,
    RunCreated,
    TagsSet,
    TrackingEvent,
    TrialPoint,
)
from agentcore.settings import MLflowConfig
from agentcore.tracking._requests import KEY_TAG

_MAX_PARAM = 6000
_MAX_TAG = 8000
_MAX_NAME = 200
"""Bytes; file systems take 255, and stores of artifacts add to it."""
DIGEST_TAG = "agentcore.sha256."
"""Followed by an artifact's path, holds its digest, in another store than the artifact."""


class _Target(Protocol):
    @property
    def type(self) -> str: ...
    @property
    def id(self) -> str: ...


class RunRequest(Protocol):
    """What a run is started for: an `OptimizationRequest`, or anything with a `target`."""

    @property
    def target(self) -> _Target: ...


@dataclass(frozen=True)
class File:
    """An artifact to be: its content goes to the journal's payloads before its entry to the journal."""

    path: str
    content: bytes


Draft = TrackingEvent | File


@dataclass
class Entries:
    """Makes entries; `secrets` are kept out of all of them, besides the values of secret environment
    variables."""

    secrets: list[str] = field(default_factory=list)
    max_bytes: int = 256 * 2**20

    def run_created(
        self,
        config: MLflowConfig,
        key: str,
        request: RunRequest,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> RunCreated:
        """The entry of a run that is to be made, with `key` for its client key."""
        target = request.target
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        all_tags = {
            "mlflow.user": _user(),
            "mlflow.source.name": "agentcore",
            "mlflow.source.type": "LOCAL",
            "target_type": target.type,
            "target_id": target.id,
            "environment": "development",
            "version": __version__,
            **(tags or {}),
            KEY_TAG: key,
        }
        return RunCreated(
            name=self.clean(run_name or f"opt_{target.type}_{target.id}_{stamp}", 250),
            tags={name: self.clean(value, _MAX_TAG) for name, value in all_tags.items()},
            experiment=config.experiment_name,
            artifact_location=config.artifact_location,
        )

    def metrics(self, values: Mapping[str, float | None], step: int = 0) -> list[Draft]:
        """None (unknown) is left out; NaN and infinity raise `ConfigurationError`."""
        known = {name: float(value) for name, value in values.items() if value is not None}
        bad = [name for name, value in known.items() if not math.isfinite(value)]
        if bad:
            raise ConfigurationError(f"metrics must be finite numbers: {', '.join(bad)}")
        return [MetricsLogged(metrics=known, step=step)] if known else []

    def params(self, values: Mapping[str, Any]) -> list[Draft]:
        found = {key: self.clean(value, _MAX_PARAM) for key, value in values.items() if value is not None}
        return [ParamsLogged(params=found)] if found else []

    def tags(self, values: Mapping[str, Any]) -> list[Draft]:
        found = {key: self.clean(value, _MAX_TAG) for key, value in values.items()}
        return [TagsSet(tags=found)] if found else []

    def clean(self, value: Any, limit: int) -> str:
        """Text without secrets, cut where MLflow would cut it without a word."""
        # A lone surrogate, which a model may answer with, is no UTF-8.
        text = redact(str(value), self.secrets).encode("utf-8", "backslashreplace").decode()
        return text if len(text) <= limit else text[: limit - 1] + "…"

    def text(self, path: str, text: str) -> list[Draft]:
        content = redact(text, self.secrets).encode("utf-8", "backslashreplace")
        return self._file(path, content)

    def json(self, path: str, content: Any) -> list[Draft]:
        return self.text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str))

    def file(self, path: str, content: bytes) -> list[Draft]:
        """A file of any kind. Text is redacted.

        Raises:
            ArtifactError: it is too large, or binary and holds a secret.
        """
        try:
            return self.text(path, content.decode())
        except UnicodeDecodeError:
            for secret in {*self.secrets, *environment_secrets()}:
                if len(secret) >= 8 and secret.encode() in content:
                    raise ArtifactError(f"artifact {path} holds a secret: it is not logged") from None
            return self._file(path, content)

    def written(self, path: str, content: bytes) -> list[Draft]:
        """A file that was made without secrets."""
        return self._file(path, content)

    def _file(self, path: str, content: bytes) -> list[Draft]:
        parts = path.split("/")
        if any(part in ("", ".", "..") or len(part.encode()) > _MAX_NAME or "\0" in part for part in parts):
            raise ConfigurationError(
                f"artifact path {path[:80]!r}: use a relative path without '..', "
                f"each part of at most {_MAX_NAME} bytes"
            )
        if len(content) > self.max_bytes:
            raise ArtifactError(
                f"artifact {path} has {len(content) / 2**20:.3g} MiB, the limit is "
                f"{self.max_bytes / 2**20:.3g}: make it smaller, or set AGENTCORE_MAX_ARTIFACT_MB"
            )
        return [File(path, content)]

    # What an optimization leaves

    def performance(self, prefix: str, metrics: PerformanceMetrics) -> list[Draft]:
        return self.metrics({prefix + name: value for name, value in metrics.model_dump().items()})

    def improvement(
        self,
        baseline: PerformanceMetrics,
        optimized: PerformanceMetrics,
        improvement_percentage: float,
        statistical_significance: float,
    ) -> list[Draft]:
        return self.metrics(
            {
                "success_rate_improvement": optimized.success_rate - baseline.success_rate,
                "quality_improvement": optimized.quality_score - baseline.quality_score,
                "cost_reduction": _difference(baseline.avg_cost, optimized.avg_cost),
                "latency_reduction_ms": _difference(baseline.avg_latency_ms, optimized.avg_latency_ms),
                "improvement_percentage": improvement_percentage,
                "statistical_significance": statistical_significance,
            }
        )

    def training_data(self, data: Dataset, splits: Splits | None) -> list[Draft]:
        content: dict[str, Any] = {
            "name": data.name,
            "digest": data.digest,
            "input_fields": list(data.input_fields),
            "description": data.description,
            "examples": data.rows(),
        }
        parts: dict[str, Dataset] = {"training": data}
        if splits is not None:
            parts = splits._asdict()
            content["splits"] = {
                name: {"digest": part.digest, "examples": [item.digest for item in part]}
                for name, part in parts.items()
            }
            content["example_digests"] = [item.digest for item in data]
        used = [
            DatasetUsed(name=part.name, digest=part.digest, rows=len(part), context=context)
            for context, part in parts.items()
        ]
        return [InputsLogged(datasets=used), *self.json("training_data.json", content)]

    def details(self, details: Mapping[str, Any]) -> list[Draft]:
        parameters = dict(details.get("parameters") or {})
        improvements = details.get("key_improvements") or ["No change was kept."]
        return [
            *self.json("algorithm_parameters.json", {"algorithm": details.get("algorithm"), **parameters}),
            *self.text("key_improvements.txt", "\n".join(improvements) + "\n"),
            *self.metrics({name: details.get(name) for name in ("iterations", "duration_seconds")}),
            *self.params(
                {
                    "algorithm": details.get("algorithm"),
                    "optimization_time": details.get("duration_seconds"),
                }
            ),
        ]

    def evaluation(
        self,
        test: Dataset,
        baseline: EvaluationReport,
        optimized: EvaluationReport,
        comparison: Comparison,
    ) -> list[Draft]:
        rows = [
            {
                "inputs": test[before.index].inputs,
                "labels": test[before.index].labels,
                "baseline": before.as_dict(),
                "optimized": after.as_dict(),
            }
            for before, after in zip(baseline.records, optimized.records, strict=True)
        ]
        content = {
            "success_threshold": baseline.success_threshold,
            "fixed": list(comparison.fixed),
            "broken": list(comparison.broken),
            "examples": rows,
        }
        return self.json("test_examples.json", content)

    def result(self, result: Any) -> list[Draft]:
        drafts = self.performance("baseline_", result.baseline_performance)
        if result.measured_baseline != result.baseline_performance:
            drafts += self.performance("measured_baseline_", result.measured_baseline)
        drafts += self.performance("optimized_", result.optimized_performance)
        drafts += self.improvement(
            result.measured_baseline,
            result.optimized_performance,
            result.improvement_percentage,
            result.statistical_significance,
        )
        drafts += self.metrics(
            {
                "improvement_low": result.interval[0],
                "improvement_high": result.interval[1],
                "smallest_detectable_gain": result.smallest_detectable_gain,
                "lm_calls": result.spend.calls,
                "total_tokens": result.spend.total_tokens,
                "cost_usd": result.spend.cost_usd,
            }
        )
        return drafts + self.details(result.optimization_details)

    def trial(self, trial: int, score: float, best: float) -> list[TrackingEvent]:
        return [MetricsLogged(metrics={"trial_score": score, "best_score": best}, step=trial)]

    def plots(
        self, trials: Sequence[TrialPoint], baseline: float, optimized: float, comparison: Comparison
    ) -> list[Draft]:
        return [
            PlotsLogged(
                trials=list(trials),
                baseline=baseline,
                optimized=optimized,
                interval=comparison.interval,
                p_value=comparison.p_value,
                examples=comparison.examples,
            )
        ]


def stored(draft: File, sha256: str) -> list[TrackingEvent]:
    """The entries of an artifact whose content is in the journal."""
    return [
        ArtifactLogged(path=draft.path, sha256=sha256, size=len(draft.content)),
        TagsSet(tags={DIGEST_TAG + draft.path: sha256}),
    ]


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
