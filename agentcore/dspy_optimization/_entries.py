"""Everything an optimization logs to MLflow, as journal entries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentcore._json import jsonable
from agentcore.data import Dataset, Splits
from agentcore.dspy_optimization._plots import PlotsLogged, TrialPoint
from agentcore.tracking import Draft, Entries, MetricsLogged

if TYPE_CHECKING:
    from agentcore.data import Example
    from agentcore.dspy_optimization.models import OptimizationResult
    from agentcore.evaluation import Comparison, EvaluationReport, ExampleRecord, PerformanceMetrics

TRAINING_DATA = "training_data.json"
TEST_EXAMPLES = "test_examples.json"
VALIDATION_EXAMPLES = "validation_examples.json"
RESULT = "result.json"
ORIGINAL_MODEL = "baseline_model"
"""The program before the optimization, which the promotion gate compares with."""


@dataclass
class OptimizationEntries(Entries):
    """Builds the journal entries; docs/reference.md lists the metric and artifact names."""

    def performance(self, prefix: str, metrics: "PerformanceMetrics") -> list[Draft]:
        return self.metrics({prefix + name: value for name, value in metrics.model_dump().items()})

    def improvement(
        self,
        baseline: "PerformanceMetrics",
        optimized: "PerformanceMetrics",
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
            "cluster": data.cluster_field,
            "examples": [item.json for item in data],
            "types": data.types(),
        }
        parts: dict[str, Dataset] = {"training": data}
        if splits is not None:
            parts = {str(name): part for name, part in splits.parts.items()}
            content["splits"] = {
                name: {"digest": part.digest, "examples": [item.digest for item in part]}
                for name, part in parts.items()
            }
            content["inherited"] = dict(splits.inherited)
            content["example_digests"] = [item.digest for item in data]
        # A resumed run reads this back: ordinary words that happen to be passwords must stay.
        file = self.json(TRAINING_DATA, content, redactor=self.redactor.for_content())
        return [*self.inputs(parts), *file]

    def details(self, details: Mapping[str, Any]) -> list[Draft]:
        parameters = dict(details.get("parameters") or {})
        improvements = details.get("key_improvements") or ["No change was kept."]
        return [
            *self.json("algorithm_parameters.json", {"algorithm": details.get("algorithm"), **parameters}),
            *self.text("key_improvements.txt", "\n".join(improvements) + "\n"),
            *self.metrics({name: details.get(name) for name in ("iterations", "duration_seconds")}),
            *self.params({"algorithm": details.get("algorithm")}),
        ]

    def evaluation(
        self,
        test: Dataset,
        baseline: "EvaluationReport",
        optimized: "EvaluationReport",
    ) -> list[Draft]:
        pairs = [
            (test[before.index], before, after)
            for before, after in zip(baseline.records, optimized.records, strict=True)
        ]
        return self._examples(TEST_EXAMPLES, pairs, baseline.success_threshold)

    def validation(
        self,
        validation: Dataset,
        baseline: "Mapping[str, ExampleRecord]",
        optimized: "Mapping[str, ExampleRecord]",
        success_threshold: float,
    ) -> list[Draft]:
        """The validation examples that both programs have answered; their records come by example."""
        pairs = [
            (item, baseline[item.digest], optimized[item.digest])
            for item in validation
            if item.digest in baseline and item.digest in optimized
        ]
        return self._examples(VALIDATION_EXAMPLES, pairs, success_threshold)

    def _examples(
        self,
        path: str,
        pairs: "Sequence[tuple[Example, ExampleRecord, ExampleRecord]]",
        success_threshold: float,
    ) -> list[Draft]:
        """Both programs' answers by example, and the positions of those that flipped."""
        fixed, broken = [], []
        for position, (_, before, after) in enumerate(pairs):
            if before.score is None or after.score is None:
                continue
            if before.score < success_threshold <= after.score:
                fixed.append(position)
            elif after.score < success_threshold <= before.score:
                broken.append(position)
        rows = [
            {
                "inputs": jsonable(item.inputs),
                "labels": jsonable(item.labels),
                "baseline": before.as_dict(),
                "optimized": after.as_dict(),
            }
            for item, before, after in pairs
        ]
        content = {
            "success_threshold": success_threshold,
            "fixed": fixed,
            "broken": broken,
            "examples": rows,
        }
        return self.json(path, content)

    def result(self, result: "OptimizationResult") -> list[Draft]:
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
                **_quality(result),
                **_claims(result),
                "lm_calls": result.spend.calls,
                "total_tokens": result.spend.total_tokens,
                "cost_usd": result.spend.cost_usd,
            }
        )
        drafts += self.details(result.optimization_details)
        return drafts + self.json(RESULT, result.model_dump(mode="json"))

    def plots(
        self, trials: Sequence[TrialPoint], baseline: float, optimized: float, comparison: "Comparison"
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


def trial_metrics(trial: int, score: float, best: float) -> MetricsLogged:
    return MetricsLogged(metrics={"validation_score": score, "best_validation_score": best}, step=trial)


def _quality(result: "OptimizationResult") -> dict[str, float]:
    interval = result.quality_interval
    if interval is None:
        return {}
    return {"optimized_quality_low": interval.low, "optimized_quality_high": interval.high}


def _claims(result: "OptimizationResult") -> dict[str, float]:
    """Gain, interval and p-value of every objective; those of quality have names of their own."""
    return {
        f"{item.figure}_{name}": value
        for item in result.claims
        if item.figure != "quality_score"
        for name, value in (
            ("gain", item.gain),
            ("gain_low", item.interval.low),
            ("gain_high", item.interval.high),
            ("p_value", item.p_value),
        )
    }


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after
