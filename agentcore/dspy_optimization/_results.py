"""Reads back the result of a finished run."""

from pydantic import ValidationError

from agentcore._naming import local_id, short_id
from agentcore._threads import run_in_thread
from agentcore.dspy_optimization._entries import RESULT
from agentcore.dspy_optimization._events import STREAM_KIND, ResultRecorded
from agentcore.dspy_optimization.models import OptimizationResult
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ArtifactError, ConfigurationError


async def read_result(tracker: MLflowTracker, run_id: str) -> OptimizationResult:
    """From the journal if it has the run, else from MLflow's `result.json`; see
    `OptimizationPipeline.result`."""
    journal, delivery = await tracker.opened()
    stream = await run_in_thread(lambda: journal.resolve(run_id, destination=delivery.destination))
    if stream is not None and stream.kind == STREAM_KIND:
        key = stream.id
        recorded = await run_in_thread(lambda: journal.last(key, ResultRecorded))
        if isinstance(recorded, ResultRecorded):
            return _parsed(recorded.result, run_id, stream.tracking_id or local_id(key))
        if not stream.finished:
            raise ConfigurationError(
                f"run {run_id} has no result yet. Resume it: agentcore resume {short_id(key)}"
            )
    run = await tracker.find_run(run_id)
    if run.info.status != "FINISHED":
        raise ConfigurationError(f"run {run_id} has no result: it ended as {run.info.status}")
    return _parsed(await tracker.read_json(run.info.run_id, RESULT), run_id, run.info.run_id)


def _parsed(content: object, run_id: str, known_id: str) -> OptimizationResult:
    try:
        result = OptimizationResult.model_validate(content)
    except ValidationError as error:
        (first, *_) = error.errors(include_input=False, include_url=False)
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"the result of run {run_id} can't be read ({where}: {first['msg']}): another version "
            "of agentcore wrote it"
        ) from None
    return result.model_copy(update={"run_id": known_id})
