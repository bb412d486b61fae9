"""Runs an optimization from its first event to its delivery, and prints what came of it."""

import contextlib
from typing import TYPE_CHECKING, Any

import typer

from agentcore._naming import short_id
from agentcore.cli._console import err, run, this_command
from agentcore.errors import AgentCoreError, JournalError, TrackingError

if TYPE_CHECKING:
    from agentcore.dspy_optimization import OptimizationPipeline, OptimizationResult
    from agentcore.settings import MLflowConfig

DELIVERY_SECONDS = 60.0
_AFTER_FAILURE = 10.0
_LAST_SECONDS = 1.0
"""How long to keep delivering after Ctrl-C."""


def carry_out(pipeline: "OptimizationPipeline", work: Any, view: Any, config: "MLflowConfig") -> None:
    """Run an optimization, deliver it, and print the result."""
    from agentcore.cli._render import print_result
    from agentcore.settings import shown_uri
    from agentcore.tracking import limit_exit

    results: list[OptimizationResult] = []
    undelivered: list[str] = []

    async def run_and_deliver() -> None:
        try:
            results.append(await work)
        except AgentCoreError:
            with contextlib.suppress(TrackingError, JournalError):  # what ended the run is to be told
                await pipeline.flush(_AFTER_FAILURE)
            raise
        view.delivering()
        try:
            await pipeline.flush(DELIVERY_SECONDS)
        except (TrackingError, JournalError) as error:
            undelivered.append(str(error))
        with contextlib.suppress(JournalError):
            run_id = await pipeline.tracking_id(results[0].run_id)
            results.append(results[0].model_copy(update={"run_id": run_id}))

    limit_exit(None)  # everything that can be delivered is delivered above
    stopped: typer.Exit | None = None
    try:
        with view.running():
            run(run_and_deliver())
    except typer.Exit as end:
        stopped = end
    if not results:
        _say_stopped(view, pipeline)
    else:
        if stopped:
            undelivered.append("stopped during delivery to MLflow; agentcore sync delivers the rest")
        results[-1].warnings.extend(undelivered)
        print_result(results[-1], shown_uri(config.tracking_uri), pipeline.agent, pipeline.options.metric)
    if stopped:
        raise stopped


def _say_stopped(view: Any, pipeline: "OptimizationPipeline") -> None:
    if not view.began:
        err.print("[yellow]stopped[/] before the run began")
        return
    best = view.progress.best_score
    kept = (
        f"; the best candidate so far ({best:.3f} on validation) is saved with it" if best is not None else ""
    )
    try:
        pipeline.sync.flush(_LAST_SECONDS)
        marked = "the run is marked KILLED"
    except (TrackingError, JournalError):
        marked = "the run waits in the journal; the next agentcore command delivers it to MLflow"
    short = short_id(view.optimization_id)
    err.print(
        f"[yellow]stopped[/]: {marked}{kept}. Resume it: {this_command()} resume {short} · "
        f"see it: {this_command()} show {short}",
        soft_wrap=True,
    )
