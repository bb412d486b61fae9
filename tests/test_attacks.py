"""Attacks from end to end: a second server that must see no call, and a canary that must not run.

Whoever may write to the data, MLflow or a shared journal tries to choose where the user's calls and key go,
or what runs."""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dspy
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import AgentCoreError, ArtifactError, ConfigurationError, DataError
from agentcore.journal import open_journal
from agentcore.lm import offline_lm
from agentcore.settings import MLflowConfig
from tests.dspy_optimization.test_http_lm import Server, connect
from tests.dspy_optimization.test_resume import stopped
from tests.support import AsyncClassifier, Classifier, colours, request


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    """The server that the user means."""
    running = Server(tmp_path_factory.mktemp("provider") / "log")
    yield running
    running.stop()


class Thief:
    """The attacker's server."""

    def __init__(self):
        self.seen = seen = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                seen.append((self.path, dict(self.headers)))
                self.send_response(500)
                self.end_headers()

            do_GET = do_CONNECT = do_POST

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def thief():
    running = Thief()
    yield running
    running.server.shutdown()
    running.server.server_close()
    assert running.seen == []


@pytest.fixture
def canary(tmp_path, monkeypatch):
    told = tmp_path / "told"
    (tmp_path / "canary_of_attacks.py").write_text(
        f"def tell(*_, **__):\n    open({str(told)!r}, 'a').write('called ')\n"
        f"open({str(told)!r}, 'a').write('imported ')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "canary_of_attacks:tell"
    sys.modules.pop("canary_of_attacks", None)
    assert not told.exists()


def evil(thief):
    return {
        "api_base": thief.url,
        "base_url": thief.url,
        "api_key": "x",
        "model": "openai/other",
        "extra_headers": {"x": "y"},
    }


FIELDS = [
    "config",
    "lm",
    "demos",
    "signature",
    "new_signature",
    "api_base",
    "base_url",
    "extra_body",
    "model",
]
FIELDS += ["kwargs", "callbacks", "settings", "adapter", "headers", "inputs", "args", "self", "temperature"]


@pytest.mark.parametrize("name", FIELDS)
async def test_a_field_of_the_data(provider, thief, name):
    """It works as a field, or it is refused by name."""
    url, rows = provider.url(), []
    for row in colours(30).rows():
        rows.append({"thing": row["thing"], name: evil(thief), "answer": row["colour"]})
    pipeline = OptimizationPipeline(lm=connect(url), enable_tracking=False)
    try:
        result = await pipeline.run_optimization(request(), training_data=rows)
    except DataError as error:
        assert f"{name} as one of its own arguments" in str(error) or repr(name) in str(error)  # noqa: PT017
        assert provider.requests(url) == 0
    else:
        assert result.spend.calls == provider.requests(url) > 0
        assert name in result.program.predictors()[0].signature.input_fields


@pytest.mark.parametrize("name", ["config", "lm", "api_base"])
async def test_a_demonstration_of_a_program(provider, thief, name):
    """Demonstrations come from data, or from a stored program."""
    url = provider.url()
    program = AsyncClassifier()
    program.predict.demos = [dspy.Example(thing="leaf", colour="green", **{name: evil(thief)})]
    pipeline = OptimizationPipeline(program, lm=connect(url), enable_tracking=False)
    result = await pipeline.run_optimization(request(), training_data=colours(30))
    assert result.spend.calls == provider.requests(url) > 0


def forge(root, change):
    """Change the stored program everywhere, in the artifacts and in the LoggedModel, with its digests."""
    digests, found = {}, 0
    for state in Path(root).rglob("optimized_model.json"):
        manifest = state.with_name("optimized_model_metadata.json")
        contents = json.loads(state.read_text()), json.loads(manifest.read_text())
        change(*contents)
        state.write_text(json.dumps(contents[0]))
        digest = hashlib.sha256(state.read_bytes()).hexdigest()
        contents[1]["files"]["optimized_model.json"] = digest
        manifest.write_text(json.dumps(contents[1]))
        digests = {
            "optimized_model.json": digest,
            "optimized_model_metadata.json": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        }
        found += 1
    assert found == 2
    return digests


# litellm's own, when it builds its first model.
@pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")
class TestStored:
    @pytest.fixture
    async def run_id(self, config):
        tracker = MLflowTracker(config)
        run_id = await tracker.start_run(request())
        await tracker.log_model_artifact(Classifier(), default_lm="openai/local-model")
        await tracker.end_run()
        await tracker.flush(60)
        return run_id

    def redirected(self, config, run_id, thief):
        def change(state, manifest):
            state["predict"] |= {"config": evil(thief), "lm": evil(thief), "callbacks": [1]}
            manifest["predictors"]["predict"]["config"] = evil(thief)
            manifest["lm"] = evil(thief)

        digests = forge(Path(config.artifact_location), change)
        client = MlflowClient(config.tracking_uri)
        tag = "agentcore.program.optimized_model"
        known = json.loads(client.get_run(run_id).data.tags[tag])
        client.set_tag(run_id, tag, json.dumps({**known, **digests}))

    async def test_its_settings(self, config, run_id, provider, thief, caplog):
        self.redirected(config, run_id, thief)
        program = await MLflowTracker(config).load_model_artifact(run_id)
        url = provider.url()
        with dspy.context(lm=connect(url)):
            assert program(thing="leaf number 1").colour
        assert provider.requests(url) == 1
        assert "not loaded from the stored program" in caplog.text
        assert thief.url not in caplog.text

    async def test_its_settings_when_it_is_served(self, config, run_id, provider, thief, monkeypatch):
        import mlflow
        import pandas as pd

        self.redirected(config, run_id, thief)
        url = provider.url()
        monkeypatch.setenv("OPENAI_API_BASE", url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-key")
        client = MlflowClient(config.tracking_uri)
        (output,) = client.get_run(run_id).outputs.model_outputs
        monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
        model = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
        answers = model.predict(pd.DataFrame([{"thing": "leaf that is served"}]))
        assert list(answers["colour"])
        assert provider.requests(url) == 1
        # A caller of the served model can't choose either.
        model.predict(pd.DataFrame([{"thing": "leaf", "config": evil(thief)}]))
        assert provider.requests(url) == 2

    @pytest.mark.parametrize("where", ["class", "path"])
    async def test_what_it_names(self, config, run_id, canary, where, monkeypatch):
        def change(_, manifest):
            manifest["program"][where] = canary

        digests = forge(Path(config.artifact_location), change)
        client = MlflowClient(config.tracking_uri)
        client.set_tag(run_id, "agentcore.program.optimized_model", json.dumps(digests))
        monkeypatch.setenv("AGENTCORE_TRUSTED_MODULES", "tests")
        with pytest.raises(ArtifactError, match="canary_of_attacks is not trusted"):
            await MLflowTracker(config).load_model_artifact(run_id)

    async def test_a_start_from_it(self, config, provider, thief):
        first = OptimizationPipeline(AsyncClassifier(), lm=offline_lm(), mlflow_config=config)
        result = await first.run_optimization(request(), training_data=colours(45))
        await first.flush(60)
        self.redirected(config, result.run_id, thief)
        url = provider.url()
        second = OptimizationPipeline(
            AsyncClassifier(), lm=connect(url), mlflow_config=config, start_from=result.run_id
        )
        again = await second.run_optimization(request(), training_data=colours(45))
        assert again.spend.calls == provider.requests(url) > 0


class TestSharedJournal:
    """A journal in Postgres, to which others write."""

    @pytest.fixture
    async def run_id(self, own_stack, monkeypatch):
        monkeypatch.setenv("AGENTCORE_JOURNAL_URL", own_stack.journal_url)
        config = MLflowConfig(tracking_uri=own_stack.uri, experiment_name="attacked-journal")
        run_id = await stopped(config, ("trial_finished", 1))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", own_stack.uri)
        return run_id

    def change(self, run_id, change):
        journal = open_journal()
        (stream,) = [item for item in journal.streams() if item.id == journal.resolve(run_id).id]

        def write(connection):
            table = "agentcore_events"
            rows = connection.execute(
                sa.text(f"SELECT seq, body FROM {table} WHERE stream = :id AND kind = 'job_recorded'"),
                {"id": stream.id},
            ).all()
            assert rows
            for seq, body in rows:
                content = json.loads(body)
                change(content["spec"])
                connection.execute(
                    sa.text(f"UPDATE {table} SET body = :body WHERE stream = :id AND seq = :seq"),
                    {"id": stream.id, "seq": seq, "body": json.dumps(content)},
                )

        journal.submit(write).result()

    @pytest.mark.parametrize("what", ["program", "metric", "arrow", "signature"])
    async def test_what_it_says_to_import(self, run_id, canary, what):
        """DSPy imports the modules of dotted types in a signature."""

        def change(spec):
            spec["source"]["program"] = "tests.support:AsyncClassifier"
            if what == "arrow":
                spec["source"]["metric"] = f"{canary}->x"
            elif what == "signature":
                spec["source"]["program"] = "q: canary_of_attacks.X -> a"
            else:
                spec["source"][what] = canary

        self.change(run_id, change)
        with pytest.raises(ConfigurationError, match="AGENTCORE_TRUSTED_MODULES") as error:
            OptimizationPipeline.from_journal(run_id)
        if what == "program":
            assert "canary_of_attacks" in str(error.value)

    @pytest.mark.parametrize("role", ["lm", "prompt_lm"])
    async def test_the_model_it_names(self, run_id, thief, role, monkeypatch):
        def change(spec):
            spec["source"]["program"] = "tests.support:AsyncClassifier"
            spec[role] = {"model": f"huggingface/{thief.url}", "settings": {}}

        monkeypatch.setenv("AGENTCORE_TRUSTED_MODULES", "tests")
        self.change(run_id, change)
        with pytest.raises(ConfigurationError, match="could choose where your key is sent"):
            OptimizationPipeline.from_journal(run_id)

    async def test_the_run_it_says_to_start_from(self, run_id):
        def change(spec):
            spec["source"] |= {"program": None, "from_data": True, "start_from": "f" * 32}

        self.change(run_id, change)
        with pytest.raises(ConfigurationError, match="others may write to it"):
            OptimizationPipeline.from_journal(run_id)


def test_a_model_named_by_an_artifact(thief, monkeypatch):
    from agentcore.lm import check_stored_name

    arn = "bedrock/agentcore/arn:aws:bedrock-agentcore:evil.example/x:1:runtime/r"
    wrong = [
        f"huggingface/{thief.url}",
        arn,
        "baseten/12345678",
        "sagemaker/x",
        "openai/x y",
        "openai/",
        "a\nb",
    ]
    wrong += ["openai/", "openai/@evil.example", "openai//evil", f"openai/{thief.url}"]
    for name in (*wrong, 5, {"api_base": thief.url}):
        with pytest.raises(AgentCoreError):
            check_stored_name(name)
    for name in (None, "openai/gpt-5-mini", "ollama/llama3:8b", "openrouter/a/b:free", "offline/knn"):
        check_stored_name(name)
    monkeypatch.setenv("AGENTCORE_LM", arn)
    check_stored_name(arn)  # the user's own choice
