"""Every environment variable that AgentCore reads."""

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

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
    """Settings from arguments, the environment or `.env.mlflow` in the working directory, in that order."""

    model_config = SettingsConfigDict(env_file=ENV_FILE, env_ignore_empty=True, extra="ignore")

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

    model_config = SettingsConfigDict(env_prefix="AGENTCORE_")

    lm: str | None = None
    """`AGENTCORE_LM`: the language model to use if neither `lm=` nor `--lm` is set."""
    prompt_lm: str | None = None
    """`AGENTCORE_PROMPT_LM`: the model that proposes instructions; defaults to `lm`."""
    state_dir: Path | None = None
    """`AGENTCORE_STATE_DIR`: the journal's directory; default: `~/.local/state/agentcore`."""
    journal_url: SecretStr | None = None
    """`AGENTCORE_JOURNAL_URL`: a journal shared by several machines, `postgresql+psycopg://…`."""
    journal_keep_days: float = Field(default=7.0, ge=0)
    """`AGENTCORE_JOURNAL_KEEP_DAYS`: days to keep a run in the journal after it is delivered to MLflow."""
    max_artifact_mb: float = Field(default=256.0, gt=0)
    """`AGENTCORE_MAX_ARTIFACT_MB`: the size limit for logged artifacts, in MiB."""
    agent: str | None = None
    """`AGENTCORE_AGENT`: the agent whose experiments optimizations are logged to; see `Experiments`."""
    agent_version: str = "v0"
    """`AGENTCORE_AGENT_VERSION`: the value of the tag `agent_version`."""
    environment: Literal["dev", "staging", "production"] = "dev"
    """`AGENTCORE_ENVIRONMENT`: the value of the tag `environment`."""
    data: str = "data/evaluation"
    """Where the commands keep data sets: a directory, or `s3://bucket/prefix`."""
    eval_mode: str = Field(default="manual", validation_alias="EVAL_MODE")
    """`EVAL_MODE`: how what is evaluated was made, such as mcp or vanilla_sdk; see `EvaluationTracker`."""
    metrics_window: float = Field(default=15.0, gt=0)
    """`AGENTCORE_METRICS_WINDOW`: seconds between two writes of a running agent's metrics and traces."""
    trace_sampling: float = Field(default=1.0, ge=0, le=1)
    """`AGENTCORE_TRACE_SAMPLING`: share of the requests, 0–1, that become traces."""
    trace_kb: float = Field(default=64.0, gt=0)
    """`AGENTCORE_TRACE_KB`: the size limit, in KiB, for the request and for the answer in a trace."""
    alert_urls: SecretStr | None = None
    """`AGENTCORE_ALERT_URLS`: where alerts go, in Apprise's syntax, separated by spaces or commas."""
    domains: str = ""
    """`AGENTCORE_DOMAINS`: further values of the tag `domain`, separated by commas."""
    trusted_modules: str = ""
    """`AGENTCORE_TRUSTED_MODULES`: the packages, separated by commas, that loading a stored program may
    import; empty for any outside the standard library."""

    signing_key: SecretStr | None = None
    """`AGENTCORE_SIGNING_KEY`: an Ed25519 private key in base64, with which saved programs are signed."""
    trusted_keys: str = ""
    """`AGENTCORE_TRUSTED_KEYS`: Ed25519 public keys in base64, separated by commas. If any is set, a stored
    program is loaded and served only if it is signed with one of them."""

    @field_validator("journal_url")
    @classmethod
    def _known_journal(cls, value: SecretStr | None) -> SecretStr | None:
        advice = "use postgresql+psycopg://user:password@host/database, or leave it unset to use a file"
        if value is not None:
            value = SecretStr(value.get_secret_value().strip())
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
        """`state_dir` if set, else `agentcore` in the user's XDG state directory.

        Raises:
            ConfigurationError: `state_dir` is not set and there is no home directory.
        """
        if self.state_dir is not None:
            return self.state_dir.expanduser().absolute()
        try:
            home = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
        except RuntimeError:
            raise ConfigurationError("no home directory for the journal: set AGENTCORE_STATE_DIR") from None
        return home.absolute() / "agentcore"


def is_trusted(module: str) -> bool:
    """Whether a module is of one of the packages in `AGENTCORE_TRUSTED_MODULES`."""
    names = (name.strip() for name in Settings().trusted_modules.split(","))
    return any(name and (module == name or module.startswith(f"{name}.")) for name in names)


class MLflowConfig(_EnvSettings):
    """Where runs are tracked. Arguments override `MLFLOW_*` variables, which override `.env.mlflow`.

    Raises:
        ConfigurationError: a value is invalid, or `.env.mlflow` can't be parsed.
    """

    model_config = SettingsConfigDict(env_prefix="MLFLOW_")

    tracking_uri: str = DEFAULT_TRACKING_URI
    experiment_name: str = "dspy-optimization"
    artifact_location: str | None = None
    registry_uri: str | None = None
    tracking_username: str | None = None
    tracking_password: SecretStr | None = None
    tracking_token: SecretStr | None = None
    request_timeout: float = 10.0
    """Timeout of one request, in seconds."""

    def __init__(self, **values: Any) -> None:
        if values.get("tracking_token") and not values.keys() & {"tracking_username", "tracking_password"}:
            # A name and password from the environment would win, and they may be another server's.
            values |= {"tracking_username": None, "tracking_password": None}
        super().__init__(**values)

    @field_validator("tracking_uri", "registry_uri")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        return None if value is None else checked_uri(value)

    @field_validator("experiment_name")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the experiment's name is empty")
        return value


class ApiSettings(_EnvSettings):
    """The HTTP API's variables, `AGENTCORE_API_*`."""

    model_config = SettingsConfigDict(env_prefix="AGENTCORE_API_")

    agents: Path = Path("agents.toml")
    """`AGENTCORE_API_AGENTS`: the file that says which programs and data sets requests may use."""
    host: str = "127.0.0.1"
    """`AGENTCORE_API_HOST`: the address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """`AGENTCORE_API_PORT`: the port to listen on; 0 for any free one."""
    tokens: SecretStr | None = None
    """`AGENTCORE_API_TOKENS`: who may do what, as `name:role:token`, separated by commas or spaces; the roles
    are read, run and promote, each including the ones before it."""
    allowed_hosts: str = ""
    """`AGENTCORE_API_ALLOWED_HOSTS`: the host names by which clients reach the API, separated by commas;
    localhost is always allowed. Empty: any name, but on loopback only localhost."""
    max_body_mb: float = Field(default=10.0, gt=0)
    """`AGENTCORE_API_MAX_BODY_MB`: the size limit for a request's body, in MiB."""
    rate: int = Field(default=6000, gt=0)
    """`AGENTCORE_API_RATE`: how many requests a minute each token may make of one replica."""
    reuse_port: bool = False
    """`AGENTCORE_API_REUSE_PORT`: let several replicas on one machine share the port (Linux)."""
    jobs: int = Field(default=1, ge=0)
    """`AGENTCORE_API_JOBS`: how many optimizations, evaluations and promotions one replica works on at once;
    0 for a replica that only serves."""


class StackSettings(_EnvSettings):
    """The services behind MLflow, for checks. Variables of MLflow and AWS override the compose file's."""

    mlflow_backend_store_uri: SecretStr | None = None
    mlflow_artifacts_destination: str | None = None
    mlflow_s3_endpoint_url: str | None = None
    aws_access_key_id: SecretStr | None = None
    aws_secret_access_key: SecretStr | None = None
    postgres_user: str = "mlflow"
    postgres_password: SecretStr | None = None
    postgres_port: int = 5433
    s3_bucket: str = "mlflow"
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None
    s3_port: int = 8333

    @property
    def database_url(self) -> str | None:
        """URL of MLflow's database; None if it isn't configured."""
        if self.mlflow_backend_store_uri is not None:
            return self.mlflow_backend_store_uri.get_secret_value()
        if self.postgres_password is None:
            return None
        password = quote(self.postgres_password.get_secret_value(), safe="")
        user = quote(self.postgres_user, safe="")
        return f"postgresql+psycopg://{user}:{password}@127.0.0.1:{self.postgres_port}/mlflow"

    @property
    def bucket(self) -> str | None:
        """The bucket of MLflow's artifacts; None if it isn't configured."""
        if self.mlflow_artifacts_destination is not None:
            scheme, _, rest = self.mlflow_artifacts_destination.partition("://")
            return rest.partition("/")[0] if scheme == "s3" else None
        return self.s3_bucket if self.s3_secret_access_key is not None else None

    @property
    def s3_endpoint(self) -> str | None:
        """The S3 endpoint; None for AWS itself."""
        if self.mlflow_s3_endpoint_url is not None or self.s3_secret_access_key is None:
            return self.mlflow_s3_endpoint_url
        return f"http://127.0.0.1:{self.s3_port}"

    @property
    def s3_keys(self) -> tuple[str | None, str | None]:
        """Key and secret; both None to let boto3 find credentials, including session tokens and roles."""
        key, secret = self.aws_access_key_id, self.aws_secret_access_key
        if self.mlflow_s3_endpoint_url is None and self.mlflow_artifacts_destination is None:
            key, secret = self.s3_access_key_id, self.s3_secret_access_key
        elif os.environ.get("AWS_ACCESS_KEY_ID"):
            return None, None
        if key is None or secret is None:
            return None, None
        return key.get_secret_value(), secret.get_secret_value()


def checked_uri(uri: str) -> str:
    """A tracking URI, stripped.

    Raises:
        ValueError: it isn't one; the message shows no password.
    """
    uri = uri.strip()
    advice = "use http://host:port, sqlite:///file.db or postgresql+psycopg://user:password@host/database"
    if not uri.startswith(_URI_SCHEMES):
        raise ValueError(f"{shown_uri(uri)!r} is not a tracking URI: {advice}")
    spaced = not uri.startswith("sqlite:") and " " in uri
    if spaced or not uri.isprintable():
        raise ValueError(f"{shown_uri(uri)!r} contains a space or a control character: {advice}")
    if not uri.startswith("databricks"):
        _check_parts(uri, advice)
    return uri


def _check_parts(uri: str, advice: str) -> None:
    from urllib.parse import urlsplit

    try:
        if uri.startswith("http"):
            parts = urlsplit(uri)
            if not parts.hostname:
                raise ValueError
            _ = parts.port
        else:
            from sqlalchemy.engine import make_url
            from sqlalchemy.exc import ArgumentError

            try:
                make_url(uri)
            except ArgumentError:
                raise ValueError from None
    except ValueError:
        raise ValueError(f"{shown_uri(uri)!r} can't be parsed: {advice}") from None


def shown_uri(uri: str) -> str:
    """A tracking or database URI without the parts that may contain a password, parsable or not."""
    text = "".join(character for character in uri.strip() if character.isprintable())
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, separator, rest = text.partition(":")
    if not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme):
        return "…"  # there is no telling where a password is
    if not separator:
        return scheme
    # A password may contain any of @/?#, so nothing before the last @ is shown.
    shown = rest.rpartition("@")[2]
    if not scheme.startswith("sqlite"):
        shown = re.split(r"[?#]", shown)[0]  # drivers take a password there too
    return f"{scheme}{separator}{shown}"


def explain(error: ValidationError, known: Sequence[str] = ()) -> str:
    """A pydantic error on one line, without the rejected input (it may be a secret).

    Args:
        known: the accepted names, to list them if another one was given.
    """
    parts, unknown = [], False
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            unknown = True
            message = f"unknown name{nearest(str(item['loc'][-1]), known)}"
        parts.append(f"{where}: {message}" if where else message)
    listed = f". Use {', '.join(known)}" if unknown and known else ""
    return "; ".join(parts) + listed


def nearest(name: str, known: Sequence[str], similarity: float = 0.6) -> str:
    """` (did you mean …?)` if one of the known names is similar."""
    found = difflib.get_close_matches(name, known, 1, similarity)
    return f" (did you mean {found[0]}?)" if found else ""


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        what: its name in error messages.

    Raises:
        ConfigurationError: it can't be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{what}: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{what} can't be read: {error}") from None


def check_env_file(path: Path) -> None:
    """Reject a malformed environment file; its parser would only log a warning.

    Raises:
        ConfigurationError: a line can't be parsed; the message names the file and the line.
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
