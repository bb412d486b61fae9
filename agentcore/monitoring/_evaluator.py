"""`ModelEvaluator`: any agent on a data set, with a run that records what was measured."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentcore._redaction import first_line
from agentcore._sync import SyncTwin, blocking
from agentcore._threads import run_in_thread
from agentcore.data import DatasetManager, StoredDataset, current_run
from agentcore.errors import ConfigurationError, DataError, TrackingError
from agentcore.lm import described
from agentcore.monitoring._agents import Agent, AgentFunction
from agentcore.monitoring._canary import Canary, canary_name, freeze, frozen
from agentcore.monitoring._drift import DriftReport, drift_between
from agentcore.monitoring._measure import Data, Progress, Question, measure_agent
from agentcore.monitoring._models import EvaluationMetrics
from agentcore.monitoring._quality import Task
from agentcore.monitoring._recorded import EvaluationRuns, Regression
from agentcore.settings import MLflowConfig, Settings
from agentcore.tracking import Experiments

_logger = logging.getLogger("agentcore")


class AsyncModelEvaluator:
    """`ModelEvaluator`, awaited.

    Args:
        agent_name: its name, also that of its experiments.
        agent_func: a function, sync or async, from dict to dict; a `dspy.Module`; `package.module:object`; or
            `name@champion`. Default: the agent's champion.
        lm: the language model for a DSPy program; default: `AGENTCORE_LM`, else `dspy.settings.lm`.
        datasets: where data sets are; default: `AGENTCORE_DATA`.
        config: the MLflow server; default: from the environment.
        max_concurrency: rows in flight at once.
        on_progress: called in the event loop with the number of rows done and their total.
        tags: of its runs.
    """

    def __init__(
        self,
        agent_name: str,
        agent_func: "AgentFunction | str | Any" = None,
        *,
        lm: Any = None,
        datasets: DatasetManager | None = None,
        config: MLflowConfig | None = None,
        max_concurrency: int = 8,
        on_progress: Progress | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        if max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency must be at least 1, not {max_concurrency}")
        self.experiments = Experiments(agent_name, config)
        self.agent_name = self.experiments.agent
        self.agent = Agent(f"{agent_name}@champion" if agent_func is None else agent_func, lm, config)
        self.datasets = datasets or DatasetManager(Settings().data)
        self.max_concurrency = max_concurrency
        self.on_progress = on_progress
        self.runs = EvaluationRuns(self.experiments, dict(tags or {}))

    async def evaluate_dataset(
        self,
        dataset_name: str,
        target_field: str,
        version: str | None = None,
        prediction_field: str | None = None,
        log_to_mlflow: bool = True,
        repeats: int = 1,
        *,
        task: Task | None = None,
    ) -> EvaluationMetrics:
        """Run the agent on every row and compare its answers with the target. The agent doesn't get the
        target.

        Args:
            prediction_field: the field of the answer; default: the target's name, also without `expected_`
                and the like, or the only field of the answer.
            log_to_mlflow: log a run to the agent's evaluation experiment.
            repeats: how often to run each row, without DSPy's cache if more than once.
            task: classes, numbers or text; default: from the targets.

        Raises:
            DataError: there is no such data set, a row without a target, or no answer with the field.
            EvaluationError: the agent failed on every row.
            LMUnavailableError: the language model failed on more than half of the rows.
        """
        data = await self._data(dataset_name, version)
        question = _question(target_field, prediction_field, task, repeats)
        (found,) = await self._measure([data], question)
        if not log_to_mlflow:
            return found
        return replace(found, run_id=await self.runs.log(found, await self._model()))

    async def detect_drift(
        self,
        baseline_dataset: str,
        current_dataset: str,
        threshold: float = 0.05,
        target_field: str | None = None,
        *,
        prediction_field: str | None = None,
        canary: str | None = None,
        log_to_mlflow: bool = True,
        repeats: int = 1,
    ) -> DriftReport:
        """Compare the agent on two data sets, and the data sets themselves; see `detect_drift`.

        Args:
            baseline_dataset, current_dataset: names, or `name/version`.
            threshold: how much worse a figure may get, as a difference.
            target_field: default: the only field of both whose name says that it is a label, such as
                `expected_outcome`.
            canary: the name of a data set that `freeze_canary` made; default: the agent's, if it has one.
        """
        if not 0 <= threshold < 1:
            raise ConfigurationError(f"threshold is a loss from 0 to below 1, not {threshold!r}")
        sets = [await self._named(name) for name in (baseline_dataset, current_dataset)]
        target = target_field or _target(sets)
        question = _question(target, prediction_field, None, repeats)
        before, after = [await _read(item) for item in sets]
        frozen_canary = await self._canary(canary, target)
        parts = [before, after, *([frozen_canary.data] if frozen_canary else [])]
        measured = await self._measure(parts, question)
        report = await run_in_thread(
            lambda: drift_between(
                measured[0],
                measured[1],
                before.rows,
                after.rows,
                threshold=threshold,
                canary=frozen_canary.compared(measured[2]) if frozen_canary else None,
            )
        )
        if not log_to_mlflow:
            return report
        return replace(report, run_id=await self.runs.log_drift(report, await self._model()))

    async def freeze_canary(
        self,
        dataset_name: str,
        target_field: str,
        rows: int = 200,
        *,
        version: str | None = None,
        prediction_field: str | None = None,
    ) -> StoredDataset:
        """Record what the agent answers now on a few rows, as the data set `{agent}_canary`. `detect_drift`
        asks the same again: if the answers differ, the model has changed, whatever the current data are.

        Each row is run twice, so that an agent that doesn't always answer the same isn't taken for a changed
        one.
        """
        data = await self._data(dataset_name, version)
        chosen = replace(data, rows=list(data.rows[:rows]))
        question = _question(target_field, prediction_field, None, 1)
        first, second = [(await self._measure([chosen], question))[0] for _ in range(2)]
        content, lineage = freeze(first, second, data, target_field)
        name = canary_name(self.agent_name)
        return await run_in_thread(
            lambda: self.datasets.save_dataset(
                content,
                name,
                f"answers of {self.agent_name} on {data.name}",
                lineage=lineage,
                personal=data.personal,
            )
        )

    async def check_regression(
        self, metrics: EvaluationMetrics, threshold: float = 0.05
    ) -> Regression | None:
        """Compare an evaluation with the last earlier one of the same rows, by the paired test; None if there
        is none.

        Raises:
            TrackingError: MLflow can't be reached.
        """
        return await self.runs.regression(metrics, threshold)

    async def target_of(self, dataset_name: str) -> str:
        """The field of a data set (`name` or `name/version`) that is a label by its name.

        Raises:
            DataError: there is none, or several.
        """
        return _target([await self._named(dataset_name)])

    async def flush_or_say(self, timeout: float = 60.0) -> None:  # noqa: ASYNC109
        """Wait until everything logged is in MLflow; if it can't be, log one line that it waits."""
        try:
            await self.flush(timeout)
        except TrackingError as error:
            _logger.warning(
                "the run waits in the journal; deliver with: agentcore sync (%s)", first_line(error)
            )

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until everything logged is in MLflow; see `RunTracker.flush`."""
        await self.runs.tracker.flush(timeout)

    # How

    async def _measure(self, parts: Sequence[Data], question: Question) -> list[EvaluationMetrics]:
        return await measure_agent(
            self.agent,
            self.agent_name,
            parts,
            question,
            max_concurrency=self.max_concurrency,
            on_progress=self.on_progress,
        )

    async def _data(self, name: str, version: str | None) -> Data:
        found = await run_in_thread(lambda: self.datasets.load_dataset(name, version))
        return await _read(found)

    async def _named(self, name: str) -> StoredDataset:
        dataset, _, version = name.partition("/")
        return await run_in_thread(lambda: self.datasets.load_dataset(dataset, version or None))

    async def _canary(self, name: str | None, target: str) -> Canary | None:
        wanted = name or canary_name(self.agent_name)
        if name is None and not await run_in_thread(lambda: self.datasets.exists(wanted)):
            return None
        found = await run_in_thread(lambda: self.datasets.load_dataset(wanted))
        return await run_in_thread(lambda: frozen(found, target))

    async def _model(self) -> str:
        return described(await self.agent.lm())


async def _read(data: StoredDataset) -> Data:
    return Data(data.full_name, data.digest, await run_in_thread(data.to_list), frozenset(data.personal))


def _question(target: str, prediction: str | None, task: Task | None, repeats: int) -> Question:
    if repeats < 1:
        raise ConfigurationError(f"repeats must be at least 1, not {repeats}")
    return Question(target, prediction, task, repeats)


_LABELS = ("expected_", "target", "label", "gold", "true_", "answer", "outcome")


def _target(sets: Sequence[StoredDataset]) -> str:
    """The field of both data sets that is a label by its name."""
    both = [name for name in sets[0].fields if all(name in item.fields for item in sets)]
    for mark in _LABELS:
        found = [name for name in both if name.startswith(mark)]
        if len(found) == 1:
            return found[0]
    told = "; ".join(f"{item.full_name} has {', '.join(item.fields)}" for item in sets)
    raise DataError(
        f"which field is the expected answer? Name it with target_field (--target), one that "
        f"{'both data sets have' if len(sets) > 1 else 'every row has'}. {told}"
    )


class ModelEvaluator(SyncTwin):
    """Evaluates any agent on data sets, and detects drift. Blocking; safe in any thread and inside a running
    event loop. `.aio` is the awaitable twin.

    Args:
        agent_name, agent_func: see `AsyncModelEvaluator`.
        options: see `AsyncModelEvaluator`.
    """

    _target: AsyncModelEvaluator

    def __init__(self, agent_name: str, agent_func: Any = None, **options: Any) -> None:
        super().__init__(AsyncModelEvaluator(agent_name, agent_func, **options), carry=[current_run])

    @property
    def aio(self) -> AsyncModelEvaluator:
        """The same, awaited."""
        return self._target

    evaluate_dataset = blocking(AsyncModelEvaluator.evaluate_dataset)
    detect_drift = blocking(AsyncModelEvaluator.detect_drift)
    freeze_canary = blocking(AsyncModelEvaluator.freeze_canary)
    check_regression = blocking(AsyncModelEvaluator.check_regression)
    flush = blocking(AsyncModelEvaluator.flush)


def detect_drift(
    baseline_dataset: str,
    current_dataset: str,
    threshold: float = 0.05,
    *,
    agent_name: str,
    agent_func: Any = None,
    target_field: str | None = None,
    log_to_mlflow: bool = True,
    **options: Any,
) -> DriftReport:
    """Whether an agent does worse on current data than on a baseline, and whether the data have changed.

    Each figure's degradation comes with an interval and a test for two samples: the rows are not pairs. A
    figure has drifted only if its degradation is over the threshold and proven. The fields are compared one
    by one, with the false discovery rate controlled. Blocking.

    Args:
        baseline_dataset, current_dataset: names, or `name/version`.
        threshold: how much worse a figure may get, as a difference.
        agent_name, agent_func, options: see `AsyncModelEvaluator`.
        target_field, log_to_mlflow: see `AsyncModelEvaluator.detect_drift`.

    Raises:
        DataError, EvaluationError, LMUnavailableError: see `AsyncModelEvaluator.evaluate_dataset`.
    """
    return ModelEvaluator(agent_name, agent_func, **options).detect_drift(
        baseline_dataset, current_dataset, threshold, target_field, log_to_mlflow=log_to_mlflow
    )
