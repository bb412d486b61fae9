"""The journal's tables, their migrations, and the engines for both of its homes."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from agentcore._forks import not_forked
from agentcore.errors import JournalError, first_line

metadata = sa.MetaData()

streams = sa.Table(
    "agentcore_streams",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),  # optimization | run
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("tracking_id", sa.String(64), index=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("changed_ms", sa.BigInteger, nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("finished", sa.Boolean, nullable=False),
    sa.Column("attempted", sa.Boolean, nullable=False),  # the run may be made, its id unknown
)
events = sa.Table(
    "agentcore_events",
    metadata,
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
cursors = sa.Table(
    "agentcore_cursors",
    metadata,
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("reader", sa.String(32), primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
)
rejections = sa.Table(
    "agentcore_rejections",
    metadata,
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("reason", sa.Text, nullable=False),
)
leases = sa.Table(
    "agentcore_leases",
    metadata,
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(16), primary_key=True),  # work | deliver
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)
payload_refs = sa.Table(
    "agentcore_payload_refs",
    metadata,
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True, index=True),
)
payloads = sa.Table(
    "agentcore_payloads",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("touched_ms", sa.BigInteger, nullable=False),
)
commits = sa.Table(  # one row a writer: tells whether a commit whose reply was lost was made
    "agentcore_commits",
    metadata,
    sa.Column("writer", sa.String(64), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
)
version = sa.Table("agentcore_journal_version", metadata, sa.Column("version", sa.Integer, primary_key=True))


def _create_all(connection: Connection) -> None:
    metadata.create_all(connection)


# Applied in order, each once; a journal is at version N after the first N.
MIGRATIONS = (_create_all,)

_ADVISORY_LOCK = 4_170_212


def make_engine(url: URL) -> Engine:
    """An engine whose transactions are durable once committed."""
    if url.get_backend_name() == "sqlite":
        if url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    return sa.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 5})


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun below
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could fail at the write with "database is locked".
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def migrate(engine: Engine) -> None:
    """Bring the tables to this version's schema.

    Raises:
        JournalError: a newer AgentCore made them, or they can't be reached or changed.
    """
    try:
        with not_forked(), engine.execution_options(writes=True).begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            version.create(connection, checkfirst=True)
            current = connection.execute(sa.select(sa.func.max(version.c.version))).scalar() or 0
            if current > len(MIGRATIONS):
                raise JournalError(
                    f"the journal is of version {current}, this AgentCore knows {len(MIGRATIONS)}: update it"
                )
            for number, step in enumerate(MIGRATIONS[current:], current + 1):
                step(connection)
                connection.execute(version.insert().values(version=number))
    except sa.exc.SQLAlchemyError as error:
        raise JournalError(f"the journal at {shown(engine.url)} can't be opened: {explain(error)}") from None


def shown(url: URL | str) -> str:
    url = make_url(url)
    return (
        url.database or "" if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
    )


def explain(error: Exception) -> str:
    """The driver's own words, without the statement and its values."""
    cause = getattr(error, "orig", None) or error
    text = first_line(cause)
    if "disk is full" in text or "No space left" in text:
        return f"{text}. Free some space, then go on: what was written before is kept"
    return text
