"""The journal's tables as of this version, and the engines for SQLite and Postgres.

`_migrations` creates the tables; a test checks that the two match.
"""

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from agentcore._forks import not_forked
from agentcore._naming import now_ms
from agentcore._redaction import first_line
from agentcore.errors import JournalDamagedError, JournalError
from agentcore.journal._migrations import bring_up_to_date
from agentcore.settings import shown_uri

metadata = sa.MetaData()

streams = sa.Table(
    "agentcore_streams",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("tracking_id", sa.String(64), index=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("changed_ms", sa.BigInteger, nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("finished", sa.Boolean, nullable=False),
    sa.Column("attempted", sa.Boolean, nullable=False),  # the run may exist even if its id is unknown
)
events = sa.Table(
    "agentcore_events",
    metadata,
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("deliverable", sa.Boolean),  # NULL in rows of schema 1: depends on the kind
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
commits = sa.Table(  # last commit of each writer, to check after a lost reply
    "agentcore_commits",
    metadata,
    sa.Column("writer", sa.String(64), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("touched_ms", sa.BigInteger, nullable=False, server_default="0"),
)


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
    connection.isolation_level = None  # `_begin_sqlite` starts transactions
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads before it writes could fail with "database is locked" at the write.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def migrate(engine: Engine) -> None:
    """Migrate the tables to this version's schema.

    Raises:
        JournalError: a newer agentcore created them, or the database can't be reached or changed.
    """
    try:
        with not_forked(), engine.execution_options(writes=True).begin() as connection:
            bring_up_to_date(connection, now_ms())
    except sa.exc.SQLAlchemyError as error:
        kind = JournalDamagedError if is_damage(error) else JournalError
        raise kind(f"the journal at {shown(engine.url)} can't be opened: {explain(error)}") from None


def shown(url: URL | str) -> str:
    """Where a journal is: its file, or the database's URL without anything that may be a password."""
    url = make_url(url)
    if url.get_backend_name() == "sqlite":
        return url.database or ""
    return shown_uri(url.render_as_string(hide_password=False))


def is_damage(error: Exception) -> bool:
    """Whether SQLite found that the file is damaged, or no database."""
    cause = getattr(error, "orig", None)
    damaged = any(text in str(cause) for text in ("not a database", "malformed", "is encrypted"))
    return isinstance(cause, sqlite3.DatabaseError) and damaged


def explain(error: Exception) -> str:
    """The driver's own message, without the statement and its values."""
    cause = getattr(error, "orig", None) or error
    text = first_line(cause)
    if "disk is full" in text or "No space left" in text:
        return f"{text}. Free some space and resume: everything written before is kept"
    if is_damage(error):
        return f"{text}. Save what can be read with: agentcore journal salvage"
    return text
