"""MLflow in a container: `serve.py migrate`, `wait`, `serve`, `healthy`, `alive`, `gc` or `check`.

The compose file and the manifests share it.

Environment:
    POSTGRES_HOST, POSTGRES_PORT, POSTGRES_DB, POSTGRES_USER, POSTGRES_PASSWORD: MLflow's database; the
        password may contain any character.
    POSTGRES_OPTIONS: appended to the database URL, such as `sslmode=verify-full&sslrootcert=/tls/ca.crt`.
    S3_BUCKET: for artifacts; boto3 and MLflow read keys, region and endpoint from their usual variables.
    MLFLOW_WORKERS: server processes. More than one needs uvloop in the image: without it, each request
        takes 40 ms longer.
    MLFLOW_AUTH: `basic-auth` requires a password; empty requires none. `auth` in COMPOSE_PROFILES does
        the same as `basic-auth`.
    MLFLOW_AUTH_ADMIN_USERNAME, MLFLOW_AUTH_ADMIN_PASSWORD, MLFLOW_FLASK_SERVER_SECRET_KEY: for that.
    MLFLOW_GC_OLDER_THAN: `gc` removes what was deleted longer ago than this, such as `30d` (default).
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

INI = Path("/tmp/basic_auth.ini")
INIT = "`agentcore stack init --auth` writes .env.mlflow with your own passwords"
KNOWN = "only-for-loopback"
REFUSED = "refused"


def database() -> str:
    env = os.environ
    user, password = (quote(env[name], safe="") for name in ("POSTGRES_USER", "POSTGRES_PASSWORD"))
    place = f"{env['POSTGRES_HOST']}:{env.get('POSTGRES_PORT') or 5432}/{env.get('POSTGRES_DB') or 'mlflow'}"
    options = f"?{env['POSTGRES_OPTIONS']}" if env.get("POSTGRES_OPTIONS") else ""
    return f"postgresql+psycopg://{user}:{password}@{place}{options}"


def auth() -> bool:
    """Whether MLflow requires a password; exits if it should but secrets are missing."""
    asked = os.environ.get("MLFLOW_AUTH", "")
    if asked not in ("", "basic-auth"):
        sys.exit(f"MLFLOW_AUTH={asked!r}: use basic-auth, or leave it empty")
    asked = asked or "auth" in os.environ.get("COMPOSE_PROFILES", "").split(",")
    if asked and (missing := without_auth_secrets()):
        sys.exit(missing)
    return bool(asked)


def without_auth_secrets() -> str:
    needed = ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")
    missing = [name for name in needed if not os.environ.get(name)]
    return f"auth is on, but {' and '.join(missing)} not set: {INIT}" if missing else ""


def check() -> None:
    """Exit with 1 unless MLflow would require a password and no public default password is in use.

    Compose continues if an optional check fails, so the result is left in the database for `migrate`.
    """
    from psycopg import sql

    problem = open_door()
    wait_for_database()
    with connect() as connection:
        word = f"{REFUSED} {time.time():.0f}" if problem else None
        statement = sql.SQL("COMMENT ON DATABASE {} IS {}")
        name = sql.Identifier(os.environ.get("POSTGRES_DB") or "mlflow")
        connection.execute(statement.format(name, sql.Literal(word)))
    if problem:
        sys.exit(problem)


def open_door() -> str:
    asked = "auth" in os.environ.get("COMPOSE_PROFILES", "").split(",")
    if not asked:
        return (
            "auth was enabled with --profile, which MLflow can't see: set COMPOSE_PROFILES=auth. "
            "If MLflow was already running, it still runs without a password"
        )
    missing = without_auth_secrets()
    if missing:
        return missing
    known = [name for name in ("POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY") if os.environ[name] == KNOWN]
    return f"{' and '.join(known)} still have the public default: {INIT}" if known else ""


def was_refused() -> bool:
    """Whether `check` failed less than a minute ago."""
    query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
    with connect() as connection:
        row = connection.execute(query).fetchone()
    word, _, when = str(row[0] if row else "").partition(" ")
    return word == REFUSED and time.time() - float(when) < 60


def migrate() -> None:
    wait_for_database()
    if was_refused():
        sys.exit("the auth check failed, see: docker compose -f docker-compose.mlflow.yml logs auth")
    # In this process, because the arguments of a command are visible to everyone.
    from mlflow.cli import cli

    cli(["db", "upgrade", database()], standalone_mode=False)
    if auth():  # or the first servers would race to create its tables
        from mlflow.server.auth.cli import commands

        commands(["db", "upgrade", "--url", database()], standalone_mode=False)


def connect():
    import psycopg

    return psycopg.connect(database().replace("postgresql+psycopg:", "postgresql:"), connect_timeout=5)


def wait_for_database() -> None:
    """Wait for Postgres, which starts more slowly than this container."""
    from psycopg import OperationalError

    deadline = time.monotonic() + 300
    while True:
        try:
            connect().close()
            return
        except OperationalError as error:
            if "password authentication failed" in str(error):
                sys.exit(
                    "Postgres rejects this password: its volume was created with another. Set that one, or "
                    "remove the volumes, including all runs (docker compose ... down --volumes)"
                )
            if time.monotonic() > deadline:
                sys.exit(str(error))
            time.sleep(2)


def wait() -> None:
    """Wait until the database has the schema of this image."""
    from mlflow.store.db.utils import _get_latest_schema_revision
    from psycopg import Error

    wanted = _get_latest_schema_revision()
    while True:
        try:
            with connect() as connection:
                row = connection.execute("select version_num from alembic_version").fetchone()
        except Error as error:
            found = str(error).strip().partition("\n")[0]
        else:
            found = row[0] if row else "none"
        if found == wanted:
            return
        print(f"waiting for schema {wanted}, found: {found}", flush=True)
        time.sleep(3)


def gc() -> None:
    """Permanently remove what users deleted long ago, rows and artifacts, through the server."""
    env = os.environ
    if auth():
        env["MLFLOW_TRACKING_USERNAME"] = env.get("MLFLOW_AUTH_ADMIN_USERNAME") or "admin"
        env["MLFLOW_TRACKING_PASSWORD"] = env["MLFLOW_AUTH_ADMIN_PASSWORD"]
    older = env.get("MLFLOW_GC_OLDER_THAN") or "30d"
    from mlflow.cli import cli

    options = [
        "--backend-store-uri",
        database(),
        "--older-than",
        older,
        "--tracking-uri",
        "http://mlflow:5000",
    ]
    cli(["gc", *options], standalone_mode=False)


def serve() -> None:
    env = os.environ
    command = ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
    command += ["--workers", env.get("MLFLOW_WORKERS") or "1"]
    if auth():
        INI.touch(mode=0o600)
        INI.write_text(
            "[mlflow]\ndefault_permission = READ\n"
            f"database_uri = {database().replace('%', '%%')}\n"
            f"admin_username = {env.get('MLFLOW_AUTH_ADMIN_USERNAME') or 'admin'}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 60\n"  # without it, each request spends 350 ms on hashing the password
        )
        env["MLFLOW_AUTH_CONFIG_PATH"] = str(INI)
        command += ["--app-name", "basic-auth"]
    if env.get("MLFLOW_PROMETHEUS"):
        command += ["--expose-prometheus", "/tmp/prometheus"]
    env["MLFLOW_BACKEND_STORE_URI"] = database()  # not an argument: those are visible to everyone
    env["MLFLOW_ARTIFACTS_DESTINATION"] = f"s3://{env['S3_BUCKET']}"
    os.execvp("mlflow", command)


def healthy() -> None:
    """Exit with 1 unless the server answers from its database, which /health doesn't check."""
    problem = asked()
    if problem:
        sys.exit(problem)


def alive() -> None:
    """Exit with 1 if the database answers but the server doesn't: only then does a restart help."""
    from psycopg import OperationalError

    problem = asked()
    if problem:
        try:
            connect().close()
        except OperationalError:
            return
        sys.exit(problem)


def asked() -> str:
    """Why the server doesn't answer from its database; empty if it does.

    With auth, a 401 after a password change is healthy: the server had to query the database for it.
    """
    env, headers = os.environ, {"Content-Type": "application/json"}
    if auth():
        name = env.get("MLFLOW_AUTH_ADMIN_USERNAME") or "admin"
        told = base64.b64encode(f"{name}:{env['MLFLOW_AUTH_ADMIN_PASSWORD']}".encode()).decode()
        headers["Authorization"] = f"Basic {told}"
    request = urllib.request.Request(
        "http://127.0.0.1:5000/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1}).encode(),
        headers=headers,
    )
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError as error:
        return "" if error.code == 401 and auth() else str(error)
    except OSError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    {item.__name__: item for item in (migrate, wait, serve, healthy, alive, gc, check)}[sys.argv[1]]()
