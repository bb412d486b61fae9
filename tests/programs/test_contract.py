"""Programs as people have them go through every optimizer, and are saved, loaded, resumed and served as they
were."""

import asyncio
import importlib
import json
from types import SimpleNamespace

import dspy
import pandas as pd
import pytest
from pydantic import BaseModel, Field

from agentcore._json import jsonable
from agentcore.data import load_dataset
from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.optimizers import available_optimizers
from agentcore.errors import DataError, LMUnavailableError
from agentcore.lm import offline_lm
from agentcore.tracking import load_program, save_program
from agentcore.tracking._demos import messages_of
from tests.dspy_optimization.test_optimizers import SMALL
from tests.programs.zoo import CASES

every_program = pytest.mark.parametrize("name", CASES)
every_optimizer = pytest.mark.parametrize("optimizer", available_optimizers())


def data_of(case):
    return [dspy.Example(**row).with_inputs(*case.inputs) for row in case.rows]


def adapter_of(case):
    return dspy.context(adapter=case.adapter() if case.adapter else None)


_results = {}


async def optimized(name, optimizer, **options):
    """The result of an optimizer on a program, made once."""
    key = name, optimizer, options.get("seed", 0)
    if key not in _results or "on_event" in options:
        _results[key] = await run(CASES[name], optimizer, **options)
    return _results[key]


async def run(case, optimizer, **options):
    with adapter_of(case):
        pipeline = OptimizationPipeline(case.make(), lm=case.lm(), enable_tracking=False, **options)
        return await pipeline.run_optimization(
            {
                "target": {"id": "x"},
                "algorithms": [optimizer],
                "optimizer_settings": {optimizer: SMALL[optimizer]},
                "constraints": {"max_error_rate": 1},
            },
            training_data=data_of(case),
        )


@every_optimizer
@every_program
async def test_every_optimizer_takes_it(name, optimizer):
    case, events = CASES[name], []
    result = await optimized(name, optimizer, on_event=events.append)
    assert result.status == "completed"
    assert type(result.program).__qualname__ == type(case.make()).__qualname__
    assert len(result.optimization_details["trials"]) >= 2
    searched = [event for event in events if event.kind == "trial_finished"]
    assert len({event.candidate for event in searched}) >= 1
    spent = result.spend_by_stage
    assert (
        sum(spend.calls for stage, spend in spent.items() if stage not in ("baseline", "winner", "warmup"))
        > 0
    )
    # The offline engine sees no pictures, and copies demonstrations' labels, which this one has renamed.
    if optimizer == "labeled_few_shot" and name not in ("image", "renaming"):
        assert result.optimized_performance.quality_score > result.measured_baseline.quality_score


@every_program
async def test_the_saved_program_prompts_byte_for_byte_as_the_measured_one(name, tmp_path):
    case = CASES[name]
    result = await optimized(name, "bootstrap_random_search")
    rows = [{key: row[key] for key in case.inputs} for row in case.rows[:10]]
    with adapter_of(case):
        save_program(result.program, tmp_path, example=rows[0])
        again = load_program(tmp_path, program=None if case.rebuilt else case.make())
        for row in rows:
            assert json.dumps(messages_of(again, row), default=str) == json.dumps(
                messages_of(result.program, row), default=str
            )
            assert any("user" in str(messages) for messages in messages_of(again, row).values())


@every_program
async def test_it_is_resumed(name, config):
    case, seen, reached = CASES[name], [], asyncio.Event()
    alone = await optimized(name, "bootstrap_random_search")

    def follow(event):
        seen.append(event)
        if sum(item.kind == "trial_finished" for item in seen) == 2:
            reached.set()

    def pipeline(**options):
        return OptimizationPipeline(case.make(), mlflow_config=config, **options)

    asked = {
        "target": {"id": "x"},
        "algorithms": ["bootstrap_random_search"],
        "optimizer_settings": {"bootstrap_random_search": SMALL["bootstrap_random_search"]},
        "constraints": {"max_error_rate": 1},
    }
    with adapter_of(case):
        first = pipeline(lm=offline_lm(latency=0.002), on_event=follow)
        task = asyncio.create_task(first.run_optimization(asked, training_data=data_of(case)))
        await asyncio.wait_for(reached.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        result = await pipeline(lm=case.lm()).resume(seen[0].optimization_id)
        assert result.optimization_details["trials"] == alone.optimization_details["trials"]
        assert result.comparison == alone.comparison
        for row in case.rows[:3]:
            inputs = {key: row[key] for key in case.inputs}
            assert str(messages_of(result.program, inputs)) == str(messages_of(alone.program, inputs))


@every_program
async def test_it_is_served(name, tmp_path):
    """From JSON, as MLflow's server has it."""
    case = CASES[name]
    if not case.rebuilt:
        pytest.skip("needs an instance of the program, which a server doesn't have")
    result = await optimized(name, "labeled_few_shot")
    save_program(result.program, tmp_path)
    serving = importlib.import_module("agentcore.tracking._serving")
    model = serving.ProgramModel()
    model.load_context(
        SimpleNamespace(
            artifacts={"program": str(tmp_path)},
            model_config={"name": "optimized_model", "lm": "offline/knn"},
        )
    )
    frame = pd.DataFrame([jsonable({key: row[key] for key in case.inputs}) for row in case.rows[:3]])
    answers = model.predict(None, frame)
    labels = [next(iter(item.labels.values())) for item in load_dataset(data_of(case))[:3]]
    assert len(answers) == len(labels)
    json.dumps(answers.to_dict("records"))


class Forgetful(BaseModel):
    """Its JSON says less than it holds."""

    name: str
    hidden: str = Field(default="x", exclude=True)


async def test_values_that_json_cannot_bring_back_are_measured_but_not_resumed(config):
    def row(number):
        return {"thing": f"leaf {number}", "item": Forgetful(name="a", hidden=str(number)), "colour": "green"}

    class Program(dspy.Module):
        def __init__(self):
            super().__init__()
            self.step = dspy.Predict("thing -> colour")

        def forward(self, thing, item):
            assert item.hidden != "x"
            return self.step(thing=thing)

    examples = [dspy.Example(**row(number)).with_inputs("thing", "item") for number in range(24)]
    asked = {"target": {"id": "x"}, "algorithms": ["labeled_few_shot"]}
    lm = offline_lm(error_rate=1.0, num_retries=0)
    events = []
    pipeline = OptimizationPipeline(Program(), lm=lm, mlflow_config=config, on_event=events.append)
    with pytest.raises(LMUnavailableError):
        await pipeline.run_optimization(asked, training_data=examples)
    lm.engine.error_rate = 0.0
    with pytest.raises(DataError, match="the values of field 'item' can't be brought back"):
        await pipeline.resume(events[0].optimization_id)
    result = await pipeline.run_optimization(asked, training_data=examples)
    assert result.optimized_performance.quality_score == 1.0
