"""MIPROv2's instruction proposals, made concurrently; DSPy makes the same ones sequentially."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.propose import utils
from dspy.propose.dataset_summary_generator import (
    DatasetDescriptor,
    DatasetDescriptorWithPriorObservations,
    ObservationSummarizer,
    order_input_keys_in_string,
)
from dspy.propose.grounded_proposer import TIPS, GenerateModuleInstruction
from dspy.propose.utils import strip_prefix
from dspy.teleprompt.mipro_optimizer_v2 import BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT

from agentcore._process import silence_dspy_source_listing
from agentcore._redaction import first_line
from agentcore.dspy_optimization.optimizers._demos import DemoSet, end
from agentcore.dspy_optimization.optimizers._task import REFUSALS, SearchTask
from agentcore.lm import is_lm_failure

_VIEWED_AT_ONCE = 10
_VIEWS = 10
_COMPLETE = "COMPLETE"
_COMPLETE_ENOUGH = 5
"""Stop after this many views with nothing to add."""
_TEMPERATURE = 1.0


@dataclass(frozen=True)
class ProposalPlan:
    """One instruction to propose."""

    predictor: int
    demo_set: int
    tip: str
    rollout: int
    """Separates its LM calls from others in DSPy's cache."""


def plan_proposals(predictors: int, count: int, rng: random.Random) -> list[ProposalPlan]:
    """Plan the proposals of DSPy's `GroundedProposer`, drawing random numbers in the same order."""
    return [
        ProposalPlan(predictor, demo_set, TIPS[rng.choice(list(TIPS))], rng.randint(0, 10**9))
        for predictor in range(predictors)
        for demo_set in range(count)
    ]


async def propose(
    task: SearchTask,
    program: dspy.Module,
    plans: Sequence[ProposalPlan],
    demo_sets: Callable[[], Awaitable[list[DemoSet]]],
) -> list[list[str]]:
    """Propose instructions for each predictor. The first is the predictor's own, which needs no LM call.

    The data set is summarized while the demonstrations are made and programs and modules are described; only
    the instructions themselves wait for the summary. Whatever the model has no usable answer for is left out;
    an instruction that is left out becomes the predictor's own.
    """
    described = _Described(task, program)
    instructions = [[predictor.signature.instructions] for predictor in program.predictors()]
    names = [name for name, _ in program.named_predictors()]
    asked = [
        plan for plan in plans if plan.demo_set > 0 and names[plan.predictor] not in task.frozen.instructions
    ]
    if not asked:
        return instructions
    summary = asyncio.ensure_future(described.summary())
    try:
        sets = await demo_sets()
        by_predictor = {index: [demos[index] for demos in sets] for index in range(len(instructions))}
        async with asyncio.TaskGroup() as group:
            proposals = [
                group.create_task(
                    task.step(
                        f"instruction-{plan.predictor}-{plan.demo_set}",
                        lambda plan=plan: described.instruction(plan, by_predictor, summary),  # type: ignore[misc]
                    )
                )
                for plan in asked
            ]
    finally:
        await end([summary])
    for plan, proposal in zip(asked, proposals, strict=True):
        own = instructions[plan.predictor][0]
        instructions[plan.predictor].append(own if proposal.result() is None else proposal.result())
    return instructions


silence_dspy_source_listing()


class _Described:
    """Context shared by all proposals for a program."""

    def __init__(self, task: SearchTask, program: dspy.Module) -> None:
        self.task = task
        self.program = program
        self.told = False
        self.code: str | None = None
        try:
            self.code = utils.get_dspy_source_code(program)
        except Exception as error:  # noqa: BLE001 - a notebook's class has no source, for example
            task.log.warn(f"instructions are proposed without the program's source: {first_line(error)}")

    async def summary(self) -> str | None:
        """DSPy's data summary: observations on ten examples at a time, each view building on the last. None
        if the model has no usable answer to any of them."""
        train = self.task.train.dspy()
        parts = [train[start : start + _VIEWED_AT_ONCE] for start in range(0, len(train), _VIEWED_AT_ONCE)]
        seen: str | None = None
        complete = 0
        for number, part in enumerate(parts[:_VIEWS]):
            examples = order_input_keys_in_string(repr(part))
            if seen is None:
                seen = await self.ask(f"view-{number}", DatasetDescriptor, "observations", examples=examples)
                continue
            more = await self.ask(
                f"view-{number}",
                DatasetDescriptorWithPriorObservations,
                "observations",
                prior_observations=seen,
                examples=examples,
            )
            if more is None:
                continue
            if more[: len(_COMPLETE)].upper() != _COMPLETE:
                seen += more
                continue
            complete += 1
            if complete >= _COMPLETE_ENOUGH:
                break
        if seen is None:
            return None
        made = await self.ask("summary", ObservationSummarizer, "summary", observations=seen)
        return None if made is None else str(strip_prefix(made))

    async def ask(self, step: str, signature: Any, field: str, **inputs: Any) -> str | None:
        async def make() -> str | None:
            async with self.task.gate:
                with self.task.stage("proposals"), dspy.context(lm=self.task.prompt_lm):
                    predict = dspy.Predict(signature, n=1, temperature=_TEMPERATURE)
                    try:
                        return str(getattr(await predict.acall(**inputs), field))
                    except REFUSALS as error:
                        self.leave_out("a view of the data", error)
                        return None

        return await self.task.step(step, make)

    def leave_out(self, what: str, error: Exception) -> None:
        """Tell once that part of the proposals is missing."""
        if not self.told or is_lm_failure(error):
            self.task.go_on_without(what, error)
        self.told = True

    async def instruction(
        self, plan: ProposalPlan, demos: dict[int, list[Any]], summary: "asyncio.Future[str | None]"
    ) -> str | None:
        task = self.task

        def ask() -> str:
            generator = GenerateModuleInstruction(
                program_code_string=self.code,
                use_dataset_summary=True,
                program_aware=self.code is not None,
                use_task_demos=True,
                use_instruct_history=False,
                use_tip=bool(plan.tip),
            )
            final = generator.generate_module_instruction

            def generate(**inputs: Any) -> Any:
                found = task.from_thread(lambda: asyncio.shield(summary))
                inputs["dataset_description"] = "Not available" if found is None else found
                with task.slot():
                    return final(**{name: inputs[name] for name in final.signature.input_fields})

            place = f"{plan.predictor}-{plan.demo_set}"
            for name in ("describe_program", "describe_module"):
                setattr(generator, name, self._recorded(f"{name}-{place}", getattr(generator, name)))
            generator.generate_module_instruction = generate
            lm = task.prompt_lm.copy(rollout_id=plan.rollout, temperature=_TEMPERATURE)
            with task.stage("proposals"), dspy.context(lm=lm):
                made = generator(
                    demo_candidates=demos,
                    pred_i=plan.predictor,
                    demo_set_i=plan.demo_set,
                    program=self.program,
                    previous_instructions="",
                    data_summary=None,
                    num_demos_in_context=BOOTSTRAPPED_FEWSHOT_EXAMPLES_IN_CONTEXT,
                    tip=plan.tip,
                )
            return str(strip_prefix(made.proposed_instruction))

        try:
            return await task.in_thread(ask)
        except REFUSALS as error:
            self.leave_out("an instruction", error)
            return None

    def _recorded(self, step: str, predictor: Any) -> Any:
        """Wrap a predictor so that its answer is saved as a step of the run."""
        task = self.task
        key = task.prefix + step

        def ask(max_depth: Any = None, **inputs: Any) -> Any:  # DSPy passes it; the signature lacks it
            if key in task.steps:
                return dspy.Prediction(**task.steps[key])
            with task.slot():
                made = predictor(**inputs)

            async def answer() -> dict[str, str]:
                return {name: str(value) for name, value in made.items()}

            task.from_thread(lambda: task.step(step, answer))
            return made

        return ask
