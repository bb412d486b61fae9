"""Histories that nobody wrote down: whatever is logged, wherever a process dies, MLflow ends as it should.

Each history appends to a journal on disk and delivers to a real MLflow store. A crash comes at a random
request: before it is sent, or after the server has done it and before the journal knows.
`AGENTCORE_HISTORIES=1000` tries more of them than a test run does.
"""

import math
import os
import shutil
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from agentcore.journal import Journal
from agentcore.settings import MLflowConfig
from agentcore.tracking import MetricsLogged, ParamsLogged, RunCreated, RunEnded, TagsSet, TrackingEvent
from agentcore.tracking._connection import Connection, Unreachable
from agentcore.tracking._sender import Sender

HISTORIES = int(os.environ.get("AGENTCORE_HISTORIES", "60"))
NAMES = st.sampled_from(["a", "b", "loss/x y"])
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
EVENTS = st.one_of(
    st.builds(
        MetricsLogged,
        metrics=st.dictionaries(NAMES, FLOATS, min_size=1, max_size=3),
        step=st.integers(0, 3),
        timestamp_ms=st.integers(1, 10**6),
    ),
    st.builds(
        ParamsLogged,
        params=st.dictionaries(NAMES, st.sampled_from(["1", "2", "ä"]), min_size=1, max_size=2),
    ),
    st.builds(TagsSet, tags=st.dictionaries(NAMES, st.text("xyz ", min_size=1, max_size=4), min_size=1)),
)
#: Append some events; or deliver, dying at request number N before or after the server does it.
ACTIONS = st.one_of(
    st.tuples(st.just("append"), st.lists(EVENTS, min_size=1, max_size=5)),
    st.tuples(st.just("crash before"), st.integers(0, 5)),
    st.tuples(st.just("crash after"), st.integers(0, 5)),
    st.tuples(st.just("reopen"), st.none()),
    st.tuples(st.just("deliver"), st.none()),
)


class Crash(BaseException):
    """The process dies here: nothing may catch it."""


class Dying(Connection):
    """Dies around a request of its choice."""

    def __init__(self, config: MLflowConfig, at: int | None, after: bool) -> None:
        super().__init__(config)
        self.left, self.after = at, after

    def run(self, work: Any) -> Any:
        if self.left is None:
            return super().run(work)
        self.left -= 1
        if self.left >= 0:
            return super().run(work)
        if self.after:
            super().run(work)
        raise Crash


class Model:
    """What MLflow has to hold after all is delivered."""

    def __init__(self) -> None:
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.metrics: dict[str, set[tuple[int, int, float]]] = {}
        self.refused = 0

    def add(self, event: TrackingEvent) -> None:
        if isinstance(event, MetricsLogged):
            for name, value in event.metrics.items():
                self.metrics.setdefault(name, set()).add((event.step, event.timestamp_ms, value))
        elif isinstance(event, TagsSet):
            self.tags |= event.tags
        elif isinstance(event, ParamsLogged):
            # MLflow keeps a parameter's first value, and refuses all that comes with another.
            if all(self.params.get(name, value) == value for name, value in event.params.items()):
                self.params |= event.params
            else:
                self.refused += 1


@pytest.fixture(scope="module")
def store(migrated_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("histories")
    shutil.copy(migrated_store, path / "mlflow.db")
    return path


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(actions=st.lists(ACTIONS, min_size=1, max_size=8))
def test_mlflow_always_ends_as_the_model_says(store, actions):
    config = MLflowConfig(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    key, model = uuid.uuid4().hex, Model()
    journal = open_at(store)
    created = RunCreated(name="n", tags={"agentcore.key": key}, experiment="histories")
    journal.create(key, "run", "n", "here").result()
    journal.append(key, [created]).result()
    for action, argument in [*actions, ("append", [RunEnded(status="FINISHED")]), ("deliver", None)]:
        if action == "append":
            journal.append(key, argument).result()
            for event in argument:
                model.add(event)
        elif action == "reopen":
            journal.close()
            journal = open_at(store)
        else:
            at = argument if action.startswith("crash") else None
            if deliver(journal, key, Dying(config, at, action == "crash after")):
                journal.close()
                journal = open_at(store)
    refused = journal.rejected(key)
    assert journal.waiting("here", key) == []
    tracking_id = journal.stream(key).tracking_id
    journal.close()
    check(config, key, tracking_id, model, len(refused))


def open_at(store: Any) -> Journal:
    return Journal(f"sqlite:///{store / 'journal.db'}", store / "payloads")


def deliver(journal: Journal, key: str, connection: Connection) -> bool:
    """Whether it died. A dead process holds its lease no longer."""
    lease = journal.acquire(key, "deliver").result()
    try:
        Sender(journal, connection, journal.stream(key), lease, lambda: None).run()
    except Crash:
        return True
    except Unreachable as error:
        raise AssertionError(str(error)) from None
    finally:
        journal.release(lease).result()
    return False


def check(config: MLflowConfig, key: str, tracking_id: str, model: Model, refused: int) -> None:
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name("histories")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`agentcore.key` = '{key}'")
    assert run.info.run_id == tracking_id
    assert run.info.status == "FINISHED"
    assert run.data.params == model.params
    assert {name: value for name, value in run.data.tags.items() if "." not in name} == model.tags
    found = {
        name: [
            (item.step, item.timestamp, item.value) for item in client.get_metric_history(tracking_id, name)
        ]
        for name in run.data.metrics
    }
    assert {name: set(values) for name, values in found.items()} == model.metrics
    assert all(len(values) == len(set(values)) for values in found.values())
    assert all(math.isfinite(value) for value in run.data.metrics.values())
    # A refused entry may be refused again after a crash, but never twice in the journal.
    assert refused == model.refused
