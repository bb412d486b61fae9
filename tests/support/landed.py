"""The journal of schema 1 that tests keep (tests/journal/landed/README.md), as a file that can be opened."""

import shutil
import sqlite3
from pathlib import Path

KEPT = Path(__file__).parents[1] / "journal" / "landed"
BY_HAND = "32cbd7753bfa42de9aaec841ac6de367"
FINISHED = "643653b36df55637850a6ad221094e67"
UNFINISHED = "7ae9c69a82ac4a16aafd1b307e2e2c51"
ONCE = "landed-once"


def unpack(state: Path, destination: str) -> Path:
    """Write the journal into a state directory, its runs tracked at `destination`; returns its path."""
    state.mkdir(parents=True, exist_ok=True)
    shutil.copytree(KEPT / "payloads", state / "payloads")
    path = state / "journal.db"
    connection = sqlite3.connect(path)
    connection.executescript((KEPT / "journal.sql").read_text())
    connection.execute("UPDATE agentcore_streams SET destination = ?", (destination,))
    connection.commit()
    connection.close()
    return path
