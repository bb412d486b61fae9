"""MIPROv2 (Opsahl-Ong et al. 2024, arXiv 2406.11695): instructions and demonstrations searched together."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import dspy
from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentcore.data import Example
from agentcore.dspy_optimization.optimizers._base import SearchTask

_MINIBATCH = 35


class MIPROv2Settings(BaseModel):
    """DSPy's own names and defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auto: Literal["light", "medium", "heavy"] | None = "light"
    """How much to search; None takes `num_candidates` and `num_trials` instead."""
    num_candidates: int | None = Field(default=None, ge=2)
    num_trials: int | None = Field(default=None, ge=1)
    max_bootstrapped_demos: int = Field(default=4, ge=0)
    max_labeled_demos: int = Field(default=4, ge=0)
    minibatch: bool = True
    minibatch_size: int = Field(default=_MINIBATCH, ge=1)
    minibatch_full_eval_steps: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _one_way_to_say_how_much(self) -> "MIPROv2Settings":
        given = self.num_candidates is not None, self.num_trials is not None
        if self.auto is not None and any(given):
            raise ValueError("num_candidates and num_trials need auto=None")
        if self.auto is None and not all(given):
            raise ValueError("auto=None needs num_candidates and num_trials")
        if self.max_labeled_demos and not self.max_bootstrapped_demos:
            raise ValueError(
                "max_bootstrapped_demos=0 needs max_labeled_demos=0 (DSPy draws from 1 up to it)"
            )
        return self


class MIPROv2:
    """DSPy's own compile, its candidates scored by our evaluation: an outage stops the search, where
    DSPy would score it 0."""

    name = "miprov2"

    def __init__(self, **settings: Any) -> None:
        self._settings = MIPROv2Settings(**settings)

    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    async def optimize(self, task: SearchTask) -> Any:
        settings = self._settings
        # DSPy takes seed 0 for "none given".
        seed = task.seed + 1
        compiler = _Compiler(
            task,
            metric=task.judge_blocking,
            prompt_model=task.prompt_lm,
            task_model=task.lm,
            max_bootstrapped_demos=settings.max_bootstrapped_demos,
            max_labeled_demos=settings.max_labeled_demos,
            auto=settings.auto,
            num_candidates=settings.num_candidates,
            num_threads=1,
            seed=seed,
            track_stats=False,
        )
        await task.in_thread(
            lambda: compiler.compile(
                task.program,
                trainset=task.train.dspy(),
                valset=task.validation.dspy(),
                num_trials=settings.num_trials,
                minibatch=settings.minibatch,
                minibatch_size=min(settings.minibatch_size, len(task.validation)),
                minibatch_full_eval_steps=settings.minibatch_full_eval_steps,
                seed=seed,
            )
        )
        assert task.best is not None  # compile scores the program as given first
        return task.best.program


class _Score:
    """What MIPROv2 reads of an evaluation: `score`, 0–100."""

    def __init__(self, mean: float) -> None:
        self.score = 100.0 * mean


class _Compiler(dspy.MIPROv2):
    """Hands the trials our evaluation. The method's arguments are the same since DSPy 2.6."""

    def __init__(self, task: SearchTask, **settings: Any) -> None:
        super().__init__(**settings)
        self._task = task
        self._examples: Mapping[int, Example] = {id(item.dspy): item for item in task.validation}

    def _bootstrap_fewshot_examples(self, *arguments: Any, **named: Any) -> Any:
        return self._step(
            "demos", super()._bootstrap_fewshot_examples, arguments, named, _dump_demos, _load_demos
        )

    def _propose_instructions(self, *arguments: Any, **named: Any) -> Any:
        return self._step(
            "instructions", super()._propose_instructions, arguments, named, _by_text, _by_index
        )

    def _step(
        self,
        name: str,
        make: Callable[..., Any],
        arguments: Any,
        named: Any,
        dump: Callable[[Any], Any],
        load: Callable[[Any], Any],
    ) -> Any:
        """A step's outcome with the state in which it leaves the random numbers, on which the next draws."""

        def store(made: Any) -> dict[str, Any]:
            version, internal, gauss = self.rng.getstate()
            return {"made": None if made is None else dump(made), "rng": [version, list(internal), gauss]}

        def restore(stored: dict[str, Any]) -> Any:
            version, internal, gauss = stored["rng"]
            self.rng.setstate((version, tuple(internal), gauss))
            return None if stored["made"] is None else load(stored["made"])

        return self._task.step_blocking(name, lambda: make(*arguments, **named), store, restore)

    def _optimize_prompt_parameters(
        self,
        program: Any,
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
        names = [name for name, _ in program.named_predictors()]
        instructions = {name: instruction_candidates[index] for index, name in enumerate(names)}
        demos = (
            {name: len(demo_candidates[index]) for index, name in enumerate(names)} if demo_candidates else {}
        )
        planned = num_trials + (_full_evaluations(num_trials, minibatch_full_eval_steps) if minibatch else 0)
        self._task.space_blocking(instructions, demos, planned)

        def score(candidate: Any, devset: Sequence[Any], **_: Any) -> _Score:
            examples = [self._examples[id(item)] for item in devset]
            return _Score(self._task.score_blocking(candidate, examples, full=len(devset) >= len(valset)))

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


def _dump_demos(candidates: Mapping[int, Any]) -> dict[str, Any]:
    """Demonstrations as JSON values; what JSON can't hold becomes text."""
    sets = {
        index: [[item.toDict() for item in demos] for demos in per_predictor]
        for index, per_predictor in candidates.items()
    }
    plain: dict[str, Any] = json.loads(json.dumps(sets, default=str))
    return plain


def _load_demos(stored: Mapping[str, Any]) -> dict[int, Any]:
    return {
        index: [[dspy.Example(**item) for item in demos] for demos in per_predictor]
        for index, per_predictor in _by_index(stored).items()
    }


def _full_evaluations(num_trials: int, steps: int) -> int:
    """How many full evaluations DSPy puts between its minibatch trials, which it counts from 2."""
    last = num_trials + num_trials // steps + (1 if num_trials % steps else 0)
    return sum(trial % (steps + 1) == 0 or trial == last for trial in range(2, num_trials + 2))
