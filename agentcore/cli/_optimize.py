"""`agentcore demo` and `agentcore optimize`."""

import contextlib
from typing import Annotated, Any

import typer

from agentcore.cli._arguments import objective_of, optimizer_settings, prices_of, slug
from agentcore.cli._console import LOCAL_TRACKING, err, out, run, tracking_config
from agentcore.errors import ConfigurationError, JournalError, RunFinishedError, TrackingError
from agentcore.settings import shown_uri

_DELIVERY_SECONDS = 60.0
_LAST_SECONDS = 1.0
"""What a Ctrl-C may still take."""

_DEMO_SETTINGS = {"auto": "light", "max_bootstrapped_demos": 4, "max_labeled_demos": 16}

Seed = Annotated[int, typer.Option(min=0, help="Of splits, search and resampling.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Examples in flight at once.")]
Price = Annotated[
    list[str] | None,
    typer.Option(help="model=input,output: USD per million tokens, before litellm's table; repeatable."),
]
Where = Annotated[str, typer.Option("--executor", help="Where the program runs: local or ray (RAY_ADDRESS).")]
Experiment = Annotated[
    str | None, typer.Option(help="MLflow experiment (default: MLFLOW_EXPERIMENT_NAME or dspy-optimization).")
]


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
    """Optimize a classifier of real data that needs no download, and no key or network either."""
    from agentcore.settings import Settings

    model = lm or Settings().lm or "offline/knn"
    _optimize(
        program=None,
        data=dataset,
        lm=model,
        request={
            "target": {"type": "component", "id": dataset},
            "optimizer_settings": {"miprov2": _DEMO_SETTINGS},
        },
        seed=seed,
        experiment=experiment,
    )


def optimize(
    program: Annotated[
        str,
        typer.Argument(
            help="package.module:object, a signature such as 'question -> answer', or 'auto' "
            "(built from the data's fields)."
        ),
    ],
    data: Annotated[str, typer.Option(help="Examples: .jsonl, .json, .csv, or a built-in data set.")],
    metric: Annotated[str, typer.Option(help="exact_match or package.module:function.")] = "exact_match",
    lm: Annotated[
        str | None, typer.Option(help="Such as openai/gpt-5-mini, or offline/knn [default: AGENTCORE_LM].")
    ] = None,
    prompt_lm: Annotated[
        str | None, typer.Option(help="Proposes instructions [default: AGENTCORE_PROMPT_LM, else --lm].")
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            help="miprov2, gepa, bootstrap_random_search, simba, copro, labeled_few_shot, or a third "
            "party's; repeatable: compared on the validation split [default: miprov2]."
        ),
    ] = None,
    auto: Annotated[
        str,
        typer.Option(
            help="How much to search: light, medium, heavy; none takes --set num_candidates and num_trials."
        ),
    ] = "light",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the optimizer, such as max_labeled_demos=8; of several, "
            "gepa.max_full_evals=4; repeatable.",
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="What must not change: a predictor, predictor.demos, predictor.instructions, demos or "
            "instructions; repeatable."
        ),
    ] = None,
    start_from: Annotated[
        str | None, typer.Option(metavar="RUN", help="Start from the program that another run optimized.")
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="Input fields, comma-separated [default: the program's].")
    ] = None,
    validation: Annotated[str | None, typer.Option(help="Validation examples (then --test too).")] = None,
    test: Annotated[str | None, typer.Option(help="Test examples (then --validation too).")] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="quality_score, success_rate, avg_cost or avg_latency_ms, with :weight; repeatable."
        ),
    ] = None,
    target_id: Annotated[
        str | None, typer.Option(help="What the run is called by [default: the program].")
    ] = None,
    target_type: Annotated[str, typer.Option(help="agent, workflow or component.")] = "component",
    max_time: Annotated[float, typer.Option(help="Seconds that the search may take.")] = 7200,
    max_lm_calls: Annotated[int | None, typer.Option(help="LM calls that the run may make.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens that the run may take.")] = None,
    max_cost_usd: Annotated[float | None, typer.Option(help="USD that the run may cost.")] = None,
    price: Price = None,
    max_error_rate: Annotated[float, typer.Option(help="Share of examples that may fail.")] = 0.1,
    max_concurrency: Concurrency = 16,
    executor: Where = "local",
    seed: Seed = 0,
    experiment: Experiment = None,
    once: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For jobs that are started again: an unfinished run of this name goes on, a finished one "
            "is only told.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only tell about what it would take: calls, tokens, cost, time.")
    ] = False,
    latency: Annotated[
        float | None, typer.Option(help="Seconds of an LM call, for --plan [default: 1.5].")
    ] = None,
) -> None:
    """Optimize PROGRAM on your examples and measure the gain on a held-out part of them."""
    optimizers = optimizer or ["miprov2"]
    settings = optimizer_settings(optimizers, auto, set_ or [])
    _optimize(
        program=None if program == "auto" else program,
        data=data,
        validation=validation,
        test=test,
        inputs=[name.strip() for name in inputs.split(",")] if inputs else None,
        metric=metric,
        lm=lm,
        prompt_lm=prompt_lm,
        request={
            "target": {"type": target_type, "id": target_id or slug(program)},
            "objectives": [objective_of(text) for text in objective or ["quality_score"]],
            "algorithms": optimizers,
            "optimizer_settings": settings,
            "freeze": freeze or [],
            "constraints": {
                "max_optimization_time": max_time,
                "max_lm_calls": max_lm_calls,
                "max_tokens": max_tokens,
                "max_cost_usd": max_cost_usd,
                "max_error_rate": max_error_rate,
            },
        },
        seed=seed,
        experiment=experiment,
        max_concurrency=max_concurrency,
        executor=executor,
        prices=prices_of(price),
        start_from=start_from,
        once=once,
        plan=plan,
        latency=latency,
    )


def _optimize(
    *,
    program: str | None,
    data: str,
    lm: str | None,
    request: dict[str, Any],
    seed: int,
    experiment: str | None,
    validation: str | None = None,
    test: str | None = None,
    inputs: list[str] | None = None,
    metric: str | None = None,
    prompt_lm: str | None = None,
    max_concurrency: int = 16,
    executor: str = "local",
    prices: dict[str, Any] | None = None,
    start_from: str | None = None,
    once: str | None = None,
    plan: bool = False,
    latency: float | None = None,
) -> None:
    config = tracking_config(experiment)
    where = (
        "the working directory's mlflow.db"
        if config.tracking_uri == LOCAL_TRACKING
        else shown_uri(config.tracking_uri)
    )
    if not plan:
        err.print(f"[bold]agentcore[/] · tracking in {where} · loading DSPy and MLflow …", soft_wrap=True)

    from pydantic import ValidationError

    from agentcore.cli._live import LiveView
    from agentcore.data import load_dataset
    from agentcore.dspy_optimization import OptimizationPipeline, OptimizationRequest
    from agentcore.settings import explain

    try:
        checked = OptimizationRequest.model_validate(request)
    except ValidationError as error:
        raise ConfigurationError(explain(error)) from None
    training: Any = load_dataset(data, input_fields=inputs) if inputs else data
    view = LiveView()
    given: Any = program if start_from is None else _optimized_program(config, start_from, program)
    pipeline = OptimizationPipeline(
        program=given,
        metric=metric,
        lm=lm,
        prompt_lm=prompt_lm,
        mlflow_config=config,
        max_concurrency=max_concurrency,
        executor=executor,
        on_event=view.event,
        on_progress=view.started,
        seed=seed,
        prices=prices,
        program_path=program if start_from and program and ":" in program else None,
    )
    if plan:
        from agentcore.cli._render import print_estimate

        asked = pipeline.plan(checked, training, validation_data=validation, test_data=test, latency=latency)
        print_estimate(run(asked), max_concurrency)
        return
    work = pipeline.run_optimization(
        checked, training_data=training, validation_data=validation, test_data=test, once=once
    )
    try:
        carry_out(pipeline, work, view, config)
    except RunFinishedError as done:
        from agentcore.tracking import MLflowTracker

        out.print(str(done), soft_wrap=True)
        # It may have died while MLflow was told.
        run(MLflowTracker(config).deliver_backlog(_DELIVERY_SECONDS))


def resume(
    run_id: Annotated[
        str,
        typer.Argument(metavar="RUN", help="MLflow's id, a local one or the optimization's, or its start."),
    ],
    lm: Annotated[str | None, typer.Option(help="The model, where the run was given an object.")] = None,
    price: Price = None,
    max_concurrency: Concurrency = 16,
    executor: Where = "local",
    experiment: Experiment = None,
) -> None:
    """Go on with an optimization that was killed, stopped, or failed: nothing is paid for twice."""
    from agentcore.cli._live import LiveView
    from agentcore.dspy_optimization import OptimizationPipeline

    config = tracking_config(experiment)
    view = LiveView()
    pipeline = OptimizationPipeline.from_journal(
        run_id,
        lm=lm,
        mlflow_config=config,
        max_concurrency=max_concurrency,
        executor=executor,
        prices=prices_of(price),
        on_event=view.event,
        on_progress=view.started,
    )
    carry_out(pipeline, pipeline.resume(run_id), view, config)


def carry_out(pipeline: Any, work: Any, view: Any, config: Any) -> None:
    """Run an optimization, deliver it, and print what came out."""
    from agentcore.cli._render import print_result
    from agentcore.tracking import limit_exit

    results: list[Any] = []
    waiting: list[str] = []

    async def run_and_deliver() -> None:
        results.append(await work)
        view.delivering()
        try:
            await pipeline.flush(_DELIVERY_SECONDS)
        except (TrackingError, JournalError) as error:
            waiting.append(str(error))
        with contextlib.suppress(JournalError):
            run_id = await pipeline.tracking_id(results[0].run_id)
            results.append(results[0].model_copy(update={"run_id": run_id}))

    limit_exit(None)  # what could be delivered is, above
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
            waiting.append("stopped while MLflow was told; agentcore sync delivers the rest")
        results[-1].warnings.extend(waiting)
        print_result(results[-1], shown_uri(config.tracking_uri))
    if stopped:
        raise stopped


def _say_stopped(view: Any, pipeline: Any) -> None:
    if not view.began:
        err.print("[yellow]stopped[/] before the run began")
        return
    best = view.progress.best_score
    kept = (
        f"; the best candidate so far ({best:.3f} on validation) is kept with it" if best is not None else ""
    )
    try:
        pipeline.sync.flush(_LAST_SECONDS)
        marked = "the run is marked KILLED"
    except (TrackingError, JournalError):
        marked = "the run waits in the journal, and the next agentcore command brings it to MLflow"
    short = view.optimization_id[:8]
    err.print(
        f"[yellow]stopped[/]: {marked}{kept}. Go on with it: agentcore resume {short} · "
        f"see it: agentcore show {short}",
        soft_wrap=True,
    )


def _optimized_program(config: Any, run_id: str, program: str | None) -> Any:
    from agentcore.cli._runs import find_run
    from agentcore.dspy_optimization import resolve_program
    from agentcore.tracking import MLflowTracker

    async def load() -> Any:
        tracker = MLflowTracker(config)
        known = await find_run(tracker, run_id)
        fresh = resolve_program(program)[0] if program is not None else None
        return await tracker.load_model_artifact(known.run_id, "optimized_model", program=fresh)

    return run(load())
