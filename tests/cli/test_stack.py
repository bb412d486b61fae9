"""`agentcore stack init`."""

import re
import stat
from pathlib import Path

from dotenv import dotenv_values

from agentcore.settings import MLflowConfig, Settings, StackSettings

ROOT = Path(__file__).parents[2]


def test_it_writes_secrets_for_the_user_alone(command, tmp_path):
    code, told = command("stack", "init", "--auth")
    path = tmp_path / ".env.mlflow"
    assert code == 0
    assert "docker compose -f docker-compose.mlflow.yml --env-file .env.mlflow up" in told.out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    values = dotenv_values(path)
    secrets = [value for name, value in values.items() if re.search("PASSWORD|SECRET", name)]
    assert len(secrets) == 5
    assert all(len(value) >= 24 for value in secrets)
    assert not any(value in told.out for value in secrets)
    config = MLflowConfig()
    assert config.tracking_password.get_secret_value() == values["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert StackSettings().s3_keys == (values["S3_ACCESS_KEY_ID"], values["S3_SECRET_ACCESS_KEY"])
    other = tmp_path / "other"
    assert command("stack", "init", "--file", str(other))[0] == 0
    assert "COMPOSE_PROFILES" not in dotenv_values(other)
    assert dotenv_values(other)["POSTGRES_PASSWORD"] != values["POSTGRES_PASSWORD"]


def test_secrets_for_a_cluster(command, tmp_path):
    (tmp_path / "k8s" / "overlays" / "local").mkdir(parents=True)
    code, told = command("stack", "init", "--kubernetes")
    path = tmp_path / "k8s" / "overlays" / "local" / "secrets.env"
    assert code == 0
    assert "kubectl apply -k k8s/overlays/local" in told.out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert all(len(value) >= 20 for name, value in dotenv_values(path).items() if name != "POSTGRES_USER")


def test_it_overwrites_nothing(command, tmp_path):
    (tmp_path / ".env.mlflow").write_text("MLFLOW_TRACKING_URI=http://kept:1\n")
    code, told = command("stack", "init")
    assert code == 2
    assert ".env.mlflow already exists" in told.err
    assert "kept" in (tmp_path / ".env.mlflow").read_text()
    code, told = command("stack", "init", "--file", str(tmp_path / "nowhere" / "x"))
    assert code == 2
    assert "can't be written" in told.err


def test_the_example_explains_every_variable():
    text = (ROOT / ".env.mlflow.example").read_text()
    told = set(re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))
    compose = (ROOT / "docker-compose.mlflow.yml").read_text()
    asked = set(re.findall(r"\$\{([A-Z0-9_]+)", compose))
    asked |= {f"MLFLOW_{name.upper()}" for name in MLflowConfig.model_fields}
    asked |= {
        str(field.validation_alias or f"AGENTCORE_{name.upper()}")
        for name, field in Settings.model_fields.items()
    }
    assert asked <= told
    # Copied as it is, it changes nothing: every value in it is the default.
    for name, value in dotenv_values(ROOT / ".env.mlflow.example").items():
        defaults = re.findall(rf"\$\{{{name}:-([^}}]*)\}}", compose)
        assert not defaults or value in defaults, name
