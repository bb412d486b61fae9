import json
from pathlib import Path
from typing import Literal, Optional

import dspy
import pydantic
import pytest

from agentcore._redaction import Redactor
from agentcore._types import parse_type, type_text
from agentcore.errors import ArtifactError
from agentcore.lm import offline_lm
from agentcore.tracking import load_program, save_program
from agentcore.tracking._trust import stored_type
from tests.support import AsyncClassifier, Classifier, Colour

KEY = "sk-sentinel-0123456789"


class Point(pydantic.BaseModel):
    x: int


class Typed(dspy.Signature):
    """Work on all kinds of fields."""

    number: float = dspy.InputField(desc="a number")
    many: list[str] = dspy.InputField()
    point: Point = dspy.InputField()
    label: Literal["a, b", "it's"] = dspy.OutputField()
    maybe: Optional[int] = dspy.OutputField()  # noqa: UP045 - both spellings must survive
    table: dict[str, int] = dspy.OutputField()


class Nested(dspy.Module):
    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.steps = [Classifier() for _ in range(count)]
        self.last = dspy.ChainOfThought("thing -> verdict")

    def forward(self, thing):
        return self.last(thing=thing)


class NeedsArgument(Classifier):
    def __init__(self, argument) -> None:
        super().__init__()


def optimized(program):
    """A program whose prompts have changed, as an optimizer leaves it."""
    for index, predictor in enumerate(program.predictors()):
        predictor.signature = predictor.signature.with_instructions(f"Instruction {index}.")
        predictor.demos = [dspy.Example(thing="leaf", colour="green", verdict="fine")]
    return program


def digest_changed(directory: Path, name: str) -> None:
    path = directory / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "program",
    [dspy.Predict(Colour), dspy.ChainOfThought(Colour), Classifier(), AsyncClassifier(), Nested()],
    ids=lambda program: type(program).__name__,
)
def test_programs_come_back_with_their_prompts(tmp_path, program):
    saved = optimized(program)
    save_program(saved, tmp_path)
    loaded = load_program(tmp_path)
    assert type(loaded) is type(saved)
    assert loaded.dump_state() == saved.dump_state()
    assert loaded is not saved


@pytest.mark.parametrize("module", [dspy.Predict, dspy.ChainOfThought])
def test_every_kind_of_field_comes_back(tmp_path, module):
    program = module(Typed)
    save_program(program, tmp_path)
    loaded = load_program(tmp_path).predictors()[0].signature.fields
    expected = program.predictors()[0].signature.fields
    assert {name: (info.annotation, info.json_schema_extra["desc"]) for name, info in loaded.items()} == {
        name: (info.annotation, info.json_schema_extra["desc"]) for name, info in expected.items()
    }


def find(path):
    return stored_type(path, f"{__name__}:Program")


@pytest.mark.parametrize(
    "annotation",
    [str, float, bool, list, dict, list[int], Literal[1, "x", True], int | None, dict[str, list[Point]]],
)
def test_types_as_text(annotation):
    assert parse_type(type_text(annotation), find) == annotation


@pytest.mark.parametrize(
    "text", ["__import__('os')", "str.x", "nothing", "'no.such:Type'", "list[", "eval('1')"]
)
def test_types_are_not_evaluated(text):
    with pytest.raises(ArtifactError, match="can't be restored"):
        parse_type(text, find)


def test_dspys_own_load_reads_the_state(tmp_path):
    save_program(optimized(Classifier()), tmp_path)
    program = Classifier()
    program.load(tmp_path / "optimized_model.json")
    assert program.predict.signature.instructions == "Instruction 0."


@pytest.mark.parametrize(
    "name", ["optimized_model.json", "optimized_model_metadata.json", "optimized_model.pkl"]
)
def test_a_changed_byte_is_refused(tmp_path, name):
    digests = save_program(Classifier(), tmp_path)
    digest_changed(tmp_path, name)
    with pytest.raises(ArtifactError, match=f"{name} was changed after it was logged"):
        load_program(tmp_path, digests=digests, trust_pickle=name.endswith("pkl"))


def test_a_changed_state_is_refused_by_the_manifest_alone(tmp_path):
    save_program(Classifier(), tmp_path)
    digest_changed(tmp_path, "optimized_model.json")
    with pytest.raises(ArtifactError, match="was changed"):
        load_program(tmp_path)


def test_a_file_exchanged_together_with_the_manifest_is_refused_by_the_runs_digests(tmp_path):
    digests = save_program(Classifier(), tmp_path)
    save_program(optimized(Classifier()), tmp_path)
    assert load_program(tmp_path).predict.demos
    with pytest.raises(ArtifactError, match="was changed"):
        load_program(tmp_path, digests=digests)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(ArtifactError, match=r"optimized_model_metadata.json is missing"):
        load_program(tmp_path)
    (tmp_path / "optimized_model_metadata.json").write_text("{}")
    with pytest.raises(ArtifactError, match="does not have the format"):
        load_program(tmp_path)
    (tmp_path / "optimized_model_metadata.json").write_text("{")
    with pytest.raises(ArtifactError, match="is not JSON"):
        load_program(tmp_path)


def test_other_fields_are_refused(tmp_path):
    """DSPy itself loads the state into them without a word."""
    save_program(dspy.Predict("thing -> colour"), tmp_path)
    with pytest.raises(ArtifactError, match=r"doesn't fit the program: .*colour: str.*verdict: str"):
        load_program(tmp_path, program=dspy.Predict("thing -> verdict"))


def test_a_class_that_cannot_be_imported_takes_a_fresh_instance(tmp_path):
    class Local(Classifier):
        pass

    save_program(optimized(Local()), tmp_path)
    with pytest.raises(ArtifactError, match="Pass a fresh instance as program="):
        load_program(tmp_path)
    fresh = Local()
    loaded = load_program(tmp_path, program=fresh)
    assert loaded.predict.demos
    assert not fresh.predict.demos


def test_a_class_with_arguments_takes_a_fresh_instance(tmp_path):
    save_program(NeedsArgument(1), tmp_path)
    with pytest.raises(ArtifactError, match=r"can't be created without arguments.*program="):
        load_program(tmp_path)
    assert load_program(tmp_path, program=NeedsArgument(2))


def test_the_pickle_is_read_only_when_trusted(tmp_path):
    digests = save_program(optimized(Classifier()), tmp_path)
    assert set(digests) == {
        "optimized_model.json",
        "optimized_model.pkl",
        "optimized_model_metadata.json",
    }
    loaded = load_program(tmp_path, digests=digests, trust_pickle=True)
    assert loaded.predict.demos[0].colour == "green"
    (tmp_path / "optimized_model.pkl").write_bytes(b"not a pickle")
    assert load_program(tmp_path, digests=digests)  # never opened unasked


def test_no_lm_and_no_key_in_any_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "env-secret-value-42")
    program = optimized(Classifier())
    program.predict.lm = dspy.LM("openai/x", api_key=KEY, api_base="http://internal.example:1234/v1")
    program.judge = dspy.LM("openai/y", api_key=KEY)
    program.predict.demos = [dspy.Example(thing=f"key {KEY}", colour="env-secret-value-42")]
    save_program(program, tmp_path, redactor=Redactor([KEY]), metadata={"note": f"used {KEY}"})
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert KEY.encode() not in content, path
        assert b"env-secret-value-42" not in content, path
        assert b"internal.example" not in content, path
    assert program.predict.lm is not None
    assert (
        "it would hold a secret"
        in json.loads((tmp_path / "optimized_model_metadata.json").read_text())["pickle"]
    )
    assert not (tmp_path / "optimized_model.pkl").exists()


def test_the_pickle_holds_no_lm(tmp_path):
    program = Classifier()
    program.predict.lm = program.judge = dspy.LM("openai/x", api_key=KEY)
    save_program(program, tmp_path)
    assert KEY.encode() not in (tmp_path / "optimized_model.pkl").read_bytes()
    loaded = load_program(tmp_path, trust_pickle=True)
    assert loaded.predict.lm is None
    assert loaded.judge is None


def test_a_program_that_cannot_be_pickled_is_kept_all_the_same(tmp_path):
    program = Classifier()
    program.stream = (index for index in range(3))
    digests = save_program(program, tmp_path)
    assert "optimized_model.pkl" not in digests
    assert load_program(tmp_path)


def test_a_loaded_program_answers_the_same(tmp_path):
    program = optimized(dspy.Predict(Colour))
    save_program(program, tmp_path)
    with dspy.context(lm=offline_lm()):
        assert load_program(tmp_path)(thing="x").colour == program(thing="x").colour


class Configured(Classifier):
    def __init__(self, k: int = 3, style: str = "short") -> None:
        super().__init__()
        self.k, self.style = k, style


def test_constructor_arguments_that_differ_are_refused(tmp_path):
    save_program(Configured(k=7, style="long"), tmp_path)
    with pytest.raises(ArtifactError, match=r"self\.k was 7 and is 3"):
        load_program(tmp_path)
    assert load_program(tmp_path, program=Configured(k=7, style="long")).k == 7


def test_settings_of_a_predictor_come_back(tmp_path):
    save_program(dspy.Predict("thing -> colour", temperature=0.2, api_key=KEY), tmp_path)
    assert load_program(tmp_path).config == {"temperature": 0.2}


def test_a_constraint_that_would_be_lost_is_refused(tmp_path):
    class Bounded(dspy.Signature):
        """Count."""

        thing: str = dspy.InputField()
        count: int = dspy.OutputField(ge=0, le=10)

    save_program(dspy.Predict(Bounded), tmp_path)
    with pytest.raises(ArtifactError, match=r"count: int greater than or equal"):
        load_program(tmp_path)
    assert load_program(tmp_path, program=dspy.Predict(Bounded))


class Hoarder(Classifier):
    """Keeps LMs and keys where no attribute walk looks."""

    def __init__(self) -> None:
        super().__init__()
        lm = dspy.LM("openai/x", api_key=KEY, api_base="http://internal.example:1/v1")
        self.lms = [lm]
        self.options = {"nested": {"lm": lm}}
        self.key = pydantic.SecretStr(KEY)


def test_the_pickle_leaves_out_what_hangs_deep(tmp_path):
    program = Hoarder()
    program.predict.config["api_key"] = KEY
    save_program(program, tmp_path)
    content = (tmp_path / "optimized_model.pkl").read_bytes()
    assert KEY.encode() not in content
    assert b"internal.example" not in content
    loaded = load_program(tmp_path, trust_pickle=True)
    assert loaded.lms == [None]
    assert loaded.options == {"nested": {"lm": None}}


def test_an_ordinary_word_is_not_cut_out_of_a_prompt(tmp_path, monkeypatch):
    """Somebody's password is "password": the loaded program has to be the one that was measured."""
    monkeypatch.setenv("POSTGRES_PASSWORD", "password")
    program = Classifier()
    program.predict.signature = program.predict.signature.with_instructions("Reset the password when asked.")
    save_program(program, tmp_path)
    assert load_program(tmp_path).predict.signature.instructions == "Reset the password when asked."


def test_headers_are_secret_by_their_names():
    from agentcore.lm import lm_secrets

    headers = {"X-Title": "Customer question answering", "Authorization": "Bearer secret-token"}
    lm = dspy.LM("openai/x", api_key=KEY, extra_headers=headers)
    assert lm_secrets(lm) == [KEY, "Bearer secret-token", "secret-token"]


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_artifact_names_stay_in_their_directory(tmp_path, name):
    from agentcore.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="artifact name"):
        save_program(Classifier(), tmp_path, name)


class Breaking(Classifier):
    def __init__(self) -> None:
        super().__init__()
        import os

        os.environ["NOT_SET_HERE"]


def test_a_constructor_that_raises_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("NOT_SET_HERE", "1")
    save_program(Breaking(), tmp_path)
    monkeypatch.delenv("NOT_SET_HERE")
    with pytest.raises(ArtifactError, match="KeyError: 'NOT_SET_HERE'"):
        load_program(tmp_path)


def test_fields_of_any_type_can_be_saved(tmp_path):
    from collections.abc import Callable
    from typing import Annotated

    class Odd(dspy.Signature):
        """Odd."""

        thing: tuple[int, ...] = dspy.InputField()
        many: list[Annotated[int, "positive"]] = dspy.InputField()
        call: Callable[[int], str] = dspy.InputField()
        nothing: None = dspy.InputField()
        colour: str = dspy.OutputField()

    save_program(dspy.Predict(Odd), tmp_path)
    assert load_program(tmp_path, program=dspy.Predict(Odd))
    with pytest.raises(ArtifactError, match="can't be restored"):
        load_program(tmp_path)
