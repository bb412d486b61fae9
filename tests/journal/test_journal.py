"""One contract for both homes of the journal."""

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import wait as wait_all
from pathlib import Path

import pytest
import sqlalchemy as sa

from agentcore._redaction import Redactor
from agentcore.dspy_optimization.events import RunFinished, StageStarted
from agentcore.errors import ConfigurationError, JournalError, LeaseLostError, PayloadGoneError
from agentcore.journal import Journal, Lease, open_journal
from agentcore.journal import _leases as leases_module
from agentcore.journal import _owner as owner_module
from agentcore.journal import _payloads as payloads_module
from agentcore.journal import _schema as schema
from agentcore.settings import Settings
from agentcore.tracking import (
    ArtifactLogged,
    MetricsLogged,
    RunCreated,
    RunEnded,
    RunReopened,
    TagsSet,
    TrackingEvent,
)

ROOT = Path(__file__).parents[2]
DESTINATION = "http://mlflow"


@pytest.fixture(params=["sqlite", "postgres"])
def home(request, tmp_path, monkeypatch):
    """The settings of a journal, in both homes; tests of one database keep apart by their streams' names."""
    if request.param == "postgres":
        monkeypatch.setenv("AGENTCORE_JOURNAL_URL", request.getfixturevalue("own_stack").journal_url)
    return request.param


@pytest.fixture
def journal(home):
    return open_journal()


@pytest.fixture
def key():
    return uuid.uuid4().hex


def metric(value, name="x"):
    return MetricsLogged(metrics={name: value})


def values(journal, key):
    return [entry.event.metrics["x"] for entry in journal.read(key, of=MetricsLogged)]


def test_events_come_back_in_order_and_as_they_were(journal, key):
    journal.create(key, "run", "a run", DESTINATION).result()
    made = [
        RunCreated(name="n", tags={"a": "ä 日本 \ud7ff"}, experiment="e"),
        metric(0.1 + 0.2),
        TagsSet(tags={"quote": "'\"\\"}),
        StageStarted(optimization_id=key, stage="search"),
        RunEnded(status="FINISHED"),
    ]
    assert journal.append(key, made[:2]).result() == 2
    assert journal.append(key, made[2:]).result() == 5
    assert [entry.event for entry in journal.read(key)] == made
    assert [entry.seq for entry in journal.read(key, after=3)] == [4, 5]
    assert [entry.seq for entry in journal.read(key, limit=2)] == [1, 2]
    assert [entry.seq for entry in journal.read(key, of=TrackingEvent)] == [1, 2, 3, 5]
    (stream,) = journal.find(key[:12])
    assert (stream.waiting, stream.finished, stream.name) == (5, True, "a run")


def test_an_unknown_run_is_an_error_that_harms_no_other(journal, key):
    journal.create(key, "run", "a run", DESTINATION).result()
    good, bad, more = (journal.append(name, [metric(1)]) for name in (key, "missing", key))
    with pytest.raises(JournalError, match="has no run missing"):
        bad.result()
    assert (good.result(), more.result()) == (1, 2)


def test_many_writers_lose_nothing(journal, key):
    journal.create(key, "run", "a run", DESTINATION).result()

    async def main():
        await asyncio.gather(*(journal.write(key, [metric(number)]) for number in range(500)))

    asyncio.run(main())
    assert sorted(values(journal, key)) == list(range(500))
    assert [entry.seq for entry in journal.read(key)] == list(range(1, 501))


def test_two_processes_write_to_one_run(home, journal, key):
    journal.create(key, "run", "a run", DESTINATION).result()
    script = f"""
import sys
from agentcore.tracking import MetricsLogged
from agentcore.journal import open_journal
journal = open_journal()
first = int(sys.argv[1])
numbers = range(first, first + 200)
done = [journal.append({key!r}, [MetricsLogged(metrics={{"x": number}})]) for number in numbers]
for future in done:
    future.result()
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(first)], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        for first in (0, 200)
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert sorted(values(journal, key)) == list(range(400))


def test_what_was_acknowledged_survives_kill_9(home, journal, key):
    journal.create(key, "run", "a run", DESTINATION).result()
    script = f"""
from agentcore.tracking import MetricsLogged
from agentcore.journal import open_journal
journal = open_journal()
for number in range(10**9):
    journal.append({key!r}, [MetricsLogged(metrics={{"x": number}})]).result()
    print(number, flush=True)
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    acknowledged = [int(worker.stdout.readline()) for _ in range(300)]
    worker.kill()
    acknowledged += [int(line) for line in worker.stdout.read().split("\n")[:-1]]
    worker.wait()
    kept = values(journal, key)
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) <= len(acknowledged) + 1


def test_a_lease_has_one_holder(journal, key):
    journal.create(key, "run", "a run", DESTINATION).result()
    first = journal.acquire(key, "deliver").result()
    assert journal.acquire(key, "deliver").result() is None
    assert journal.acquire(key, "work").result() is not None
    journal.release(first).result()
    second = journal.acquire(key, "deliver").result()
    assert second.epoch == first.epoch + 1
    with pytest.raises(LeaseLostError):
        journal.advance(first, 1).result()
    journal.advance(second, 0).result()


def test_a_late_release_leaves_the_lease_of_another_process(journal, key):
    """A pruned name starts again at epoch 1, for whoever takes it next."""
    late = journal.acquire(key, "work").result()

    def taken_by_another(connection):
        connection.execute(schema.leases.update().where(schema.leases.c.stream == key).values(owner="other"))

    journal._writer.submit(taken_by_another).result()
    journal.release(late).result()
    (row,) = journal._rows(sa.select(schema.leases).where(schema.leases.c.stream == key))
    assert row.until_ms > 0


def test_an_append_under_a_lost_lease_is_refused(journal, key):
    lease = journal.create(key, "optimization", "a run", DESTINATION, work=True).result()
    assert journal.append(key, [metric(1)], lease=lease).result() == 1
    journal.release(lease).result()
    other = journal.acquire(key, "work").result()
    lost = journal.append(key, [metric(2)], lease=lease)
    kept = journal.append(key, [metric(3)], lease=other)
    with pytest.raises(LeaseLostError, match="taken over by another process: this one stops"):
        lost.result()
    assert kept.result() == 2
    assert values(journal, key) == [1, 3]


def test_the_lease_of_a_dead_process_is_taken_over_at_once(home, journal, key):
    script = f"""
import os
from agentcore.journal import open_journal
open_journal().create({key!r}, "optimization", "a run", {DESTINATION!r}, work=True).result()
os.kill(os.getpid(), 9)
"""
    worker = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert worker.returncode == -9
    assert journal.stream(key).interrupted
    assert journal.acquire(key, "work").result() == Lease(key, "work", 2)
    assert journal.stream(key).working == "yes"


def test_the_lease_of_another_machine_has_to_run_out(journal, key, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(leases_module, "this_process", lambda: "other-host|pid:[1]|7|99|x")
        lease = journal.create(key, "optimization", "a run", DESTINATION, work=True).result()
    journal._keeper.drop(lease)  # it dies
    assert journal.stream(key).working == "unknown"
    assert journal.acquire(key, "work").result() is None
    monkeypatch.setattr(leases_module, "_now", lambda connection: leases_module.now_ms() + 31_000)
    assert journal.acquire(key, "work").result() is not None


def test_a_lease_that_is_kept_does_not_run_out(journal, key, monkeypatch):
    monkeypatch.setattr(leases_module, "_RENEW_SECONDS", 0.02)
    lease = journal.create(key, "run", "a run", DESTINATION, work=True).result()

    def until():
        with journal._engine.connect() as connection:
            wanted = sa.select(schema.leases.c.until_ms).where(schema.leases.c.stream == key)
            return connection.execute(wanted).scalar()

    before = until()
    deadline = time.monotonic() + 10
    while until() <= before:
        assert time.monotonic() < deadline
    journal.release(lease).result()
    assert until() == 0


@pytest.mark.parametrize(
    ("owner", "dead"),
    [
        ("{host}|{space}|999999999|1|x", True),
        ("{host}|{space}|{pid}|1|x", True),  # another process had this number
        ("{host}|{space}|{pid}|{start}|x", False),
        ("elsewhere|{space}|999999999|1|x", False),
        ("{host}|other|999999999|1|x", False),
        ("nonsense", False),
    ],
)
def test_only_a_process_that_is_certainly_gone_is_dead(owner, dead):
    host, space, pid, start, _ = owner_module.this_process().split("|")
    assert owner_module.is_dead(owner.format(host=host, space=space, pid=pid, start=start)) is dead


def test_cursors_and_rejections(journal, key):
    journal.create(key, "run", "a run", DESTINATION + key).result()
    journal.append(key, [metric(1), metric(2), metric(3)]).result()
    lease = journal.acquire(key, "deliver").result()
    journal.attempt(lease).result()
    journal.map(lease, "run-7").result()
    journal.advance(lease, 2, [(2, "no such thing")]).result()
    (stream,) = journal.waiting(DESTINATION + key)
    assert (stream.delivered, stream.waiting, stream.tracking_id, stream.attempted) == (2, 1, "run-7", True)
    assert journal.rejected(key) == [(2, "no such thing")]
    assert journal.find("run-7") == []
    journal.advance(lease, 3).result()
    assert journal.waiting(DESTINATION + key) == []


def test_a_run_is_found_by_either_id(journal, key):
    journal.create(key, "adopted", "a run", DESTINATION, tracking_id="f" + key[1:]).result()
    assert [item.id for item in journal.find("f" + key[1:])] == [key]
    assert journal.find(f"{key[:5]}%") == journal.find("' or 1=1") == []


def test_pruning_takes_what_is_delivered_and_ended_only(journal, monkeypatch):
    monkeypatch.setattr(payloads_module, "_UNREFERENCED_SECONDS", -1)
    shared = journal.payloads.put(b"shared")
    made = {}
    for name in ("done", "waiting", "open", "working"):
        made[name] = key = uuid.uuid4().hex
        lease = journal.create(key, "run", name, DESTINATION, work=True).result()
        own = journal.payloads.put(name.encode())
        journal.append(
            key,
            [
                ArtifactLogged(path=f"a/{index}", sha256=sha, size=1)
                for index, sha in enumerate((shared, own))
            ],
        ).result()
        if name != "open":
            journal.append(key, [RunEnded(status="FINISHED")]).result()
        if name != "waiting":
            delivering = journal.acquire(key, "deliver").result()
            journal.advance(delivering, journal.stream(key).last_seq).result()
            journal.release(delivering).result()
        if name != "working":
            journal.release(lease).result()
    future = time.time() * 1000 + 10_000
    removed = set(journal.prune(round(future))) & set(made.values())
    assert removed == {made["done"]}
    assert journal.stream(made["done"]) is None
    assert journal.read(made["done"]) == []
    assert journal.payloads.get(shared) == b"shared"
    assert journal.payloads.get(journal.payloads.put(b"waiting")) == b"waiting"
    with pytest.raises(JournalError):
        journal.payloads.get(hashlib.sha256(b"done").hexdigest())
    assert journal.prune(0) == []


def test_a_run_that_goes_on_is_not_ended(journal, key):
    journal.create(key, "optimization", "a run", DESTINATION).result()
    for event, finished in (
        (RunEnded(status="KILLED", interim=True), False),
        (RunReopened(), False),
        (RunFinished(optimization_id=key, status="cancelled"), True),
        (RunReopened(), False),
        (RunEnded(status="FINISHED"), True),
    ):
        journal.append(key, [event]).result()
        assert journal.stream(key).finished is finished


def test_payloads_are_whole_and_checked(journal, tmp_path):
    content = os.urandom(200_000)
    name = journal.payloads.put(content)
    assert journal.payloads.put(content) == name
    assert journal.payloads.get(name) == content
    with pytest.raises(JournalError, match="payload 000000000000"):
        journal.payloads.get("0" * 64)


def test_a_changed_payload_is_refused(tmp_path):
    journal = open_journal()
    name = journal.payloads.put(b"content")
    (path,) = (tmp_path / "state").rglob(name)
    path.write_bytes(b"changed")
    with pytest.raises(JournalError, match="was changed on disk"):
        journal.payloads.get(name)


def test_secrets_are_cut_out_also_where_json_escapes_them(journal, key):
    secret = 'sk-"quoted"\\and\nlong'
    journal.create(key, "run", "a run", DESTINATION).result()
    journal.append(key, [TagsSet(tags={"a": f"has {secret}"})], redactor=Redactor([secret])).result()
    (entry,) = journal.read(key)
    assert entry.event.tags == {"a": "has [redacted]"}


def test_a_secret_of_digits_or_words_leaves_the_event_readable(journal, key):
    journal.create(key, "run", "a run", DESTINATION).result()
    event = MetricsLogged(metrics={"acc": 1 / 9})
    journal.append(
        key, [event], redactor=Redactor(["11111111", "metrics_logged", "timestamp_ms", ""])
    ).result()
    assert [entry.event for entry in journal.read(key)] == [event]


def test_a_lone_surrogate_is_kept_as_text(journal, key):
    journal.create(key, "run", "a run", DESTINATION).result()
    journal.append(key, [TagsSet(tags={"a": "x \ud83d"})]).result()
    (entry,) = journal.read(key)
    assert entry.event.tags == {"a": "x \\ud83d"}


def test_what_the_database_cannot_take_harms_no_other(journal, key):
    journal.create(key, "run", "a run", DESTINATION).result()
    entered, go_on = threading.Event(), threading.Event()

    def hold(connection):
        entered.set()
        go_on.wait(10)

    journal._writer.submit(hold)  # so that the next ones share a transaction
    entered.wait(10)
    good = journal.append(key, [metric(1)])
    bad = journal.create(uuid.uuid4().hex, "run", "a \ud83d name", DESTINATION)
    more = journal.append(key, [metric(2)])
    go_on.set()
    assert (good.result(), more.result()) == (1, 2)
    assert bad.exception() is not None
    with pytest.raises(ConfigurationError, match="is not a run id"):
        journal.create("x" * 65, "run", "a run", DESTINATION)


def test_a_run_is_made_with_its_first_events_or_not_at_all(journal, key):
    lease = journal.create(key, "run", "a run", DESTINATION, work=True, first=[metric(1), metric(2)]).result()
    assert (lease.epoch, journal.stream(key).last_seq, values(journal, key)) == (1, 2, [1, 2])
    assert journal.last(key, TagsSet, MetricsLogged) == journal.read(key)[-1].event
    assert journal.last(key, TagsSet) is None


def test_a_suspended_process_keeps_its_lease(journal, key, monkeypatch):
    """Ctrl-Z, or a laptop that slept: it goes on later, and must not find its run taken."""
    journal.create(key, "optimization", "a run", DESTINATION, work=True).result()
    later = leases_module.now_ms() + 3_600_000
    monkeypatch.setattr(leases_module, "_now", lambda connection: later)
    monkeypatch.setattr(leases_module, "now_ms", lambda: later)
    assert journal.acquire(key, "work").result() is None
    assert journal.stream(key).working == "yes"


def test_a_lease_that_could_not_be_released_is_later(journal, key, monkeypatch):
    monkeypatch.setattr(leases_module, "_RENEW_SECONDS", 0.02)
    lease = journal.create(key, "run", "a run", DESTINATION, work=True).result()
    real, failed = leases_module.release, []

    def release(connection, lease):
        if not failed:
            failed.append(1)
            raise JournalError("the disk is full")
        real(connection, lease)

    monkeypatch.setattr(leases_module, "release", release)
    journal.abandon(lease)
    deadline = time.monotonic() + 10
    while journal.stream(key).working == "yes":
        assert time.monotonic() < deadline
    assert failed


def test_a_refused_append_leaves_no_reference(journal, key, monkeypatch):
    monkeypatch.setattr(payloads_module, "_UNREFERENCED_SECONDS", -1)
    sha = journal.payloads.put(os.urandom(100))
    refused = journal.append("missing", [ArtifactLogged(path="a", sha256=sha, size=1)])
    assert isinstance(refused.exception(), JournalError)
    journal.prune(0)
    with pytest.raises(PayloadGoneError):
        journal.payloads.get(sha)


def test_a_payload_put_again_survives_a_pruning_that_runs_just_then(home, journal, monkeypatch):
    monkeypatch.setattr(payloads_module, "_UNREFERENCED_SECONDS", 3600)
    content = os.urandom(100)
    sha = journal.payloads.put(content)
    if home == "postgres":
        return  # one statement: there is no moment between
    old = time.time() - 7200
    os.utime(journal.payloads._path(sha), (old, old))

    def referenced():
        journal.payloads.put(content)
        return set()

    journal.payloads.remove_old(referenced)
    assert journal.payloads.get(sha) == content


def test_a_full_disk_is_said_and_keeps_what_was_there(tmp_path):
    """SQLite's own limit stands for the disk: it reports the same, and rolls back the same way."""
    journal = open_journal()
    key = uuid.uuid4().hex
    journal.create(key, "run", "a run", DESTINATION).result()

    pages = 60

    @sa.event.listens_for(journal._engine, "begin")
    def limit(connection):
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    written = []
    while not (written and written[-1].exception()):
        written.append(journal.append(key, [TagsSet(tags={"a": "x" * 1000})]))
        wait_all(written)
        assert len(written) < 1000
    with pytest.raises(JournalError, match=r"can't be written.*disk is full.*Free some space"):
        written[-1].result()
    acknowledged = len(written) - 1
    assert acknowledged > 10
    pages = 100_000
    assert journal.append(key, [metric(1)]).result() == acknowledged + 1
    assert len(journal.read(key)) == acknowledged + 1


def test_postgres_killed_in_the_middle_neither_loses_nor_doubles(own_stack, monkeypatch):
    """The writer waits for the database and asks whether the commit without a reply was made."""
    monkeypatch.setenv("AGENTCORE_JOURNAL_URL", own_stack.journal_url)
    journal, key = open_journal(), uuid.uuid4().hex
    journal.create(key, "run", "a run", DESTINATION).result()
    pending = []
    for number in range(3000):
        pending.append(journal.append(key, [metric(number)]))
        if number in (800, 2000):
            pending[number - 100].result()
            own_stack.kill_postgres()
            own_stack.start_postgres()
    done, _ = wait_all(pending, timeout=60)
    assert len(done) == len(pending)
    assert values(journal, key) == list(range(3000))
    own_stack.wait()


def test_a_reply_lost_after_the_commit_is_not_written_again(own_stack, monkeypatch):
    monkeypatch.setenv("AGENTCORE_JOURNAL_URL", own_stack.journal_url)
    journal, key = open_journal(), uuid.uuid4().hex
    journal.create(key, "run", "a run", DESTINATION).result()
    lost = []

    def lose(connection):
        if not lost:
            lost.append(1)
            raise sa.exc.OperationalError("COMMIT", {}, Exception("server closed the connection"))

    engine = journal._writer._engine
    real = engine.dialect.do_commit

    def commit(connection):
        real(connection)
        lose(connection)

    monkeypatch.setattr(engine.dialect, "do_commit", commit)
    assert journal.append(key, [metric(1)]).result() == 1
    assert lost
    assert values(journal, key) == [1]


def test_a_newer_journal_is_left_alone(tmp_path):
    journal = open_journal()

    def newer(connection):
        connection.exec_driver_sql("INSERT INTO agentcore_journal_version (version) VALUES (99)")

    journal._writer.submit(newer).result()
    with pytest.raises(
        JournalError, match=r"journal schema 99 is newer than this version supports \(2\): upgrade agentcore"
    ):
        Journal(f"sqlite:///{tmp_path / 'state' / 'journal.db'}", tmp_path / "p")


def test_an_event_of_a_newer_version_is_an_error(tmp_path):
    journal, key = open_journal(), uuid.uuid4().hex
    journal.create(key, "run", "a run", DESTINATION).result()

    def write(connection):
        row = {"stream": key, "seq": 1, "kind": "new", "body": '{"kind": "new", "schema_version": 2}'}
        connection.execute(schema.events.insert().values(**row))

    journal._writer.submit(write).result()
    with pytest.raises(JournalError, match="doesn't know events of kind 'new': upgrade agentcore"):
        journal.read(key)


def test_where_the_journal_is(tmp_path, monkeypatch):
    assert Settings().state_directory() == tmp_path / "state"
    monkeypatch.delenv("AGENTCORE_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert Settings().state_directory() == tmp_path / "xdg" / "agentcore"
    with pytest.raises(ConfigurationError, match="journal_url: use postgresql"):
        Settings(journal_url="mysql://x:secret-pw@y")
    assert "secret" not in repr(Settings(journal_url="postgresql+psycopg://u:secret@h/d"))


def test_a_state_directory_that_cannot_be_made_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AGENTCORE_STATE_DIR", str(tmp_path / "file" / "state"))
    with pytest.raises(JournalError, match="Set AGENTCORE_STATE_DIR to a writable directory"):
        open_journal()


def test_an_unreachable_shared_journal_is_said_without_its_password(monkeypatch):
    monkeypatch.setenv("AGENTCORE_JOURNAL_URL", "postgresql+psycopg://u:secretpassword@127.0.0.1:9/d")
    with pytest.raises(JournalError, match=r"127\.0\.0\.1:9/d can't be opened") as failure:
        open_journal()
    assert "secretpassword" not in str(failure.value)
