"""One policy for secrets, whatever is written and however it is escaped."""

import base64
import io
import json
import logging
import pickle
import types
from dataclasses import dataclass

import dspy
import pytest
from pydantic import BaseModel, SecretStr

from agentcore._redaction import Redactor, first_line
from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ArtifactError, DataError
from agentcore.lm import offline_lm, program_secrets, redacted_logs
from agentcore.tracking import load_program, program_state, save_program
from tests.support import Classifier, colours, request

AWKWARD = [
    'pa"ss\\word\n1',
    "new\nline and 'quotes'",
    "ключ-пароль-77-abc",
    "sk-live-A1b2C3d4E5f6G7h8",
    'quote"back\\slash/and?query=1&x=%20',
]


@pytest.fixture(params=AWKWARD)
def secret(request, monkeypatch):
    monkeypatch.setenv("SOME_API_TOKEN", request.param)
    return request.param


def test_it_is_found_however_it_is_written(secret):
    from urllib.parse import quote

    redactor = Redactor()
    written = [
        secret,
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        json.dumps({"a": [secret]}),
        repr({"a": secret}),
        json.dumps({"body": json.dumps({"a": secret})}),
        repr(json.dumps({"a": secret})),
        repr(repr(secret)),
        f"postgresql://me:{quote(secret, safe='')}@host/db",
    ]
    for text in written:
        cut = redactor.text(f"before {text} after")
        assert "[redacted]" in cut, text
        assert secret not in cut
        assert json.dumps(secret)[1:-1] not in cut
        assert cut.startswith("before ")
        assert cut.endswith(" after")
        assert redactor.names_in({"deep": [text]}) == ["SOME_API_TOKEN"]
    assert redactor.value({secret: [secret, 1, None]}) == {"[redacted]": ["[redacted]", 1, None]}
    assert redactor.holds(pickle.dumps({"a": secret}))
    assert redactor.holds(secret.encode())
    assert first_line(ValueError(f"it said {secret}")).count("[redacted]") == 1


async def test_no_artifact_holds_it(secret, config):
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    await tracker.log_json("a.json", {"key": secret, secret: [{"deep": f"x{secret}x"}]})
    await tracker.set_tags({"said": f"it was {secret}"})
    await tracker.log_params({"p": secret})
    await tracker.log_optimization_details({"algorithm": "a", "key_improvements": [f"uses {secret}"]})
    program = Classifier()
    program.predict.signature = program.predict.signature.with_instructions(f"Say {secret}.")
    await tracker.log_model_artifact(program, metadata={"note": secret})
    await tracker.end_run()
    assert await tracker.read_json(run_id, "a.json") == {
        "key": "[redacted]",
        "[redacted]": [{"deep": "x[redacted]x"}],
    }
    run = await tracker.get_run(run_id)
    assert (run.data.tags["said"], run.data.params["p"]) == ("it was [redacted]", "[redacted]")
    prompt = await tracker.read_prompt(run_id)
    assert prompt["predict"]["instruction"] == "Say [redacted]."


async def test_a_file_that_was_escaped_by_others_holds_it_neither(secret, config, tmp_path):
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    (tmp_path / "report.json").write_text(json.dumps({"key": secret}))
    await tracker.log_artifact(tmp_path / "report.json")
    (tmp_path / "report.pkl").write_bytes(pickle.dumps({"key": secret, "x": b"\xff"}))
    with pytest.raises(ArtifactError, match="contains a secret and is not logged"):
        await tracker.log_artifact(tmp_path / "report.pkl")


def test_what_is_no_secret_stays(monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "abcdefgh12345678")
    monkeypatch.setenv("SHORT_KEY", "abc")
    monkeypatch.setenv("HOME_SWEET_HOME", "not-a-secret-by-name")
    redactor = Redactor(["given-secret-1", "x"])
    assert redactor.text("x abcdefgh12345678 abc") == "x [redacted] abc"
    assert (
        redactor.text("has given-secret-1 at not-a-secret-by-name")
        == "has [redacted] at not-a-secret-by-name"
    )
    assert redactor.value({"n": 12345678, "t": (1, "y")}) == {"n": 12345678, "t": [1, "y"]}
    cut = first_line(ValueError("x" * 290 + " " + "straddling-secret-1"), secrets=["straddling-secret-1"])
    assert "straddling" not in cut
    assert first_line(ValueError("two\nlines abcdefgh12345678")) == "ValueError: two lines [redacted]"


def test_of_secrets_that_contain_each_other_the_longer_goes_whole():
    redactor = Redactor(["secret-number-1", "secret-number-12"])
    assert redactor.text("a secret-number-12 b secret-number-1 c") == "a [redacted] b [redacted] c"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("customer", True),
        ("password1", True),
        ("production-database", True),
        ("https://auth.example.com/oauth", True),
        ("Xk29dkw02kdLs82ks", False),
        ('with"quote', False),
    ],
)
def test_an_ordinary_word_stays_in_content(monkeypatch, value, kept):
    monkeypatch.setenv("DB_PASSWORD", value)
    assert Redactor().text(f"a {value} b") == "a [redacted] b"
    assert (Redactor().for_content().text(f"a {value} b") == f"a {value} b") is kept


def untracked(config, **values):
    return OptimizationPipeline(Classifier(), lm=offline_lm(), mlflow_config=config, **values)


async def test_a_password_that_is_a_word_of_the_data_is_warned_of_and_the_run_can_be_resumed(
    config, monkeypatch
):
    monkeypatch.setenv("DB_PASSWORD", "grass moss")
    data = colours()
    pipeline = untracked(config)
    result = await pipeline.run_optimization(request(), training_data=data)
    (warning,) = [item for item in result.warnings if "DB_PASSWORD" in item]
    assert warning.startswith(
        "colours, row 1 contains the value of DB_PASSWORD. It looks like an ordinary word"
    )
    assert "grass" not in warning
    content = await MLflowTracker(config).read_json(result.run_id, "training_data.json")
    assert content["examples"] == data.rows()
    demos = [
        demo["thing"]
        for part in (await MLflowTracker(config).read_prompt(result.run_id)).values()
        for demo in part["demos"]
    ]
    assert not any("[redacted]" in thing for thing in demos)


@pytest.mark.parametrize("where", ["environment", "model"])
async def test_an_unmistakable_secret_in_the_data_is_refused_before_anything_is_spent(
    config, monkeypatch, where
):
    key = "sk-live-A1b2C3d4E5f6G7h8"
    lm = offline_lm()
    if where == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", key)
    else:
        lm.kwargs["api_key"] = key
    rows = colours().rows()
    rows[6]["thing"] += f" {key}"
    pipeline = OptimizationPipeline(Classifier(), lm=lm, mlflow_config=config)
    named = "OPENAI_API_KEY" if where == "environment" else "a key of the language model"
    with pytest.raises(DataError, match=f"row 7 contains the value of {named}: remove it") as refused:
        await pipeline.run_optimization(request(), training_data=rows)
    assert key not in str(refused.value)
    assert lm.engine.calls == 0


async def test_a_secret_that_the_data_contains_in_a_url_is_refused_too(config, monkeypatch):
    """It passed the check and was then redacted: the run could not be resumed."""
    monkeypatch.setenv("PROVIDER_API_KEY", "ab/cd+ef12345678==")
    rows = colours().rows()
    rows[2]["thing"] = "https://x/?sig=ab%2Fcd%2Bef12345678%3D%3D"
    with pytest.raises(DataError, match="row 3 contains the value of PROVIDER_API_KEY"):
        await untracked(config).run_optimization(request(), training_data=rows)


async def test_an_unmistakable_secret_in_the_prompt_is_refused_too(config, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-live-A1b2C3d4E5f6G7h8")
    program = Classifier()
    program.predict.signature = program.predict.signature.with_instructions("Use sk-live-A1b2C3d4E5f6G7h8.")
    pipeline = OptimizationPipeline(program, lm=offline_lm(), mlflow_config=config)
    with pytest.raises(DataError, match="the program's prompt contains the value of OPENAI_API_KEY"):
        await pipeline.run_optimization(request(), training_data=colours())


def test_a_saved_program_says_that_something_was_cut_out_of_it(secret, tmp_path, caplog):
    program = Classifier()
    save_program(program, tmp_path / "clean")
    program.predict.signature = program.predict.signature.with_instructions(f"Say {secret}.")
    save_program(program, tmp_path / "cut")
    assert program_state(load_program(tmp_path / "clean")) == program_state(Classifier())
    assert not caplog.records
    loaded = load_program(tmp_path / "cut")
    assert loaded.predict.signature.instructions == "Say [redacted]."
    assert "held a secret" in caplog.text
    assert all(secret.encode() not in file.read_bytes() for file in (tmp_path / "cut").iterdir())


PLACES = {
    "models in a list": lambda key: {"lms": [dspy.LM("openai/x", api_key=key)]},
    "models by name": lambda key: {"models": {"fast": dspy.LM("openai/x", api_key=key)}},
    "an object": lambda key: {"settings": types.SimpleNamespace(api_key=key)},
    "a dataclass in a tuple": lambda key: {"both": (Holder(key), 1)},
    "a pydantic model": lambda key: {"settings": Settings(secret=SecretStr(key))},
    "headers as pairs": lambda key: {"headers": [("X-Auth", key)]},
    "a secret header": lambda key: {"extra_headers": {"X-Auth": SecretStr(key)}},
    "credentials": lambda key: {"credentials": {"pair": ("me", key)}},
    "bytes": lambda key: {"password": key.encode()},
    "a set": lambda key: {"secrets": {key}},
    "a user of an address": lambda key: {"base": f"https://{key}@host/v1"},
    "a signature in an address": lambda key: {"base": f"https://host/x?sig={key}"},
    "an address in a name": lambda key: {"lm": dspy.LM(f"huggingface/https://u:{key}@host")},
    "a passphrase": lambda key: {"passphrase": key},
    "a connection string": lambda key: {"connection_string": key},
}


@dataclass
class Holder:
    api_key: str


class Settings(BaseModel):
    secret: SecretStr


@pytest.mark.parametrize("place", PLACES)
def test_secrets_of_a_program_are_found_wherever_they_are(place):
    key = "sk-live-Q1w2E3r4T5y6U7"
    program = dspy.Predict("question -> answer")
    program.demos = [dspy.Example(question="what is the key?", token="an ordinary word", answer="x")]
    vars(program).update(PLACES[place](key))
    found = program_secrets(program)
    assert "an ordinary word" not in found
    assert key not in Redactor(found).text(f"Incorrect API key provided: {key}")


def test_user_names_and_passwords_held_apart_are_found_together():
    program = dspy.Predict("question -> answer")
    program.store = {"username": "me", "password": "Q1w2E3r4T5y6"}
    sent = base64.b64encode(b"me:Q1w2E3r4T5y6").decode()
    assert sent not in Redactor(program_secrets(program)).text(f"Authorization: Basic {sent}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql://me:{}@db/x"),
        ("AGENTCORE_JOURNAL_URL", "postgresql+psycopg://me:{}@db/x"),
        ("MYAPP_AUTH", "{}"),
        ("MYAPP_PWD", "{}"),
        ("SSH_PASSPHRASE", "{}"),
    ],
)
def test_secrets_of_the_environment_have_many_names(monkeypatch, name, value):
    monkeypatch.setenv(name, value.format("Q1w2E3r4T5y6U7"))
    assert "Q1w2E3r4" not in Redactor().text("refused Q1w2E3r4T5y6U7")


def test_a_logged_traceback_is_redacted_and_kept(caplog):
    key = "sk-live-Q1w2E3r4T5y6U7"
    logger = logging.getLogger("provider")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        with redacted_logs(Redactor([key])):
            try:
                raise ValueError(f"refused {key}")
            except ValueError:
                logger.exception("the call failed")
                logging.getLogger("other").warning("it failed", stack_info=True)
    finally:
        logging.getLogger().removeHandler(handler)
    assert "ValueError: refused [redacted]" in stream.getvalue()
    assert key not in stream.getvalue()
