"""DSPy's own sequential MIPROv2 compile, for comparison."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from agentcore.data import Example
from agentcore.dspy_optimization.optimizers._demos import keep_models
from agentcore.dspy_optimization.optimizers._dspy import NO_END, as_it_was, synchronous
from agentcore.dspy_optimization.optimizers._mipro_settings import MIPROv2Settings
from agentcore.dspy_optimization.optimizers._quiet import quiet
from agentcore.dspy_optimization.optimizers._task import REFUSALS, SearchTask
from agentcore.tracking import dump_demos


async def compile_stock(task: SearchTask, settings: MIPROv2Settings, seed: int) -> dspy.Module:
    """The best program of `dspy.MIPROv2.compile`, with candidates scored by our evaluation: an outage stops
    the search, whereas DSPy would score 0."""

    def judge(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return task.from_thread(lambda: task.judge(example, prediction, trace))

    compiler = _Compiler(
        task,
        metric=judge,
        prompt_model=task.prompt_lm,
        task_model=task.lm,
        max_bootstrapped_demos=settings.max_bootstrapped_demos,
        max_labeled_demos=settings.max_labeled_demos,
        auto=settings.auto,
        num_candidates=settings.num_candidates,
        num_threads=1,
        seed=seed,
        track_stats=False,
        max_errors=NO_END,
    )
    program = synchronous(task.program.deepcopy(), task)
    program._compiled = False
    with quiet():
        await task.in_thread(
            lambda: compiler.compile(
                program,
                trainset=task.train.dspy(),
                valset=task.validation.dspy(),
                num_trials=settings.num_trials,
                minibatch=settings.minibatch,
                minibatch_size=min(settings.minibatch_size, len(task.validation)),
                minibatch_full_eval_steps=settings.minibatch_full_eval_steps,
                seed=seed,
            )
        )
    assert task.best is not None  # compile scores the original program first
    return task.best.program


class _Score:
    """The part of an evaluation that MIPROv2 reads: `score`, 0–100."""

    def __init__(self, mean: float) -> None:
        self.score = 100.0 * mean


class _Compiler(dspy.MIPROv2):
    """Scores trials with our evaluation. The overridden method's arguments are unchanged since DSPy 2.6."""

    def __init__(self, task: SearchTask, **settings: Any) -> None:
        super().__init__(**settings)
        self._task = task
        self._examples: Mapping[int, Example] = {id(item.dspy): item for item in task.validation}

    def _bootstrap_fewshot_examples(self, *arguments: Any, **named: Any) -> Any:
        return self._step(
            "demos", super()._bootstrap_fewshot_examples, arguments, named, _dump_sets, self._load_sets
        )

    def _load_sets(self, stored: Mapping[str, Any]) -> dict[int, Any]:
        return {
            index: [self._task.demos(found) for found in sets] for index, sets in _by_index(stored).items()
        }

    def _propose_instructions(self, *arguments: Any, **named: Any) -> Any:
        return self._step("instructions", self._proposed, arguments, named, _by_text, _by_index)

    def _proposed(self, *arguments: Any, **named: Any) -> Any:
        try:
            return super()._propose_instructions(*arguments, **named)
        except REFUSALS as error:
            self._task.go_on_without("instructions", error)
            predictors = self._task.program.predictors()
            return {number: [item.signature.instructions] for number, item in enumerate(predictors)}

    def _step(
        self,
        name: str,
        make: Callable[..., Any],
        arguments: Any,
        named: Any,
        dump: Callable[[Any], Any],
        load: Callable[[Any], Any],
    ) -> Any:
        """Run a step or restore its outcome, with the random state that the next step draws from."""
        task, stored = self._task, self._task.steps.get(self._task.prefix + name)
        if stored is not None:
            version, internal, gauss = stored["rng"]
            self.rng.setstate((version, tuple(internal), gauss))
            return None if stored["made"] is None else load(stored["made"])
        made = make(*arguments, **named)
        version, internal, gauss = self.rng.getstate()
        value = {"made": None if made is None else dump(made), "rng": [version, list(internal), gauss]}

        async def made_now() -> Any:
            return value

        task.from_thread(lambda: task.step(name, made_now))
        return made

    def _optimize_prompt_parameters(
        self,
        program: dspy.Module,
        instruction_candidates: dict[int, list[str]],
        demo_candidates: dict[int, list[Any]] | None,
        evaluate: Any,
        valset: list[Any],
        num_trials: int,
        minibatch: bool,
        minibatch_size: int,
        minibatch_full_eval_steps: int,
        seed: int,
    ) -> Any:
        task = self._task
        names = [name for name, _ in program.named_predictors()]
        instructions = {name: instruction_candidates[index] for index, name in enumerate(names)}
        demos = (
            {name: len(demo_candidates[index]) for index, name in enumerate(names)} if demo_candidates else {}
        )
        planned = num_trials + (_full_evaluations(num_trials, minibatch_full_eval_steps) if minibatch else 0)

        async def tell() -> None:
            task.space(instructions, demos, planned)

        task.from_thread(tell)

        def score(candidate: Any, devset: Sequence[Any], **_: Any) -> _Score:
            examples = [self._examples[id(item)] for item in devset]
            full = len(devset) >= len(valset)
            keep_models(candidate, task.program)
            found = as_it_was(candidate.deepcopy())
            return _Score(task.from_thread(lambda: task.score(found, examples, full=full, again=True)))

        return super()._optimize_prompt_parameters(
            program,
            instruction_candidates,
            demo_candidates,
            score,
            valset,
            num_trials,
            minibatch,
            minibatch_size,
            minibatch_full_eval_steps,
            seed,
        )


def _by_index(stored: Mapping[str, Any]) -> dict[int, Any]:
    return {int(index): value for index, value in stored.items()}


def _by_text(made: Mapping[int, Any]) -> dict[str, Any]:
    return {str(index): value for index, value in made.items()}


def _dump_sets(candidates: Mapping[int, Any]) -> dict[str, Any]:
    return {str(index): [dump_demos(demos) for demos in sets] for index, sets in candidates.items()}


def _full_evaluations(num_trials: int, steps: int) -> int:
    """How many full evaluations DSPy makes between its minibatch trials, which it counts from 2."""
    last = num_trials + num_trials // steps + (1 if num_trials % steps else 0)
    return sum(trial % (steps + 1) == 0 or trial == last for trial in range(2, num_trials + 2))
