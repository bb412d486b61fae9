"""No valid program or data is refused; what can't work says why, before anything is spent."""

import datetime
import enum
from decimal import Decimal
from typing import Any, Literal

import dspy
import pytest
from pydantic import BaseModel

from agentcore.data import load_dataset
from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization._fit import fitted, unusual_labels
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ArtifactError, ConfigurationError, DataError
from agentcore.lm import offline_lm
from agentcore.tracking import load_program, save_program
from tests.support import QUICK


class Shade(enum.Enum):
    RED = "red"
    GREEN = "green"


class Item(BaseModel):
    name: str


class Typed(dspy.Signature):
    """Everything that a file can't say."""

    when: datetime.date = dspy.InputField()
    price: Decimal = dspy.InputField()
    code: str = dspy.InputField()
    tags: set[str] = dspy.InputField()
    items: list[Item] = dspy.InputField()
    picture: dspy.Image = dspy.InputField()
    hint: int | None = dspy.InputField()
    shade: Shade = dspy.OutputField()
    sure: bool = dspy.OutputField()
    grade: Literal["1", "2"] = dspy.OutputField()


CSV = """when,price,code,tags,items,picture,hint,shade,sure,grade
2024-01-02,1.50,7,"[""a""]","[{""name"": ""x""}]",https://example.com/a.png,,red,yes,1
2024-01-03,2,8,"[""b"", ""c""]",[],https://example.com/b.png,3,green,False,2
"""


def test_rows_of_files_get_the_programs_types(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    data = load_dataset(tmp_path / "a.csv", input_fields=list(Typed.input_fields))
    row = fitted(dspy.Predict(Typed), data)[0].values
    assert row == {
        "when": datetime.date(2024, 1, 2),
        "price": Decimal("1.5"),
        "code": "7",
        "tags": {"a"},
        "items": [Item(name="x")],
        "picture": dspy.Image("https://example.com/a.png"),
        "hint": None,
        "shade": Shade.RED,
        "sure": True,
        "grade": "1",
    }
    assert fitted(dspy.Predict(Typed), data)[1].values["hint"] == 3


def test_rows_of_python_stay_as_they_are():
    row = {"thing": "leaf", "when": "2024-01-02", "shade": "red"}

    class Plain(dspy.Signature):
        """Tell the shade."""

        thing: str = dspy.InputField()
        when: datetime.date = dspy.InputField()
        shade: Shade = dspy.OutputField()

    data = load_dataset([row], input_fields=["thing", "when"])
    assert fitted(dspy.Predict(Plain), data)[0].values == row


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("when", "yesterday", "row 1, field 'when': 'yesterday' is not of the program's type date"),
        ("shade", "blue", "row 1, field 'shade': 'blue' is not of the program's type Shade"),
        ("tags", "[1", r"field 'tags': '\[1' is not of the program's type set\[str\]"),
        ("code", "", "row 1, field 'code': missing value. .* declare the program's field Optional"),
        ("shade", " ", "row 1, field 'shade': missing value"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, column, value, message):
    header, first, _ = CSV.splitlines()
    old = dict(
        zip(header.split(","), ["2024-01-02", "1.50", "7", '"[""a""]"', "", "", "", "red"], strict=False)
    )
    line = first.replace(old[column], value, 1) if column != "code" else first.replace(",7,", ",,")
    (tmp_path / "a.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(DataError, match=message):
        fitted(dspy.Predict(Typed), load_dataset(tmp_path / "a.csv", input_fields=list(Typed.input_fields)))


class ByPosition(dspy.Module):
    def __init__(self):
        super().__init__()
        self.step = dspy.Predict("thing -> colour")

    def forward(self, thing, /):
        return self.step(thing=thing)


async def test_inputs_by_position_only_are_refused_by_name():
    lm = offline_lm()
    pipeline = OptimizationPipeline(ByPosition(), lm=lm, enable_tracking=False)
    with pytest.raises(ConfigurationError, match=r"ByPosition.forward takes thing by position only"):
        await pipeline.run_optimization(
            {"target": {"id": "x"}}, training_data=[{"thing": str(n), "colour": "red"} for n in range(30)]
        )
    assert lm.engine.calls == 0


class Defaults(dspy.Module):
    def __init__(self):
        super().__init__()
        self.step = dspy.Predict(WithDefault)

    def forward(self, thing, context=None, k: int = 3):
        return self.step(thing=thing)


class WithDefault(dspy.Signature):
    """Name the colour."""

    thing: str = dspy.InputField()
    tone: str = dspy.InputField(default="calm")
    colour: Literal["red", "green"] = dspy.OutputField()


@pytest.mark.parametrize("program", [Defaults(), dspy.Predict(WithDefault), dspy.ChainOfThought(WithDefault)])
def test_inputs_with_defaults_may_be_left_out(program):
    assert fitted(program, load_dataset([{"thing": "leaf", "colour": "green"}], input_fields=["thing"]))


def test_a_default_allows_missing_values():
    rows = [{"thing": "leaf", "tone": None, "colour": "green"}]
    assert fitted(dspy.Predict(WithDefault), load_dataset(rows, input_fields=["thing", "tone"]))


def test_a_default_of_none_allows_missing_values():
    rows = [{"thing": "leaf", "context": None, "colour": "green"}]
    assert fitted(Defaults(), load_dataset(rows, input_fields=["thing", "context"]))
    with pytest.raises(DataError, match="field 'thing': missing value"):
        fitted(Defaults(), load_dataset([{"thing": "", "colour": "green"}], input_fields=["thing"]))


class Loose(dspy.Module):
    def __init__(self):
        super().__init__()
        self.signature = "its own business"
        self.step = dspy.Predict(WithDefault)

    def forward(self, **kwargs: Any):
        return dspy.Prediction(colour=self.step(thing=kwargs["thing"]).colour.title())


def test_labels_that_no_predictor_gives():
    rows = [{"thing": "sky", "colour": "blue"}, {"thing": "leaf", "colour": "Green"}]
    data = load_dataset(rows, input_fields=["thing"])
    assert fitted(Loose(), data)
    (told,) = unusual_labels(Loose(), data)
    assert "no predictor of the program can answer colour=blue:" in told
    with pytest.raises(DataError, match="label colour='blue' is not an answer"):
        fitted(dspy.Predict(WithDefault), data)
    assert fitted(dspy.Predict(WithDefault), data.part("second", data[1:]))


class Counting(dspy.Module):
    def __init__(self, tone="calm"):
        super().__init__()
        self.tone, self.calls = tone, 0
        self.step = dspy.Predict("thing -> colour")

    def forward(self, thing):
        self.calls += 1
        return self.step(thing=thing)


async def test_state_that_changes_as_a_program_runs_does_not_keep_it_from_loading(config, tmp_path, caplog):
    rows = [{"thing": f"{word} {n}", "colour": word} for n in range(15) for word in ("red", "green")]
    pipeline = OptimizationPipeline(Counting(), lm=offline_lm(), mlflow_config=config)
    result = await pipeline.run_optimization(
        {"target": {"id": "x"}, "optimizer_settings": {"miprov2": QUICK}}, training_data=rows
    )
    assert result.program.calls > 0
    loaded = await MLflowTracker(config).load_model_artifact(result.run_id, "optimized_model")
    assert loaded.calls == 0
    assert "a different state" not in caplog.text
    program = Counting()
    program.calls = 5
    save_program(program, tmp_path)
    load_program(tmp_path)
    assert "self.calls was 5 and is 0" in caplog.text
    with pytest.raises(ArtifactError, match=r"self.tone was 'calm' and is 'loud'"):
        load_program(tmp_path, program=Counting("loud"))
