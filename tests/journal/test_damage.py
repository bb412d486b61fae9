"""Disks fill, files are cut and databases go away: a process recovers, and what can be read is saved."""

import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import JournalDamagedError, JournalError
from agentcore.journal import _leases as leases_module
from agentcore.journal import close_journals, damage, open_journal, salvage
from agentcore.tracking import MetricsLogged, TagsSet, stop_deliveries
from agentcore.tracking import _delivery as delivery_module
from tests.support import request

FULL = sa.exc.OperationalError("COMMIT", {}, sqlite3.OperationalError("database or disk is full"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(delivery_module, "_LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(delivery_module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(leases_module, "_RENEW_SECONDS", 0.1)


def fill(name="a", count=200, journal=None):
    """A journal with a finished run of `count` entries."""
    home = journal or open_journal()
    home.create(name * 32, "run", name, "sqlite:///x.db").result()
    for step in range(count):
        home.append(name * 32, [MetricsLogged(metrics={"x": step}, step=step)])
    home.append(name * 32, [TagsSet(tags={"last": "one"})]).result()
    return Path(home.location)


async def test_a_full_disk_during_delivery_is_recovered_from(config, monkeypatch):
    """For a moment long, nothing can be written: neither the cursor, nor the release of the lease."""
    tracker = MLflowTracker(config)
    journal, delivery = await tracker.opened()
    run_id = await tracker.start_run(request())
    await tracker.flush(timeout=30)
    real, full = journal._writer._durably, threading.Event()
    failed = threading.Semaphore(0)

    def durably(group):
        if full.is_set():
            failed.release()
            raise FULL
        return real(group)

    monkeypatch.setattr(journal._writer, "_durably", durably)
    await tracker.log_metrics({"x": 1.0})
    full.set()
    delivery.notify(journal.streams()[0].id)
    for _ in range(4):
        assert failed.acquire(timeout=30)
    full.clear()
    await tracker.log_metrics({"y": 1.0})
    await tracker.flush(timeout=30)
    assert (await tracker.get_run(run_id)).data.metrics == {"x": 1.0, "y": 1.0}


async def test_a_lease_that_could_not_be_released_is_released_later(config, monkeypatch):
    """So that another process can deliver the run, if this one doesn't."""
    tracker = MLflowTracker(config)
    await tracker.start_run(request())
    await tracker.flush(timeout=30)
    journal = open_journal()
    (stream,) = journal.streams()
    lease = journal.acquire(stream.id, "deliver").result()
    real = journal._writer._durably

    def durably(group):
        raise FULL

    monkeypatch.setattr(journal._writer, "_durably", durably)
    with pytest.raises(JournalError):
        journal.abandon(lease).result()
    monkeypatch.setattr(journal._writer, "_durably", real)
    taken = None
    for _ in range(100):
        taken = journal.acquire(stream.id, "deliver").result()
        if taken is not None:
            break
        threading.Event().wait(0.05)
    assert taken is not None
    journal.release(taken).result()
    assert not journal._keeper._given_up


async def test_no_release_is_left_to_be_tried_for_ever(config):
    """After runs that finished, failed and were cancelled."""
    from agentcore.dspy_optimization import OptimizationPipeline
    from agentcore.errors import AgentCoreError
    from agentcore.lm import offline_lm
    from tests.support import AsyncClassifier, colours

    for lm in (offline_lm(), offline_lm(error_rate=1.0, num_retries=0)):
        pipeline = OptimizationPipeline(AsyncClassifier(), lm=lm, mlflow_config=config)
        try:
            await pipeline.run_optimization(request(), training_data=colours())
        except AgentCoreError:
            continue
    await pipeline.flush(30)
    keeper = open_journal()._keeper
    assert (keeper._held, keeper._given_up) == (set(), set())


@pytest.mark.parametrize("how", ["no database", "cut", "flipped header"])
def test_a_damaged_journal_is_put_aside_and_a_new_one_begun(how, caplog):
    path = fill()
    close_journals()
    content = path.read_bytes()
    changed = {
        "no database": b"this was never a database\n" * 400,
        "cut": content[:5000],
        "flipped header": b"SQLite farmat 3\0" + content[16:],
    }[how]
    path.write_bytes(changed)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    home = open_journal()
    assert home.streams() == []
    (aside,) = path.parent.glob("journal.db.damaged-*")
    assert aside.read_bytes()[: len(changed)] == changed
    assert f"agentcore journal salvage {aside}" in caplog.text
    fill("b", 3)  # the new one works


def broken_pages(path):
    """Overwrite pages in the middle of the file; SQLite opens it, and finds out when it reads."""
    close_journals()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    content = bytearray(path.read_bytes())
    pages = len(content) // size
    for page in range(pages * 2 // 3, pages * 2 // 3 + 2):
        content[page * size : (page + 1) * size] = b"\xde\xad\xbe\xef" * (size // 4)
    path.write_bytes(content)


def test_what_can_be_read_is_saved(command):
    fill("a", 3)
    fill("b", 3000)
    path = fill("c", 3)
    broken_pages(path)
    assert damage(path) is not None
    home = open_journal()
    with pytest.raises(JournalDamagedError, match="agentcore journal salvage"):
        [home.read(name * 32) for name in "bc"]
    code, printed = command("journal", "salvage")
    assert code == 0, printed
    assert "was put aside as" in printed.err
    assert "saved 3 runs" in printed.out
    home = open_journal()
    assert damage(path) is None
    assert {item.name for item in home.streams()} == {"a", "b", "c"}
    assert len(home.read("a" * 32)) == len(home.read("c" * 32)) == 4
    assert 1500 < len(home.read("b" * 32)) < 3001
    home.append("b" * 32, [TagsSet(tags={"go": "on"})]).result()
    code, printed = command("journal", "salvage")
    assert (code, printed.out.split(" is ")[-1].strip()) == (0, "sound")


def test_a_file_is_salvaged_into_a_journal_that_has_other_runs(tmp_path):
    path = fill("a", 3)
    close_journals()
    other = tmp_path / "other.db"
    shutil.copy(path, other)
    fill("b", 3)
    saved = salvage(other, open_journal())
    assert (saved.runs, saved.known) == (0, 1)
    with pytest.raises(JournalError, match="no such file"):
        salvage(tmp_path / "none.db", open_journal())
    (tmp_path / "text").write_text("nothing")
    with pytest.raises((JournalError, sqlite3.DatabaseError)):
        salvage(tmp_path / "text", open_journal())


async def test_one_unreadable_entry_does_not_stop_the_others(config):
    tracker = MLflowTracker(config)
    run_id = await tracker.start_run(request())
    await tracker.flush(timeout=30)
    journal = open_journal()
    (stream,) = journal.streams()

    def spoil(connection):
        connection.execute(
            sa.text("UPDATE agentcore_events SET body = substr(body, 1, 20) WHERE seq = :seq"), {"seq": last}
        )

    stop_deliveries()  # or it may be delivered before it is spoiled
    await journal.write(stream.id, [MetricsLogged(metrics={"lost": 1.0})])
    last = journal.stream(stream.id).last_seq
    journal.submit(spoil).result()
    await tracker.log_metrics({"y": 1.0})
    with pytest.raises(Exception, match="can't be read: its content is no longer valid JSON"):
        await tracker.flush(timeout=30)
    assert (await tracker.get_run(run_id)).data.metrics == {"y": 1.0}
    kinds = [entry.event.model_dump().get("kind") for entry in journal.read(stream.id, lenient=True)]
    assert kinds.count("damaged") == 1
