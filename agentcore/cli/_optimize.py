"""`agentcore demo` and `optimize`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentcore.cli._carry_out import DELIVERY_SECONDS, carry_out
from agentcore.cli._console import err, import_from_here, out, run
from agentcore.cli._data import stored_or_file
from agentcore.cli._options import (
    LM,
    Concurrency,
    ExecutorName,
    Experiment,
    LMArguments,
    LMBaseURL,
    Price,
    Seed,
    model_of,
    objective_of,
    optimizer_settings,
    prices_of,
    slug,
)
from agentcore.cli._tracking import LOCAL_TRACKING, runs_config, tracking_config
from agentcore.errors import ConfigurationError, RunFinishedError

if TYPE_CHECKING:
    from agentcore.dspy_optimization import OptimizationPipeline
    from agentcore.settings import MLflowConfig

_DEMO_SETTINGS = {"auto": "light", "max_bootstrapped_demos": 4, "max_labeled_demos": 16}


@dataclass(frozen=True)
class _Data:
    """Where the examples are."""

    training: str
    validation: str | None = None
    test: str | None = None
    inputs: list[str] | None = None


@dataclass(frozen=True)
class _Job:
    """The parsed command line."""

    program: str | None
    data: _Data
    request: dict[str, Any]
    pipeline: dict[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline."""
    once: str | None = None


def demo(
    dataset: Annotated[str, typer.Option(help="iris, wine or breast_cancer.")] = "iris",
    lm: Annotated[
        str | None,
        typer.Option(
            help="Language model, such as openai/gpt-5-mini [default: AGENTCORE_LM, else offline/knn]."
        ),
    ] = None,
    seed: Seed = 0,
    experiment: Experiment = None,
) -> None:
    """Optimize a classifier on built-in real data; needs no download, API key or network."""
    from agentcore.settings import Settings

    model = lm or Settings().lm or "offline/knn"
    request = {
        "target": {"type": "component", "id": dataset},
        "optimizer_settings": {"miprov2": _DEMO_SETTINGS},
    }
    _optimize(_Job(None, _Data(dataset), request, {"lm": model, "seed": seed}), tracking_config(experiment))


def optimize(
    program: Annotated[
        str,
        typer.Argument(
            help="package.module:object, a signature such as 'question -> answer', or 'auto' "
            "(built from the data's fields)."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Examples: .jsonl, .json, .csv, a built-in data set, or NAME or NAME/VERSION of one in "
            "AGENTCORE_DATA."
        ),
    ],
    metric: Annotated[str, typer.Option(help="exact_match or package.module:function.")] = "exact_match",
    lm: LM = None,
    lm_base_url: LMBaseURL = None,
    lm_arg: LMArguments = None,
    prompt_lm: Annotated[
        str | None,
        typer.Option(
            help="Proposes instructions: a name or package.module:object [default: AGENTCORE_PROMPT_LM, else "
            "--lm]."
        ),
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            help="miprov2, gepa, bootstrap_random_search, simba, copro, labeled_few_shot, or an installed "
            "plugin; repeatable: several are compared on the validation split [default: miprov2]."
        ),
    ] = None,
    auto: Annotated[
        str,
        typer.Option(
            help="How much to search: light, medium or heavy; none uses --set num_candidates and num_trials."
        ),
    ] = "light",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the optimizer, such as max_labeled_demos=8; with several optimizers, "
            "gepa.max_full_evals=4; repeatable.",
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="Part to leave unchanged: a predictor, predictor.demos, predictor.instructions, demos or "
            "instructions; repeatable."
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Start from the optimized program of another run; its examples stay in their splits.",
        ),
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="Input fields, comma-separated [default: the program's].")
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            help="The agent to optimize: runs go to its development experiment, with the standard tags "
            "[default: AGENTCORE_AGENT]."
        ),
    ] = None,
    sealed: Annotated[
        int, typer.Option(min=0, help="Minimum number of examples to keep sealed for the gate.")
    ] = 0,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Field that names each example's cluster, such as a conversation; kept within one split."
        ),
    ] = None,
    split_seed: Annotated[int, typer.Option(help="Seed for splitting the examples.")] = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="How often to run both programs on each test example, uncached.")
    ] = 1,
    validation: Annotated[str | None, typer.Option(help="Validation examples (requires --test).")] = None,
    test: Annotated[str | None, typer.Option(help="Test examples (requires --validation).")] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="quality_score, success_rate, avg_cost or avg_latency_ms, with :weight; repeatable."
        ),
    ] = None,
    target_id: Annotated[str | None, typer.Option(help="Part of the run's name [default: program].")] = None,
    target_type: Annotated[str, typer.Option(help="agent, workflow or component.")] = "component",
    max_time: Annotated[float, typer.Option(help="Maximum seconds for the search.")] = 7200,
    max_lm_calls: Annotated[int | None, typer.Option(help="Maximum LM calls of the run.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens of the run.")] = None,
    max_cost_usd: Annotated[float | None, typer.Option(help="Maximum cost of the run in USD.")] = None,
    price: Price = None,
    max_error_rate: Annotated[float, typer.Option(help="Share of examples that may fail.")] = 0.1,
    max_concurrency: Concurrency = 16,
    executor: ExecutorName = "local",
    seed: Seed = 0,
    experiment: Experiment = None,
    once: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For jobs that may be restarted: an unfinished run of this name is resumed, a finished "
            "run is reported, not repeated.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Estimate LM calls, tokens, cost and time, then exit.")
    ] = False,
    latency: Annotated[
        float | None, typer.Option(help="Seconds per LM call, for --plan [default: 1.5].")
    ] = None,
) -> None:
    """Optimize PROGRAM on your examples and measure the gain on a held-out test split."""
    import_from_here()
    optimizers = optimizer or ["miprov2"]
    request = {
        "target": {"type": target_type, "id": target_id or slug(program)},
        "objectives": [objective_of(text) for text in objective or ["quality_score"]],
        "algorithms": optimizers,
        "optimizer_settings": optimizer_settings(optimizers, auto, set_ or []),
        "freeze": freeze or [],
        "constraints": {
            "max_optimization_time": max_time,
            "max_lm_calls": max_lm_calls,
            "max_tokens": max_tokens,
            "max_cost_usd": max_cost_usd,
            "max_error_rate": max_error_rate,
        },
    }
    pipeline = {
        "metric": metric,
        "lm": model_of(lm, lm_base_url, lm_arg),
        "prompt_lm": model_of(prompt_lm),
        "max_concurrency": max_concurrency,
        "executor": executor,
        "seed": seed,
        "split_seed": split_seed,
        "cluster": cluster,
        "repeats": repeats,
        "start_from": start_from,
        "agent": agent,
        "sealed": sealed,
        "prices": prices_of(price),
    }
    fields = [name.strip() for name in inputs.split(",")] if inputs else None
    examples = _Data(data, validation, test, fields)
    job = _Job(None if program == "auto" else program, examples, request, pipeline, once)
    config = runs_config(experiment, agent)
    if plan:
        _plan(job, config, latency)
    else:
        _optimize(job, config)


def _optimize(job: _Job, config: "MLflowConfig") -> None:
    from agentcore.settings import shown_uri

    local = config.tracking_uri == LOCAL_TRACKING
    where = "the working directory's mlflow.db" if local else shown_uri(config.tracking_uri)
    err.print(f"[bold]agentcore[/] · tracking in {where} · loading DSPy and MLflow …", soft_wrap=True)

    from agentcore.cli._live import LiveView

    view = LiveView()
    request, training = _checked(job)
    pipeline = _pipeline(job, config, on_event=view.event, on_progress=view.started)
    work = pipeline.run_optimization(
        request,
        training_data=training,
        validation_data=stored_or_file(job.data.validation),
        test_data=stored_or_file(job.data.test),
        once=job.once,
    )
    try:
        carry_out(pipeline, work, view, config)
    except RunFinishedError as done:
        from agentcore.dspy_optimization import MLflowTracker

        out.print(str(done), soft_wrap=True)
        # Its process may have died before MLflow had everything.
        run(MLflowTracker(config).deliver_backlog(DELIVERY_SECONDS))


def _plan(job: _Job, config: "MLflowConfig", latency: float | None) -> None:
    from agentcore.cli._render import print_estimate

    request, training = _checked(job)
    pipeline = _pipeline(job, config)
    asked = pipeline.plan(
        request,
        training,
        validation_data=stored_or_file(job.data.validation),
        test_data=stored_or_file(job.data.test),
        latency=latency,
    )
    print_estimate(run(asked), pipeline.options.max_concurrency)


def _checked(job: _Job) -> tuple[Any, Any]:
    """The request and the examples."""
    from pydantic import ValidationError

    from agentcore.data import load_dataset
    from agentcore.dspy_optimization import OptimizationRequest
    from agentcore.settings import explain

    try:
        request = OptimizationRequest.model_validate(job.request)
    except ValidationError as error:
        raise ConfigurationError(explain(error)) from None
    training = stored_or_file(job.data.training)
    inputs = job.data.inputs
    return request, load_dataset(training, input_fields=inputs) if inputs else training


def _pipeline(job: _Job, config: "MLflowConfig", **listeners: Any) -> "OptimizationPipeline":
    from agentcore.dspy_optimization import OptimizationPipeline

    return OptimizationPipeline(job.program, mlflow_config=config, **job.pipeline, **listeners)
