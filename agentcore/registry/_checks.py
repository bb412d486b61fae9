"""The run's integrity, and checks that users add to the gate."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from agentcore._redaction import first_line
from agentcore._threads import run_in_thread
from agentcore.dspy_optimization import Candidate
from agentcore.errors import ConfigurationError
from agentcore.registry._criteria import Criterion, Look
from agentcore.registry._policy import GatePolicy

GROUP = "agentcore.gates"


@dataclass(frozen=True)
class GateContext:
    """What a user's own check receives."""

    agent: str
    candidate: Candidate
    look: Look
    policy: GatePolicy


GateCheck = Callable[[GateContext], Awaitable[Criterion]]


def gate_check(name: str, check: Callable[[GateContext], Any]) -> GateCheck:
    """A check from a function, sync or async, that returns a `Criterion`, a bool, or text: the reason for a
    failure, empty if it passed."""

    async def run(context: GateContext) -> Criterion:
        try:
            if inspect.iscoroutinefunction(check):
                found = await check(context)
            else:
                found = await run_in_thread(lambda: check(context))
        except Exception as error:
            raise ConfigurationError(
                f"gate check {name!r} raised {first_line(error)}. The look is paid for: mend the check and "
                "promote the same run again, which goes on with it"
            ) from error
        if isinstance(found, Criterion):
            return found
        if isinstance(found, str):
            return Criterion(name, "failed" if found else "passed", found or f"{name}: passed")
        if not isinstance(found, bool):
            raise ConfigurationError(
                f"gate check {name!r} returned {type(found).__name__}: return a Criterion, a bool or text"
            )
        return Criterion(name, "passed" if found else "failed", f"{name}: {'passed' if found else 'failed'}")

    return run


def installed_checks() -> list[GateCheck]:
    """The checks of the entry-point group `agentcore.gates`."""
    return [gate_check(entry.name, entry.load()) for entry in sorted(entry_points(group=GROUP), key=str)]


def at_least(result: Any, bounds: Mapping[str, float]) -> GateCheck:
    """A check that the metrics of a result of `mlflow.genai.evaluate` reach lower bounds.

    Args:
        result: has `.metrics`, such as `{"safety/mean": 0.98}`.
        bounds: by metric.
    """
    metrics = dict(result.metrics)

    def check(context: GateContext) -> Criterion:
        low = [
            f"{name} is {metrics[name]:g}, must be at least {bound:g}" if name in metrics else f"no {name}"
            for name, bound in bounds.items()
            if name not in metrics or not metrics[name] >= bound
        ]
        text = "; ".join(low) if low else ", ".join(f"{name} ≥ {bound:g}" for name, bound in bounds.items())
        figures = {name: float(metrics[name]) for name in bounds if name in metrics}
        return Criterion("mlflow.genai", "failed" if low else "passed", f"mlflow.genai: {text}", figures)

    return gate_check("mlflow.genai", check)


def integrity(candidate: Candidate, policy: GatePolicy) -> list[Criterion]:
    """What must hold before anything is spent."""
    run, problems = candidate.run, list(candidate.problems)
    if run.info.status != "FINISHED":
        problems.append(f"the run is {run.info.status}, not FINISHED")
    if candidate.unchanged:
        problems.append("the run kept the original program: there is nothing new to promote")
    if candidate.lm.model != candidate.recorded_lm:
        problems.append(
            f"the run was measured with the model {candidate.recorded_lm!r}, but the gate would use "
            f"{candidate.lm.model!r}: pass the run's model as lm= (--lm)"
        )
    missing = [name for name in policy.required_metrics if name not in run.data.metrics]
    if missing:
        problems.append(f"the run has no metric {', '.join(missing)}, which the policy requires")
    if policy.require_signature and not any(name.endswith(".sig") for name in candidate.digests):
        problems.append("the program is not signed: optimize again with AGENTCORE_SIGNING_KEY set")
    if problems:
        return [Criterion("integrity", "failed", f"integrity: {'; '.join(problems)}")]
    return [Criterion("integrity", "passed", "integrity: files, data and figures are as recorded")]
