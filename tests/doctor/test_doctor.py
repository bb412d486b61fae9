"""`agentcore doctor` against the real stack: all well, and each thing that goes wrong for users."""

import json

import pytest

from agentcore.doctor import CHECKS, Places, diagnose
from agentcore.errors import ConfigurationError
from agentcore.settings import MLflowConfig, StackSettings
from tests.support.proxy import Proxy
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY


def stack_settings(stack, **values):
    return StackSettings(
        **{
            "mlflow_backend_store_uri": stack._database("mlflow"),
            "mlflow_artifacts_destination": "s3://mlflow",
            "mlflow_s3_endpoint_url": stack.s3.url,
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
            **values,
        }
    )


async def findings(config, *only, lm=None, stack=None):
    places = Places(config, lm, stack or StackSettings())
    return [finding async for finding in diagnose(places, only)]


async def one(config, check, **places):
    (finding,) = await findings(config, check, **places)
    return finding


async def test_all_is_well(own_stack, server):
    found = await findings(server, lm="offline/knn", stack=stack_settings(own_stack))
    assert [(item.check, item.status) for item in found] == [(name, "ok") for name in CHECKS]
    told = {item.check: item.message for item in found}
    assert "MLflow 3." in told["tracking"]
    assert told["artifacts"].startswith("written, read and deleted under mlflow-artifacts:")
    assert "its schema is current" in told["database"]
    assert "in parts too" in told["s3"]
    assert "holds 0 runs" in told["journal"]
    # It leaves nothing behind.
    assert not own_stack.client().list_objects_v2(Bucket="mlflow", Prefix="agentcore-doctor").get("Contents")


async def test_a_local_store_needs_no_server(config):
    found = {item.check: item for item in await findings(config)}
    assert found["tracking"].status == found["artifacts"].status == found["journal"].status == "ok"
    assert {name for name, item in found.items() if item.status == "skipped"} == {
        *("clock", "database", "s3", "lm")
    }


async def test_a_server_that_is_not_there():
    found = await findings(MLflowConfig(tracking_uri="http://127.0.0.1:9"), "tracking", "clock", "artifacts")
    assert [item.status for item in found] == ["failed", "skipped", "skipped"]
    assert found[0].message == "http://127.0.0.1:9: Connection refused"
    assert "MLFLOW_TRACKING_URI" in found[0].advice


async def test_a_name_that_the_server_does_not_know_itself_by(own_stack):
    other_name = own_stack.uri.replace("127.0.0.1", "0x7f000001")
    found = await one(MLflowConfig(tracking_uri=other_name), "tracking")
    assert found.status == "failed"
    assert "403" in found.message
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" in found.advice


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        ("401", "MLFLOW_TRACKING_PASSWORD"),
        ("403", "lacks the permission"),
        ("404", "No MLflow there"),
        ("503", "look at Postgres"),
        ("pool", "look at Postgres"),
    ],
)
async def test_what_a_server_answers_is_explained(stack, answer, advice):
    proxy = Proxy(stack.uri)
    proxy.fault = lambda method, path: answer
    try:
        found = await one(MLflowConfig(tracking_uri=proxy.url), "tracking")
    finally:
        proxy.close()
    assert found.status == "failed"
    assert advice in found.advice


async def test_a_server_that_hangs(stack):
    proxy = Proxy(stack.uri)
    proxy.fault = lambda method, path: "hang"
    try:
        found = await one(MLflowConfig(tracking_uri=proxy.url), "tracking")
    finally:
        proxy.close()
    assert found.message.endswith("timed out")
    assert "doesn't answer" in found.advice


async def test_tls_where_there_is_none(stack):
    found = await one(MLflowConfig(tracking_uri=stack.uri.replace("http:", "https:")), "tracking")
    assert found.status == "failed"
    assert "http://" in found.advice


async def test_artifacts_when_s3_is_away(own_stack, server):
    own_stack.s3.stop()
    try:
        found = await one(server, "artifacts")
    finally:
        own_stack.s3.start()
    assert found.status == "failed"
    assert "its S3 endpoint" in found.advice


async def test_databases(own_stack, tmp_path):
    config = MLflowConfig(tracking_uri=own_stack.uri)

    async def check(url):
        return await one(config, "database", stack=stack_settings(own_stack, mlflow_backend_store_uri=url))

    found = await check("postgresql+psycopg://someone:hunter2%40x@127.0.0.1:9/mlflow")
    assert found.status == "failed"
    assert "hunter2" not in found.message
    found = await check(own_stack.journal_url)
    assert "holds no MLflow tables" in found.message
    assert "mlflow db upgrade" in found.advice
    import sqlite3

    with sqlite3.connect(tmp_path / "old.db") as old:
        old.execute("create table alembic_version (version_num text)")
        old.execute("insert into alembic_version values ('aaaa')")
    found = await check(f"sqlite:///{tmp_path / 'old.db'}")
    assert found.status == "failed"
    assert "schema aaaa" in found.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"aws_secret_access_key": "not-the-secret"},
        {"mlflow_artifacts_destination": "s3://no-such-bucket"},
        {"mlflow_s3_endpoint_url": "http://127.0.0.1:9"},
    ],
)
async def test_an_object_store_that_refuses(own_stack, wrong):
    found = await one(
        MLflowConfig(tracking_uri=own_stack.uri), "s3", stack=stack_settings(own_stack, **wrong)
    )
    assert found.status == "failed"
    assert SECRET_KEY not in found.message
    assert "both keys" in found.advice


async def test_a_model_that_fails(config):
    found = await one(config, "lm", lm="nonsense")
    assert found.status == "failed"
    assert "provider/model" in found.message


async def test_a_journal_that_cant_be_written(config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AGENTCORE_STATE_DIR", str(tmp_path / "file"))
    found = await one(config, "journal")
    assert found.status == "failed"
    assert "AGENTCORE_STATE_DIR" in found.advice


async def test_secrets_are_masked_and_a_readable_file_is_told(tmp_path):
    path = tmp_path / ".env.mlflow"
    path.write_text("MLFLOW_TRACKING_PASSWORD=hunter2\nMLFLOW_TRACKING_URI=http://u:hunter2@host:1\n")
    path.chmod(0o644)
    found = await findings(MLflowConfig(), "settings")
    assert [item.status for item in found] == ["ok", "failed"]
    assert "hunter2" not in str(found)
    assert "MLFLOW_TRACKING_PASSWORD=********" in found[0].message
    assert found[1].advice == "chmod 600 .env.mlflow"


async def test_a_check_that_there_is_not(config):
    with pytest.raises(ConfigurationError, match="no check nothing: there are settings, tracking"):
        await findings(config, "nothing")


def test_the_stacks_own_variables_tell_where_it_is(monkeypatch):
    assert StackSettings().database_url is None
    assert StackSettings().bucket is None
    monkeypatch.setenv("POSTGRES_PASSWORD", "a@b")
    monkeypatch.setenv("S3_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("S3_SECRET_ACCESS_KEY", "secret")
    settings = StackSettings()
    assert settings.database_url == "postgresql+psycopg://mlflow:a%40b@127.0.0.1:5433/mlflow"
    assert (settings.bucket, settings.s3_endpoint) == ("mlflow", "http://127.0.0.1:8333")
    assert settings.s3_keys == ("key", "secret")


def test_exit_codes_and_json(command, monkeypatch, config):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    code, told = command("doctor", "--only", "tracking", "--only", "journal", "--json")
    assert code == 0
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [(item["check"], item["status"]) for item in lines] == [("tracking", "ok"), ("journal", "ok")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, told = command("doctor", "--only", "tracking")
    assert code == 3
    assert "failed  tracking  http://127.0.0.1:9: Connection refused" in told.out
    assert "→ Start it" in told.out
    assert command("doctor", "--only", "nothing")[0] == 2
