"""What newcomers stumbled over: mistakes are told before they cost anything, with the place to look."""

import datetime
import json

import dspy
import pandas as pd
import pytest
from mlflow import MlflowClient

from agentcore.data import load_dataset
from agentcore.dspy_optimization import OptimizationPipeline, resumable_runs
from agentcore.dspy_optimization._fit import fitted
from agentcore.dspy_optimization._job import _lm_spec
from agentcore.dspy_optimization._program import resolve_program
from agentcore.errors import ConfigurationError, DataError, EvaluationError, LMUnavailableError, MetricError
from agentcore.journal import open_journal
from agentcore.lm import offline_lm, recorded_model
from agentcore.settings import MLflowConfig
from tests.dspy_optimization.test_optimizers import SMALL
from tests.support import AsyncClassifier, Classifier, Colour, colours, request

LIGHT = {"target": {"id": "x"}, "algorithms": ["labeled_few_shot"]}


def pipeline_for(program=None, metric=None, lm=None, config=None, **options):
    return OptimizationPipeline(
        program or AsyncClassifier(),
        metric,
        lm=lm or offline_lm(),
        mlflow_config=config,
        enable_tracking=config is not None,
        **options,
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.5, "max_tokens": 300}, {"api_base": "http://127.0.0.1:9/v1", "api_key": "x"}],
)
def test_a_model_is_rebuilt_from_what_the_run_recorded(settings):
    spec = json.loads(json.dumps(_lm_spec(dspy.LM("openai/local", **settings))))
    found = recorded_model(spec)
    assert _lm_spec(found if isinstance(found, dspy.LM) else dspy.LM(found)) == spec


async def test_a_run_resumes_with_the_address_that_it_recorded(config):
    lm = dspy.LM(
        "openai/local", api_base="http://127.0.0.1:9/v1", api_key="x", num_retries=0, temperature=0.5
    )
    events = []
    with pytest.raises(LMUnavailableError):
        await pipeline_for("thing -> colour", lm=lm, config=config, on_event=events.append).run_optimization(
            LIGHT, training_data=colours()
        )
    again = OptimizationPipeline.from_journal(events[0].optimization_id, mlflow_config=config)
    assert _lm_spec(again.options.lm) == _lm_spec(lm)


async def test_only_what_can_end_otherwise_is_resumable(config):
    asked = {**LIGHT, "constraints": {"max_lm_calls": 20}}
    with pytest.raises(ConfigurationError, match=r"need at least 17 calls each, so set more than 34"):
        await pipeline_for(config=config).run_optimization(asked, training_data=colours())
    journal = open_journal()
    assert resumable_runs(journal, journal.streams()) == []
    with pytest.raises(LMUnavailableError):
        await pipeline_for(lm=offline_lm(error_rate=1.0, num_retries=0), config=config).run_optimization(
            LIGHT, training_data=colours()
        )
    assert len(resumable_runs(journal, journal.streams())) == 1


async def test_the_first_short_run_has_its_mlflow_id(tmp_path):
    """Although the database has still to be made."""
    config = MLflowConfig(
        tracking_uri=f"sqlite:///{tmp_path / 'new.db'}", artifact_location=str(tmp_path / "artifacts")
    )
    result = await pipeline_for(config=config).run_optimization(LIGHT, training_data=colours())
    assert MlflowClient(config.tracking_uri).get_run(result.run_id).info.run_id == result.run_id
    assert f"run {result.optimization_id[:8]} ({result.run_id} in MLflow)" in str(result)


async def test_a_dead_address_is_told_at_the_first_call():
    lm = dspy.LM("openai/local", api_base="http://127.0.0.1:9/v1", api_key="x", num_retries=0)
    with pytest.raises(
        LMUnavailableError, match=r"language model failed \(openai/local at http://127.0.0.1:9/v1\)"
    ):
        await pipeline_for(lm=lm).run_optimization(LIGHT, training_data=colours())


async def test_the_program_that_is_built_from_data_is_told():
    rows = [{"message": f"m {n}", "received": n, "answer": "ab"[n % 2]} for n in range(30)]
    pipeline = pipeline_for(dspy.Predict("message -> answer"))
    pipeline.options.__dict__["program"] = None
    data = load_dataset(rows, input_fields=["message"])
    plan = await pipeline.plan(LIGHT, data)
    assert any("built the program" in note and "message -> " in note for note in plan.notes)
    assert "received" in str(plan)


async def test_a_label_that_no_predictor_gives_is_told_by_the_plan():
    rows = [{"thing": row["thing"], "label": row["colour"]} for row in colours().rows()]
    plan = await pipeline_for(Classifier()).plan(LIGHT, rows)
    assert any(
        "exact_match compares label, but the program's predictors give colour" in note for note in plan.notes
    )


class TwoSteps(dspy.Module):
    """The first predictor's output, with few values, is an input of the second."""

    def __init__(self):
        super().__init__()
        self.first = dspy.Predict(Colour)
        self.second = dspy.Predict("thing, colour: str -> size")

    async def aforward(self, thing):
        colour = (await self.first.acall(thing=thing)).colour
        size = (await self.second.acall(thing=thing, colour=colour)).size
        return dspy.Prediction(colour=colour, size=size)


async def test_a_missing_label_is_an_error_whatever_else_has_its_name():
    rows = [{**row, "size": "big"} for row in colours(30).rows()]
    rows[5]["colour"] = None
    data = load_dataset(rows, input_fields=["thing"])
    with pytest.raises(DataError, match="row 6, field 'colour': missing value"):
        await pipeline_for(TwoSteps()).plan(LIGHT, data)


class Dated(dspy.Signature):
    """Tell the colour."""

    opened: datetime.date = dspy.InputField()
    tags: list[str] = dspy.InputField()
    colour: str = dspy.OutputField()


def test_values_of_a_frame_get_the_programs_types_too():
    frame = pd.DataFrame(
        {"opened": pd.to_datetime(["2024-02-18"]), "tags": ["['a', 'b']"], "colour": ["red"]}
    )
    data = load_dataset(frame, input_fields=["opened", "tags"])
    row = fitted(dspy.Predict(Dated), data)[0].values
    assert row == {"opened": datetime.date(2024, 2, 18), "tags": ["a", "b"], "colour": "red"}
    assert type(row["opened"]) is datetime.date
    frame["tags"] = "a,b"
    with pytest.raises(
        DataError, match=r"row 1, field 'tags': 'a,b' is not of the program's type list\[str\]"
    ):
        fitted(dspy.Predict(Dated), load_dataset(frame, input_fields=["opened", "tags"]))


async def test_a_metrics_own_error_is_its_cause_and_has_its_line():
    def metric(example, prediction):
        return {}["howto"]

    with pytest.raises(
        MetricError, match=r"raised KeyError: 'howto' \(test_newcomers.py, line \d+\)"
    ) as caught:
        await pipeline_for(metric=metric).run_optimization(LIGHT, training_data=colours())
    assert isinstance(caught.value.__cause__, KeyError)
    assert not isinstance(caught.value.__context__, BaseExceptionGroup)


class Mistyped(Classifier):
    def forward(self, thing):
        return dspy.Prediction(colour=self.predict(thing=thing).color)


async def test_a_mistake_in_a_program_has_its_line_and_no_advice_to_measure_it():
    with pytest.raises(EvaluationError, match=r"\(test_newcomers.py, line \d+\)") as caught:
        await pipeline_for(Mistyped()).run_optimization(LIGHT, training_data=colours())
    assert "max_error_rate to 1" not in str(caught.value)
    assert caught.value.__context__ is None or not isinstance(caught.value.__context__, BaseExceptionGroup)


@pytest.mark.parametrize("name", ["gepa", "copro", "simba"])
async def test_dspys_optimizers_are_quiet(name, capfd):
    asked = {"target": {"id": "x"}, "algorithms": [name], "optimizer_settings": {name: SMALL[name]}}
    await pipeline_for().run_optimization(asked, training_data=colours())
    assert capfd.readouterr().err == ""


async def test_a_warning_is_printed_as_it_comes(capsys):
    rows = [*colours(30).rows(), {"thing": "sky", "colour": "blue"}]
    await pipeline_for(progress=True).run_optimization(LIGHT, training_data=rows)
    lines = capsys.readouterr().err.splitlines()
    (place,) = [number for number, line in enumerate(lines) if "can answer colour=blue" in line]
    assert lines[place].startswith("note: ")
    assert any(line.startswith("searching") for line in lines[place:])


async def test_what_looks_like_a_key_in_the_data_is_told():
    rows = colours(30).rows()
    rows[3]["thing"] += " my key is sk-proj-" + "aB3" * 20
    result = await pipeline_for().run_optimization(LIGHT, training_data=rows)
    assert any("row 4 contains what looks like a key (sk-pro…)" in note for note in result.warnings)


async def test_a_class_of_a_notebook_is_told(config):
    kind = type("Own", (AsyncClassifier,), {"__module__": "__main__"})
    result = await pipeline_for(kind(), config=config).run_optimization(LIGHT, training_data=colours())
    assert any("Own is defined in a script or notebook" in note for note in result.warnings)


async def test_a_class_may_be_the_program():
    result = await pipeline_for(Classifier).run_optimization(LIGHT, training_data=colours())
    assert isinstance(result.program, Classifier)
    with pytest.raises(ConfigurationError, match="pass an instance instead"):
        await pipeline_for(dspy.Predict).run_optimization(LIGHT, training_data=colours())


def test_a_signature_class_is_a_program():
    program, path = resolve_program("tests.support:Colour")
    assert isinstance(program, dspy.ChainOfThought)
    assert path is None


def test_names_and_sources_that_do_not_do(tmp_path):
    with pytest.raises(DataError, match="Rename it, for example to 'field_3'"):
        load_dataset(pd.DataFrame({"3": ["a"], "answer": ["b"]}))
    with pytest.raises(DataError, match=r"expected a dict or a dspy\.Example"):
        load_dataset(pd.Series(["a"], name="q"))
    (tmp_path / "a.csv").write_bytes("q,answer\nü,1\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"Save it as UTF-8 \(in Excel: CSV UTF-8\)"):
        load_dataset(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("q,answer\na,1\n , \n,\n")
    assert len(load_dataset(tmp_path / "a.csv")) == 1
    with pytest.raises(DataError, match=r"it lacks thing, and the program doesn't take q"):
        fitted(Classifier(), load_dataset([{"q": "a", "colour": "red"}], input_fields=["q"]))
    assert repr(colours()).startswith("Dataset('colours', 45 examples, inputs thing; labels colour")


async def test_a_stopped_run_says_how_to_continue(capsys, config):
    import asyncio

    reached = asyncio.Event()

    def follow(event):
        if event.kind == "trial_finished":
            reached.set()

    pipeline = pipeline_for(lm=offline_lm(latency=0.01), config=config, progress=True, on_event=follow)
    task = asyncio.create_task(pipeline.run_optimization(request(), training_data=colours()))
    await asyncio.wait_for(reached.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "note: stopped. Continue it with pipeline.resume('" in capsys.readouterr().err
