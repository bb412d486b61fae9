"""Migrations of the journal's schema.

A migration never changes once released, even if `_schema` does. A journal is at version N after the first N
migrations."""

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentcore.errors import JournalError


class Migration(NamedTuple):
    name: str
    statements: tuple[str, ...]
    """`{binary}` is replaced with the database's binary type, `{now_ms}` with the time of the migration."""


MIGRATIONS = (
    Migration(
        "m001_initial",
        (
            "CREATE TABLE agentcore_streams (id VARCHAR(64) NOT NULL PRIMARY KEY, kind VARCHAR(16) NOT NULL, "
            "name TEXT NOT NULL, destination TEXT NOT NULL, tracking_id VARCHAR(64), created_ms BIGINT NOT "
            "NULL, "
            "changed_ms BIGINT NOT NULL, last_seq BIGINT NOT NULL, finished BOOLEAN NOT NULL, "
            "attempted BOOLEAN NOT NULL)",
            "CREATE INDEX ix_agentcore_streams_tracking_id ON agentcore_streams (tracking_id)",
            "CREATE TABLE agentcore_events (stream VARCHAR(64) NOT NULL, seq BIGINT NOT NULL, "
            "kind VARCHAR(32) NOT NULL, body TEXT NOT NULL, PRIMARY KEY (stream, seq))",
            "CREATE TABLE agentcore_cursors (stream VARCHAR(64) NOT NULL, reader VARCHAR(32) NOT NULL, "
            "seq BIGINT NOT NULL, PRIMARY KEY (stream, reader))",
            "CREATE TABLE agentcore_rejections (stream VARCHAR(64) NOT NULL, seq BIGINT NOT NULL, "
            "reason TEXT NOT NULL, PRIMARY KEY (stream, seq))",
            "CREATE TABLE agentcore_leases (stream VARCHAR(64) NOT NULL, role VARCHAR(16) NOT NULL, "
            "owner TEXT NOT NULL, until_ms BIGINT NOT NULL, epoch BIGINT NOT NULL, PRIMARY KEY (stream, "
            "role))",
            "CREATE TABLE agentcore_payload_refs (stream VARCHAR(64) NOT NULL, sha256 VARCHAR(64) NOT NULL, "
            "PRIMARY KEY (stream, sha256))",
            "CREATE INDEX ix_agentcore_payload_refs_sha256 ON agentcore_payload_refs (sha256)",
            "CREATE TABLE agentcore_payloads (sha256 VARCHAR(64) NOT NULL PRIMARY KEY, content {binary} NOT "
            "NULL, "
            "touched_ms BIGINT NOT NULL)",
            "CREATE TABLE agentcore_commits (writer VARCHAR(64) NOT NULL PRIMARY KEY, number BIGINT NOT "
            "NULL)",
        ),
    ),
    Migration(
        "m002_deliverable_events_and_old_commits",
        (
            # NULL in rows written by version 1, where it follows from the event's kind.
            "ALTER TABLE agentcore_events ADD COLUMN deliverable BOOLEAN",
            "ALTER TABLE agentcore_commits ADD COLUMN touched_ms BIGINT NOT NULL DEFAULT 0",
            "UPDATE agentcore_commits SET touched_ms = {now_ms}",
        ),
    ),
)

_ADVISORY_LOCK = 4_170_212
_BINARY = {"sqlite": "BLOB", "postgresql": "BYTEA"}


def bring_up_to_date(connection: Connection, now_ms: int) -> None:
    """Apply the missing migrations. Must run in a write transaction.

    Raises:
        JournalError: the tables were created by a newer agentcore.
    """
    dialect = connection.dialect.name
    if dialect == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
    connection.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS agentcore_journal_version (version INTEGER NOT NULL PRIMARY KEY)"
    )
    current = connection.exec_driver_sql("SELECT max(version) FROM agentcore_journal_version").scalar() or 0
    if current > len(MIGRATIONS):
        raise JournalError(
            f"journal schema {current} is newer than this version supports ({len(MIGRATIONS)}): upgrade "
            "agentcore"
        )
    for number, migration in enumerate(MIGRATIONS[current:], current + 1):
        for statement in migration.statements:
            connection.exec_driver_sql(statement.format(binary=_BINARY[dialect], now_ms=now_ms))
        connection.execute(
            sa.text("INSERT INTO agentcore_journal_version (version) VALUES (:n)"), {"n": number}
        )
