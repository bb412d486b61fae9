"""What a finished optimization offers for promotion, read back from MLflow and checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentcore._naming import short_id
from agentcore._threads import run_in_thread
from agentcore.data import Dataset, Splits, folded_digest
from agentcore.dspy_optimization._entries import ORIGINAL_MODEL, TRAINING_DATA, VALIDATION_EXAMPLES
from agentcore.dspy_optimization._figures import contradictions
from agentcore.dspy_optimization._fit import fitted
from agentcore.dspy_optimization._prepare import only_outputs
from agentcore.dspy_optimization._resume import recorded_data
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ArtifactError, ConfigurationError, DataError
from agentcore.evaluation import BUILTIN_METRICS, Metric, PerformanceMetrics, ScoredMetric, resolve_metric
from agentcore.lm import check_stored_name, resolve_lm
from agentcore.settings import Settings, is_trusted
from agentcore.tracking import (
    KEY_TAG,
    ModelLogged,
    digests_of,
    model_names,
    program_digests,
    program_state,
)

if TYPE_CHECKING:
    import dspy
    from mlflow.entities import Run

OPTIMIZED = "optimized_model"


@dataclass(frozen=True)
class Candidate:
    """The optimized program of a run, and what its measurement rested on.

    Attributes:
        original: the program before the optimization; None if the run has no copy of it.
        digests: sha256 of the program's files by name.
        model_id: of its LoggedModel.
        problems: contradictions in what the run recorded, and changes to it.
        validation_differences: optimized minus original score, by validation example.
    """

    run: "Run"
    program: "dspy.Module"
    original: "dspy.Module | None"
    digests: Mapping[str, str]
    model_id: str | None
    splits: Splits
    metric: ScoredMetric
    lm: "dspy.BaseLM"
    recorded_lm: str
    problems: tuple[str, ...]
    validation_differences: tuple[float, ...]

    @property
    def run_id(self) -> str:
        return str(self.run.info.run_id)

    @property
    def short_id(self) -> str:
        """The run's id as commands print it."""
        return short_id(self.run.data.tags.get(KEY_TAG) or self.run_id)

    @property
    def unchanged(self) -> bool:
        """Whether the optimization kept the original program."""
        return self.original is not None and program_state(self.original) == program_state(self.program)

    def demos(self) -> set[str]:
        """The folded digests of the inputs of the program's demonstrations."""
        fields = self.splits.test.input_fields
        found = [dict(demo) for item in self.program.predictors() for demo in item.demos]
        return {
            folded_digest({name: demo[name] for name in fields})
            for demo in found
            if all(name in demo for name in fields)
        }

    def test_set(self, data: Dataset) -> Dataset:
        """Examples from elsewhere, with values of the types that the program declares.

        Raises:
            DataError: they don't fit the program.
        """
        return fitted(self.program, data)


async def candidate_of(
    tracker: MLflowTracker,
    run: "Run",
    *,
    program: "dspy.Module" = None,
    metric: Metric | str | None = None,
    lm: "dspy.BaseLM | str | None" = None,
) -> Candidate:
    """Load what a run offers.

    Args:
        program: a fresh instance to load into, for a class that can't be imported.
        metric: default: the run's, if it is built in or of `AGENTCORE_TRUSTED_MODULES`.
        lm: default: AGENTCORE_LM, then the run's.

    Raises:
        ArtifactError: the run has no optimized program, or a file was changed.
        ConfigurationError: the metric or model named in MLflow can't be trusted.
    """
    run_id, params = run.info.run_id, run.data.params
    if OPTIMIZED not in model_names(run):
        raise ArtifactError(
            f"run {run_id[:8]} ({run.info.status}) has no optimized program to promote. "
            "List runs with: agentcore runs"
        )
    found = await tracker.load_model_artifact(run_id, OPTIMIZED, program=program)
    original = None
    if ORIGINAL_MODEL in model_names(run):
        original = await tracker.load_model_artifact(run_id, ORIGINAL_MODEL, program=program)
    content = await tracker.read_json(run_id, TRAINING_DATA)
    problems: list[str] = []

    def read() -> tuple[Splits, ScoredMetric, Any]:
        kind = type(found)
        data, splits = recorded_data(content, run_id, f"{kind.__module__}:{kind.__qualname__}")
        for name, digest in _digests(params).items():
            part = splits.parts.get(name) if name != "dataset" else data  # type: ignore[call-overload]
            if part is None or part.digest != digest:
                problems.append(f"{TRAINING_DATA} is not the {name} data that the run recorded")
        threshold = float(params.get("constraint.success_threshold", 0.5))
        scored = resolve_metric(_metric(metric, params), success_threshold=threshold)
        return splits, only_outputs(scored, found, data)[0], resolve_lm(_lm(lm, params))

    splits, scored, model = await run_in_thread(read)
    differences, changed = await _validation(tracker, run)
    problems += [*changed, *await _against_the_journal(tracker, run)]
    return Candidate(
        run=run,
        program=found,
        original=original,
        digests=program_digests(run, OPTIMIZED),
        model_id=await tracker.model_id(run_id, OPTIMIZED),
        splits=splits,
        metric=scored,
        lm=model,
        recorded_lm=params.get("lm", ""),
        problems=(*problems, *_contradictions(run)),
        validation_differences=differences,
    )


def _digests(params: Mapping[str, str]) -> dict[str, str]:
    names = ("dataset", "train", "validation", "test", "sealed")
    return {name: params[f"{name}_digest"] for name in names if f"{name}_digest" in params}


def _metric(given: Metric | str | None, params: Mapping[str, str]) -> Metric | str:
    if given is not None:
        return given
    name = params.get("metric", "exact_match")
    if name not in BUILTIN_METRICS and not is_trusted(name.partition(":")[0]):
        raise ConfigurationError(
            f"the run's metric is {name!r}, and anyone who can write to MLflow could have set that: pass it "
            "as metric= (--metric), or set AGENTCORE_TRUSTED_MODULES"
        )
    return name


def _lm(given: Any, params: Mapping[str, str]) -> Any:
    if given is None and Settings().lm is None:
        given = params.get("lm")
        check_stored_name(given)
    return given


def _contradictions(run: "Run") -> list[str]:
    """Whether the baseline that the caller reported contradicts the measured one."""
    metrics = run.data.metrics
    names = ("success_rate", "quality_score")
    both = [f"{prefix}{name}" for prefix in ("baseline_", "measured_baseline_") for name in names]
    if not any(name in metrics for name in both[2:]):
        return []
    missing = [name for name in both if name not in metrics]
    if missing:
        return [f"the run has no metric {', '.join(missing)}, but others of the baseline"]
    said, seen = (
        PerformanceMetrics(**{name: metrics[f"{prefix}{name}"] for name in names})
        for prefix in ("baseline_", "measured_baseline_")
    )
    return contradictions(said, seen, int(run.data.params.get("test_size", 1)))


async def _validation(tracker: MLflowTracker, run: "Run") -> tuple[tuple[float, ...], list[str]]:
    """The differences of the scores on validation, and what is wrong with their artifact."""
    try:
        content = await tracker.read_json(run.info.run_id, VALIDATION_EXAMPLES)
        rows = [(row["baseline"]["score"], row["optimized"]["score"]) for row in content["examples"]]
    except ArtifactError as error:
        recorded = VALIDATION_EXAMPLES in digests_of(run.data.tags)
        return (), [str(error)] if recorded else []
    except (KeyError, TypeError):
        return (), [f"{VALIDATION_EXAMPLES} has no scores of validation examples"]
    pairs = [(before, after) for before, after in rows if before is not None and after is not None]
    return tuple(after - before for before, after in pairs), []


async def _against_the_journal(tracker: MLflowTracker, run: "Run") -> list[str]:
    """Whether the program is the one that the journal has logged, if it still has the run: in MLflow, whoever
    may write can change files and digests alike."""
    journal, _ = await tracker.opened()
    run_id = str(run.info.run_id)

    def logged() -> dict[str, str] | None:
        stream = journal.resolve(run_id, exact=True)
        if stream is None:
            return None
        files = [
            entry.event.files
            for entry in journal.read(stream.id)
            if isinstance(entry.event, ModelLogged) and entry.event.name == OPTIMIZED
        ]
        return files[-1] if files else None

    files = await run_in_thread(logged)
    # The served model has no pickle.
    kept = {name: sha for name, sha in program_digests(run, OPTIMIZED).items() if not name.endswith(".pkl")}
    if files is None or files == kept:
        return []
    return ["the program's digests in MLflow are not those that the journal recorded: somebody changed them"]


async def sealed_rows(tracker: MLflowTracker, run_id: str) -> dict[str, Any]:
    """The sealed examples of a run as JSON, by their digest; empty if they can't be read."""
    try:
        content = await tracker.read_json(run_id, TRAINING_DATA)
        return await run_in_thread(
            lambda: {
                item.digest: item.json
                for item in recorded_data(content, run_id, "builtins:object")[1].sealed or ()
            }
        )
    except (ArtifactError, DataError, ConfigurationError):
        return {}
