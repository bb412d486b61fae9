"""Every environment variable that AgentCore reads."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentcore.errors import ConfigurationError

ENV_FILE = ".env.mlflow"
DEFAULT_TRACKING_URI = "http://localhost:5000"
_URI_SCHEMES = (
    "http://",
    "https://",
    "sqlite:///",
    "postgresql://",
    "postgresql+",
    "mysql+",
    "mssql+",
    "databricks",
)


class _EnvSettings(BaseSettings):
    """Settings from arguments, else the environment, else `.env.mlflow` in the working directory."""

    def __init__(self, **values: Any) -> None:
        check_env_file(Path(ENV_FILE))
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(
                f"{type(self).__name__}: {explain(error)} (from the arguments, the environment or {ENV_FILE})"
            ) from None


class Settings(_EnvSettings):
    """AgentCore's own variables, `AGENTCORE_*`."""

    model_config = SettingsConfigDict(env_prefix="AGENTCORE_", env_file=ENV_FILE, extra="ignore")

    lm: str | None = None
    """`AGENTCORE_LM`: the language model where neither `lm=` nor `--lm` names one."""
    prompt_lm: str | None = None
    """`AGENTCORE_PROMPT_LM`: the model that proposes instructions; default: the same as `lm`."""
    state_dir: Path | None = None
    """`AGENTCORE_STATE_DIR`: where the journal is kept; default: `~/.local/state/agentcore`."""
    journal_url: SecretStr | None = None
    """`AGENTCORE_JOURNAL_URL`: a journal that several machines share, `postgresql+psycopg://…`."""
    journal_keep_days: float = Field(default=7.0, ge=0)
    """`AGENTCORE_JOURNAL_KEEP_DAYS`: how long runs stay in the journal after MLflow has them."""
    max_artifact_mb: float = Field(default=256.0, gt=0)
    """`AGENTCORE_MAX_ARTIFACT_MB`: the largest artifact that is logged, in MiB."""

    @field_validator("journal_url")
    @classmethod
    def _known_journal(cls, value: SecretStr | None) -> SecretStr | None:
        advice = "use postgresql+psycopg://user:password@host/database, or leave it out for a file"
        if value is not None:
            from sqlalchemy.engine import make_url
            from sqlalchemy.exc import ArgumentError

            try:
                driver = make_url(value.get_secret_value()).drivername
            except (ValueError, ArgumentError):
                raise ValueError(advice) from None
            if driver not in ("postgresql+psycopg", "sqlite"):
                raise ValueError(advice)
        return value

    def state_directory(self) -> Path:
        """`state_dir`, else where the system keeps a user's state.

        Raises:
            ConfigurationError: there is neither.
        """
        if self.state_dir is not None:
            return self.state_dir.expanduser().absolute()
        try:
            home = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
        except RuntimeError:
            raise ConfigurationError("no home directory for the journal: set AGENTCORE_STATE_DIR") from None
        return home.absolute() / "agentcore"


class MLflowConfig(_EnvSettings):
    """Where runs are tracked. Arguments win over `MLFLOW_*` variables, these over `.env.mlflow`.

    Raises:
        ConfigurationError: a value is invalid, or `.env.mlflow` can't be parsed.
    """

    model_config = SettingsConfigDict(env_prefix="MLFLOW_", env_file=ENV_FILE, extra="ignore")

    tracking_uri: str = DEFAULT_TRACKING_URI
    experiment_name: str = "dspy-optimization"
    artifact_location: str | None = None
    registry_uri: str | None = None
    tracking_username: str | None = None
    tracking_password: SecretStr | None = None
    tracking_token: SecretStr | None = None
    request_timeout: float = 10.0
    """Seconds that one request may take."""

    @field_validator("tracking_uri", "registry_uri")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(_URI_SCHEMES):
            raise ValueError(
                f"{value!r} is no tracking URI: use http://host:port, sqlite:///file.db or postgresql+psycopg://…"
            )
        return value

    @field_validator("experiment_name")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the experiment's name is empty")
        return value


def shown_uri(uri: str) -> str:
    """A tracking URI without what may be a password."""
    scheme, separator, rest = uri.partition("://")
    shown = rest.rpartition("@")[2]
    if scheme.startswith(("postgresql", "mysql", "mssql")):
        shown = shown.partition("?")[0]  # drivers take a password there too
    return f"{scheme}{separator}{shown}"


def explain(error: ValidationError) -> str:
    """A pydantic error on one line, without the rejected input (it may be a secret)."""
    parts = []
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message}" if where else message)
    return "; ".join(parts)


def check_env_file(path: Path) -> None:
    """Refuse a malformed environment file, which its parser would only warn of.

    Raises:
        ConfigurationError: names the file and the first line that can't be parsed.
    """
    if not path.is_file():
        return
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8") as stream:
            for binding in parse_stream(stream):
                if binding.error or (binding.key is not None and binding.value is None):
                    raise ConfigurationError(
                        f"{path}, line {binding.original.line}: expected NAME=value. "
                        "Correct or remove that line"
                    )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} can't be read as UTF-8 text: {error}") from None
