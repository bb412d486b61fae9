"""A journal that an earlier version wrote, or a later one writes to at the same time."""

import sqlite3
import subprocess
import sys
import time
import uuid
from importlib.metadata import EntryPoint

import pytest
import sqlalchemy as sa

from agentcore.dspy_optimization.events import ExampleMeasured, StageStarted
from agentcore.errors import ConfigurationError, JournalError, TrackingError, UnknownEventError
from agentcore.journal import Event, UnknownEvent, close_journals, open_journal
from agentcore.journal import _event as event_module
from agentcore.journal import _leases as leases_module
from agentcore.journal import _migrations as migrations
from agentcore.journal import _schema as schema
from agentcore.tracking import MetricsLogged, RunCreated, TrackingEvent, delivery_for, destination_of
from tests.support.landed import BY_HAND, FINISHED, UNFINISHED, unpack

DESTINATION = "http://mlflow"
FINAL = 3 * 86_400_000


def shape(engine):
    """Tables, columns, keys and indexes, as the database has them."""
    inspector = sa.inspect(engine)
    return {
        table: (
            [(item["name"], str(item["type"]), item["nullable"]) for item in inspector.get_columns(table)],
            inspector.get_pk_constraint(table)["constrained_columns"],
            sorted(item["name"] for item in inspector.get_indexes(table)),
        )
        for table in inspector.get_table_names()
        if table.startswith("agentcore_") and table != "agentcore_journal_version"
    }


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    """An empty database."""
    if request.param == "sqlite":
        yield sa.engine.make_url(f"sqlite:///{tmp_path / 'fresh.db'}")
        return
    stack = request.getfixturevalue("own_stack")
    name = f"upgrade_{uuid.uuid4().hex[:8]}"
    stack.postgres.psql(f"CREATE DATABASE {name};")
    yield sa.engine.make_url(stack.journal_url).set(database=name)


def test_the_migrations_make_the_tables_that_this_version_uses(database):
    made, declared = schema.make_engine(database), schema.make_engine(database)
    schema.migrate(made)
    migrated = shape(made)
    with declared.begin() as connection:
        for table in migrated:
            connection.execute(sa.text(f"DROP TABLE {table}"))
        schema.metadata.create_all(connection)
    assert migrated == shape(declared)
    made.dispose()
    declared.dispose()


def test_a_journal_of_the_first_schema_is_upgraded(database, monkeypatch):
    engine = schema.make_engine(database)
    with monkeypatch.context() as earlier:
        earlier.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:1])
        schema.migrate(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO agentcore_commits (writer, number) VALUES ('old', 7)"))
        connection.execute(
            sa.text("INSERT INTO agentcore_events (stream, seq, kind, body) VALUES ('s', 1, 'k', '{}')")
        )
    began = time.time() * 1000
    schema.migrate(engine)
    schema.migrate(engine)  # changes nothing
    with engine.connect() as connection:
        commit = connection.execute(sa.select(schema.commits)).one()
        assert (commit.writer, commit.number) == ("old", 7)
        assert began - 1000 <= commit.touched_ms <= time.time() * 1000
        assert connection.execute(sa.select(schema.events.c.deliverable)).scalar() is None
        versions = connection.execute(sa.text("SELECT version FROM agentcore_journal_version")).scalars()
        assert sorted(versions) == [1, 2]
    engine.dispose()


def test_the_landed_journal_opens_with_all_it_holds(tmp_path):
    path = unpack(tmp_path / "state", DESTINATION)
    journal = open_journal()
    assert journal.location == str(path)
    by_hand, finished, unfinished = map(journal.stream, (BY_HAND, FINISHED, UNFINISHED))
    assert (by_hand.finished, finished.finished, unfinished.finished) == (True, True, False)
    assert (by_hand.interrupted, finished.interrupted, unfinished.interrupted) == (False, False, True)
    assert len(journal.read(FINISHED)) == finished.last_seq == finished.waiting == 171
    # Rows of schema 1 don't say what is to be delivered: their kinds do.
    page = journal.deliverable(finished, 0, 1000)
    assert all(isinstance(entry.event, TrackingEvent) for entry in page.entries)
    assert len(page.entries) == len(journal.read(FINISHED, of=TrackingEvent)) > 10
    assert (page.through, page.unknown) == (171, None)


def test_pages_account_for_every_entry_once(tmp_path):
    unpack(tmp_path / "state", DESTINATION)
    journal = open_journal()
    stream = journal.stream(FINISHED)
    seen, at = [], 0
    while at < stream.last_seq:
        page = journal.deliverable(stream, at, 3)
        assert page.through > at
        seen += [entry.seq for entry in page.entries]
        at = page.through
    assert seen == [entry.seq for entry in journal.read(FINISHED, of=TrackingEvent)]


def written_by_a_newer_version(journal, key, kind, deliverable):
    def write(connection):
        row = {"kind": kind, "body": f'{{"kind": "{kind}", "schema_version": 2}}', "deliverable": deliverable}
        seq = connection.execute(sa.select(sa.func.max(schema.events.c.seq))).scalar() + 1
        connection.execute(schema.events.insert().values(stream=key, seq=seq, **row))
        changed = schema.streams.update().where(schema.streams.c.id == key).values(last_seq=seq)
        connection.execute(changed)
        return seq

    return journal._writer.submit(write).result()


@pytest.mark.parametrize("deliverable", [True, None])
def test_a_kind_that_is_not_known_is_never_skipped_as_delivered(config, deliverable):
    """An older version beside a newer one: it delivers up to what it doesn't know, and waits there."""
    journal, delivery = open_journal(), delivery_for(open_journal(), config)
    key = uuid.uuid4().hex
    created = RunCreated(name="n", tags={"agentcore.key": key}, experiment=config.experiment_name)
    first = [created, MetricsLogged(metrics={"before": 1})]
    journal.create(key, "run", "n", destination_of(config), first=first).result()
    unknown = written_by_a_newer_version(journal, key, "of_the_future", deliverable)
    journal.append(key, [MetricsLogged(metrics={"after": 1})]).result()
    with pytest.raises(TrackingError, match="doesn't know events of kind 'of_the_future': upgrade agentcore"):
        delivery.flush([key], timeout=30)
    stream = journal.stream(key)
    assert (stream.delivered, stream.waiting) == (unknown - 1, 2)
    run = delivery.connection.run(lambda client: client.get_run(stream.tracking_id))
    assert set(run.data.metrics) == {"before"}


def test_a_kind_that_is_not_known_holds_nothing_up_where_it_is_not_for_mlflow(config):
    journal, delivery = open_journal(), delivery_for(open_journal(), config)
    key = uuid.uuid4().hex
    created = RunCreated(name="n", tags={"agentcore.key": key}, experiment=config.experiment_name)
    journal.create(key, "run", "n", destination_of(config), first=[created]).result()
    written_by_a_newer_version(journal, key, "of_the_future", deliverable=False)
    journal.append(key, [MetricsLogged(metrics={"after": 1})]).result()
    delivery.flush([key], timeout=30)
    assert journal.stream(key).waiting == 0


def test_an_unknown_kind_can_be_looked_at_but_not_resumed_from(config):
    journal, key = open_journal(), uuid.uuid4().hex
    journal.create(key, "run", "n", DESTINATION, first=[MetricsLogged(metrics={"x": 1})]).result()
    written_by_a_newer_version(journal, key, "of_the_future", deliverable=False)
    with pytest.raises(UnknownEventError, match="upgrade agentcore"):
        journal.read(key)
    last = journal.read(key, lenient=True)[-1].event
    assert isinstance(last, UnknownEvent)
    assert (last.kind, last.schema_version) == ("of_the_future", 2)


def test_a_process_finds_the_events_of_rooms_that_it_has_not_imported(tmp_path):
    """And loads neither DSPy nor MLflow for it."""
    unpack(tmp_path / "state", DESTINATION)
    script = f"""
import sys
from agentcore.journal import open_journal
events = [entry.event for entry in open_journal().read({FINISHED!r})]
rooms = sorted({{type(event).__module__ for event in events}})
print(len(events), *rooms, *(name for name in ("dspy", "mlflow") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "171",
        "agentcore.dspy_optimization._events",
        "agentcore.dspy_optimization._plots",
        "agentcore.tracking._events",
    ]


def test_a_package_whose_events_cannot_be_loaded_leaves_its_kinds_unknown(tmp_path, monkeypatch, caplog):
    broken = EntryPoint("broken", "no.such.module", event_module.GROUP)
    monkeypatch.setattr(event_module, "entry_points", lambda group: [broken])
    event_module._load_rooms.cache_clear()
    assert event_module.event_class("of_the_future") is None
    assert "the events of no.such.module can't be loaded" in caplog.text
    event_module._load_rooms.cache_clear()


def test_a_kind_belongs_to_one_class():
    with pytest.raises(TypeError, match="event kind 'stage_started' is taken by"):

        class Other(Event):
            kind: str = "stage_started"

    assert event_module.event_class("stage_started") is StageStarted
    assert event_module.event_class("example_measured") is ExampleMeasured


def test_leases_of_names_that_nobody_holds_are_pruned(tmp_path, monkeypatch):
    unpack(tmp_path / "state", DESTINATION)
    journal = open_journal()

    def names():
        rows = journal._rows(sa.select(schema.leases.c.stream))
        return {row.stream for row in rows} - {BY_HAND, FINISHED, UNFINISHED}

    assert len(names()) == 1  # of `once`, released when its run had finished
    held = journal.acquire("still-held", "work").result()
    journal.prune(0)
    assert names() == {"still-held"}
    # One whose process died without releasing it, long ago.
    monkeypatch.setattr(leases_module, "is_over", lambda owner, until_ms, now: owner == "gone")

    def forget(connection):
        row = {"stream": "forgotten", "role": "work", "owner": "gone", "epoch": 1}
        connection.execute(schema.leases.insert().values(until_ms=round(time.time() * 1000) - FINAL, **row))
        connection.execute(schema.leases.insert().values(**{**row, "stream": "recent"}, until_ms=1 + now()))

    def now():
        return round(time.time() * 1000)

    journal._writer.submit(forget).result()
    journal.prune(0)
    assert names() == {"still-held", "recent"}
    journal.release(held).result()


def test_commit_rows_of_writers_that_are_gone_are_pruned(own_stack, monkeypatch):
    monkeypatch.setenv("AGENTCORE_JOURNAL_URL", own_stack.journal_url)
    journal = open_journal()
    journal.create(uuid.uuid4().hex, "run", "n", DESTINATION).result()

    def leave(connection):
        for writer, age in (("gone", FINAL), ("recent", 1000)):
            touched = round(time.time() * 1000) - age
            connection.execute(schema.commits.insert().values(writer=writer, number=1, touched_ms=touched))

    journal._writer.submit(leave).result()
    journal.prune(0)
    writers = {row.writer for row in journal._rows(sa.select(schema.commits.c.writer))}
    assert "gone" not in writers
    assert writers >= {"recent", journal._writer._id}


def test_a_version_of_the_future_keeps_this_one_out(tmp_path):
    path = unpack(tmp_path / "state", DESTINATION)
    open_journal()
    close_journals()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO agentcore_journal_version VALUES (3)")
    connection.commit()
    connection.close()
    with pytest.raises(JournalError, match=r"journal schema 3 is newer than this version supports \(2\)"):
        open_journal()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (UNFINISHED, UNFINISHED),
        (UNFINISHED[:6], UNFINISHED),
        ("local-" + UNFINISHED, UNFINISHED),
        ("local-" + UNFINISHED[:9], UNFINISHED),
        ("nothing", None),
        ("", None),
        ("../etc", None),
    ],
)
def test_one_rule_finds_runs_by_their_ids(tmp_path, text, found):
    unpack(tmp_path / "state", DESTINATION)
    journal = open_journal()
    stream = journal.resolve(text)
    assert (stream.id if stream else None) == found
    assert journal.resolve(text, destination="http://elsewhere") is None
    exact = journal.resolve(text, exact=True)
    assert (exact.id if exact else None) == (found if len(text) >= 32 else None)


def test_the_start_of_several_ids_is_no_id(tmp_path):
    journal = open_journal()
    for number in range(2):
        journal.create(f"abc{number}", "run", "n", DESTINATION, tracking_id=f"{number}def").result()
    with pytest.raises(ConfigurationError, match="2 run ids start with 'abc': use a longer prefix"):
        journal.resolve("abc")
    assert journal.resolve("abc", exact=True) is None
    assert journal.resolve("1def").id == "abc1"
