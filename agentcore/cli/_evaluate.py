"""`agentcore evaluate`, `drift` and `canary`."""

import json
import math
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from agentcore.cli._console import counted, err, import_from_here, note, out, run
from agentcore.cli._data import Base, manager_of
from agentcore.cli._options import LM, Agent, AsJson, Concurrency, LMArguments, LMBaseURL, model_of
from agentcore.cli._tracking import tracking_config
from agentcore.errors import ConfigurationError

if TYPE_CHECKING:
    from agentcore.monitoring import AsyncModelEvaluator, DriftReport, EvaluationMetrics

T = TypeVar("T")

_SILENCE = 2.0
"""Seconds between lines of progress."""

Function = Annotated[
    str | None,
    typer.Option(
        "--func",
        metavar="MODULE:OBJECT",
        help="A function from dict to dict, a DSPy program, or name@alias [default: the agent's champion].",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(help="The field of the expected answer [default: the only one that is named like a label]."),
]
Prediction = Annotated[
    str | None,
    typer.Option(help="The field of the answer [default: the target's name, also without expected_]."),
]
Repeats = Annotated[int, typer.Option(min=1, help="How often to run each row.")]
Alert = Annotated[
    bool, typer.Option("--alert", help="Send an alert to AGENTCORE_ALERT_URLS, and a note when it is over.")
]
_SHARES = ("accuracy", "precision", "recall", "f1_score")
NoTracking = Annotated[bool, typer.Option("--no-tracking", help="Log no run.")]


def evaluate(
    agent: Agent,
    dataset: Annotated[str, typer.Option(help="A data set: NAME or NAME/VERSION.")],
    func: Function = None,
    target: Target = None,
    prediction: Prediction = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="METRIC=VALUE", help="Exit 1 if a metric is below; repeatable."),
    ] = None,
    maximum: Annotated[
        list[str] | None,
        typer.Option("--max", metavar="METRIC=VALUE", help="Exit 1 if a metric is above; repeatable."),
    ] = None,
    repeats: Repeats = 1,
    regression: Annotated[
        bool,
        typer.Option("--regression", help="Exit 1 if proven worse than the last run on these rows."),
    ] = False,
    alert: Alert = False,
    lm: LM = None,
    lm_base_url: LMBaseURL = None,
    lm_arg: LMArguments = None,
    max_concurrency: Concurrency = 8,
    base: Base = None,
    no_tracking: NoTracking = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate an agent on a data set. Exits with 1 if a metric is out of bounds."""
    bounds = [*_bounds(minimum, "--min"), *_bounds(maximum, "--max")]
    if no_tracking and (regression or alert):
        raise ConfigurationError(
            "--regression and --alert compare with earlier runs: leave out --no-tracking"
        )
    if alert:
        _alerts(agent).check()
    evaluator = _evaluator(agent, func, model_of(lm, lm_base_url, lm_arg), base, max_concurrency)
    name, _, version = dataset.partition("/")

    async def work() -> "EvaluationMetrics":
        wanted = target or await evaluator.target_of(dataset)
        found = await evaluator.evaluate_dataset(
            name, wanted, version or None, prediction, not no_tracking, repeats
        )
        if not no_tracking:
            await evaluator.flush_or_say()
        return found

    async def compare(found: "EvaluationMetrics") -> Any:
        compared = await evaluator.check_regression(found)
        if alert:
            await _alerts(agent).on_regression(compared, found.dataset)
        return compared

    found = _run(work(), evaluator)
    failed = _out_of_bounds(found, bounds)
    if not as_json:  # first: what was paid for must not get lost if MLflow is away
        _print(found, failed)
    compared = run(compare(found)) if regression or alert else None
    if as_json:
        told = None if compared is None else {**vars(compared), "regressed": compared.regressed}
        typer.echo(json.dumps({**found.as_dict(), "failed": failed, "regression": told}, indent=2))
    elif compared is not None:
        out.print(str(compared), markup=False, soft_wrap=True)
    elif regression:
        note("there is no earlier run on these rows and this target to compare with")
    if failed or (regression and compared is not None and compared.regressed):
        raise typer.Exit(1)


def drift(
    agent: Agent,
    baseline: Annotated[str, typer.Option(help="The data set to compare with: NAME or NAME/VERSION.")],
    dataset: Annotated[str, typer.Option(help="The current data: NAME or NAME/VERSION.")],
    func: Function = None,
    target: Target = None,
    prediction: Prediction = None,
    threshold: Annotated[float, typer.Option(min=0, help="How much worse a metric may get.")] = 0.05,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="Exit 1 also if only the inputs have changed.")
    ] = False,
    alert: Alert = False,
    lm: LM = None,
    lm_base_url: LMBaseURL = None,
    lm_arg: LMArguments = None,
    max_concurrency: Concurrency = 8,
    base: Base = None,
    no_tracking: NoTracking = False,
    as_json: AsJson = False,
) -> None:
    """Compare an agent on current data with a baseline. Exits with 1 on drift."""
    if alert:
        _alerts(agent).check()
    evaluator = _evaluator(agent, func, model_of(lm, lm_base_url, lm_arg), base, max_concurrency)

    async def work() -> "DriftReport":
        found = await evaluator.detect_drift(
            baseline, dataset, threshold, target, prediction_field=prediction, log_to_mlflow=not no_tracking
        )
        if not no_tracking:
            await evaluator.flush_or_say()
        return found

    found = _run(work(), evaluator)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _print_drift(found)
    if alert:
        run(_alerts(agent).on_drift(found))
    if found.has_drift or (inputs and found.has_input_drift):
        raise typer.Exit(1)


def canary(
    agent: Agent,
    dataset: Annotated[str, typer.Option(help="A data set: NAME or NAME/VERSION.")],
    func: Function = None,
    target: Target = None,
    prediction: Prediction = None,
    rows: Annotated[int, typer.Option(min=20, help="How many rows to keep.")] = 200,
    lm: LM = None,
    lm_base_url: LMBaseURL = None,
    lm_arg: LMArguments = None,
    max_concurrency: Concurrency = 8,
    base: Base = None,
) -> None:
    """Record what an agent answers now, so that drift can tell a changed model from changed inputs."""
    evaluator = _evaluator(agent, func, model_of(lm, lm_base_url, lm_arg), base, max_concurrency)
    name, _, version = dataset.partition("/")

    async def work() -> Any:
        wanted = target or await evaluator.target_of(dataset)
        return await evaluator.freeze_canary(
            name, wanted, rows, version=version or None, prediction_field=prediction
        )

    saved = _run(work(), evaluator)
    out.print(f"{saved.full_name}: the answers to {counted(saved.rows, 'row')} are recorded", soft_wrap=True)


def _evaluator(
    agent: str, func: str | None, lm: Any, base: str | None, max_concurrency: int
) -> "AsyncModelEvaluator":
    import_from_here()
    from agentcore.monitoring import AsyncModelEvaluator

    return AsyncModelEvaluator(
        agent,
        func,
        lm=lm,
        datasets=manager_of(base),
        config=tracking_config(),
        max_concurrency=max_concurrency,
        on_progress=_Progress(),
    )


class _Progress:
    """Tells on stderr how far an evaluation is, and where it was stopped."""

    def __init__(self) -> None:
        self.done, self.total = 0, 0
        self._next = time.monotonic() + _SILENCE

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if done < total and time.monotonic() >= self._next:
            self._next = time.monotonic() + _SILENCE
            err.print(f"  {done:,} of {total:,} rows …")


def _run(work: Coroutine[Any, Any, T], evaluator: "AsyncModelEvaluator") -> T:
    try:
        return run(work)
    except typer.Exit:
        progress = evaluator.on_progress
        if isinstance(progress, _Progress) and progress.done < progress.total:
            note(f"stopped after {progress.done:,} of {progress.total:,} rows: nothing was logged")
        raise


def _alerts(agent: str) -> Any:
    from agentcore.monitoring import AsyncAlerts

    return AsyncAlerts(agent)


def _bounds(given: list[str] | None, option: str) -> list[tuple[str, float, str]]:
    if not given:
        return []
    from agentcore.monitoring import FIGURES

    found: list[tuple[str, float, str]] = []
    for text in given or []:
        name, separator, value = text.partition("=")
        try:
            found.append((name.strip(), float(value), option))
        except ValueError:
            separator = ""
        if not separator or not name or math.isnan(found[-1][1]):
            raise ConfigurationError(f"{option} {text!r}: write METRIC=VALUE, such as accuracy=0.9")
        if name.strip() not in FIGURES:
            known = ", ".join(FIGURES)
            raise ConfigurationError(f"{option}: there is no metric {name.strip()!r}: use {known}")
        if name.strip() in _SHARES and not 0 <= found[-1][1] <= 1:
            raise ConfigurationError(f"{option} {text!r}: {name.strip()} is a share from 0 to 1")
    return found


def _out_of_bounds(found: "EvaluationMetrics", bounds: list[tuple[str, float, str]]) -> list[str]:
    return [
        f"{metric} is {_value(found, metric):.4g}, {'below' if side == '--min' else 'above'} {bound:g}"
        for metric, bound, side in bounds
        if (_value(found, metric) < bound if side == "--min" else _value(found, metric) > bound)
    ]


def _value(found: "EvaluationMetrics", metric: str) -> float:
    figures = found.figures()
    if metric not in figures:
        raise ConfigurationError(
            f"{metric!r} was not measured on {found.dataset} ({found.task}): use {', '.join(figures)}"
        )
    return figures[metric]


def _print(found: "EvaluationMetrics", failed: list[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from agentcore.monitoring import shown

    out.print(
        f"[bold]{escape(found.agent)}[/] on {escape(found.dataset)}: {counted(found.examples, 'row')}"
        + (f", {counted(found.failures, 'failure')}" if found.failures else "")
        + (f", {found.lm_failures} left out because the language model failed" if found.lm_failures else ""),
        soft_wrap=True,
    )
    table = Table()
    for column, side in (("metric", "left"), ("value", "right"), ("95% interval", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for name, value in found.figures().items():
        bounds = found.intervals.get(name)
        told = "" if bounds is None else f"{shown(name, bounds.low)} – {shown(name, bounds.high)}"
        table.add_row(name, shown(name, value), told)
    out.print(table)
    for line in found.first_errors:
        out.print(f"[red]error:[/] {escape(line)}", soft_wrap=True)
    for line in found.notes:
        note(line)
    if found.run_id is not None:
        out.print(
            f"run {found.run_id}; next: [bold]agentcore compare --agent {escape(found.agent)}[/]",
            soft_wrap=True,
        )
    for line in failed:
        out.print(f"[bold red]failed:[/] {line}", soft_wrap=True)


def _print_drift(found: "DriftReport") -> None:
    from rich.markup import escape
    from rich.table import Table

    from agentcore.monitoring import shown

    style = "bold red" if found.has_drift else "bold yellow" if found.has_input_drift else "bold green"
    out.print(f"[{style}]{escape(found.headline())}[/]", soft_wrap=True)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for column in ("metric", "baseline", "current", "worse by", "95% interval", "p", ""):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for item in found.metrics:
        table.add_row(
            item.name,
            shown(item.name, item.baseline),
            shown(item.name, item.current),
            f"{item.degradation:+.3f}",
            f"{item.interval.low:+.3f} – {item.interval.high:+.3f}",
            f"{item.p_value:.2g}",
            "[red]drift[/]" if item.drifted else "",
        )
    out.print()
    out.print(table)
    out.print()
    fields = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for column in ("field", "test", "effect", "p", "PSI", ""):
        fields.add_column(column, justify="left" if column in ("field", "test") else "right")
    for field in found.fields:
        fields.add_row(
            escape(field.name),
            field.test + (f" ({field.note})" if field.p_value is None else ""),
            f"{field.effect:.3f}",
            "" if field.p_value is None else f"{field.p_value:.2g}",
            "" if field.psi is None else f"{field.psi:.2f}",
            "[red]drift[/]" if field.drifted else "",
        )
    out.print(fields)
    out.print()
    if found.canary is None:
        note(
            "there is no canary, which would tell a changed model from changed inputs. Make one with: "
            "agentcore canary"
        )
    else:
        out.print(str(found.canary), markup=False, soft_wrap=True)
    if found.run_id is not None:
        out.print(f"run {found.run_id} in the experiment of the agent's evaluations", soft_wrap=True)
