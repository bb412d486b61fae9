"""`agentcore resume`."""

from typing import TYPE_CHECKING, Annotated

import typer

from agentcore.cli._carry_out import carry_out
from agentcore.cli._console import import_from_here
from agentcore.cli._options import (
    LM,
    AgentRuns,
    Concurrency,
    ExecutorName,
    Experiment,
    LMArguments,
    LMBaseURL,
    Price,
    model_of,
    prices_of,
)
from agentcore.cli._tracking import runs_config
from agentcore.errors import ConfigurationError

if TYPE_CHECKING:
    from agentcore.settings import MLflowConfig


def resume(
    run_id: Annotated[
        str,
        typer.Argument(metavar="RUN", help="Run id, a unique prefix of it, or 'latest'."),
    ],
    lm: LM = None,
    lm_base_url: LMBaseURL = None,
    lm_arg: LMArguments = None,
    prompt_lm: Annotated[
        str | None, typer.Option(help="The model that proposes instructions, if the run used an LM object.")
    ] = None,
    price: Price = None,
    max_concurrency: Concurrency = 16,
    executor: ExecutorName = "local",
    experiment: Experiment = None,
    agent: AgentRuns = None,
) -> None:
    """Resume an optimization that was killed, stopped or failed; nothing is paid for twice."""
    import_from_here()
    from agentcore.cli._live import LiveView
    from agentcore.dspy_optimization import OptimizationPipeline, recorded_lm

    config = runs_config(experiment, agent)
    view = LiveView()
    if run_id == "latest":
        run_id = _latest_resumable(config)
    pipeline = OptimizationPipeline.from_journal(
        run_id,
        prompt_lm=model_of(prompt_lm),
        lm=model_of(lm or recorded_lm(run_id) if lm_base_url or lm_arg else lm, lm_base_url, lm_arg),
        mlflow_config=config,
        max_concurrency=max_concurrency,
        executor=executor,
        prices=prices_of(price),
        on_event=view.event,
        on_progress=view.started,
    )
    carry_out(pipeline, pipeline.resume(run_id), view, config)


def _latest_resumable(config: "MLflowConfig") -> str:
    from agentcore.dspy_optimization import resumable_runs
    from agentcore.journal import open_journal
    from agentcore.tracking import destination_of

    journal = open_journal()
    found = resumable_runs(journal, journal.streams(destination_of(config)))
    if not found:
        raise ConfigurationError("there is no run to resume. List all with: agentcore runs")
    return found[0].id
