"""A run that was killed, stopped or failed goes on, and ends as if nothing had been."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import dspy
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.events import ExampleMeasured, StageStarted, TrialFinished
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import ConfigurationError, JournalError, LMUnavailableError, RunFinishedError
from agentcore.journal import _leases as leases_module
from agentcore.journal import close_journals, open_journal
from agentcore.lm import offline_lm
from agentcore.settings import MLflowConfig
from agentcore.tracking import Delivery, program_state, stop_deliveries
from agentcore.tracking._writer import RunWriter
from tests.support import QUICK, AsyncClassifier, Classifier, colours, request
from tests.support.job import CONCURRENCY

ROOT = Path(__file__).parents[2]
TIMES = {
    "duration_seconds",
    "latency_reduction_ms",
    *(f"{side}_{kind}_latency_ms" for side in ("baseline", "optimized") for kind in ("avg", "median")),
}
ACCOUNT = {"lm_calls", "total_tokens"}
OF_THE_PROCESS = {"command", "git_commit"}


def pipeline_for(config, lm=None, on_event=None, **arguments):
    return OptimizationPipeline(
        arguments.pop("program", None) or AsyncClassifier(),
        lm=lm or offline_lm(),
        mlflow_config=config,
        on_event=on_event,
        **{"seed": 3, **arguments},
    )


def figures(result):
    return (
        result.status,
        result.improvement_percentage,
        result.comparison,
        result.optimization_details["trials"],
        result.optimization_details["parameters"],
        program_state(result.program),
    )


IN_FLIGHT = 16


def assert_paid_once(result, alone):
    """What was in flight when the first process stopped may have been answered for nothing; no more."""
    assert 0 <= result.spend.calls - alone.spend.calls <= IN_FLIGHT
    for stage in ("baseline", "winner"):
        spend = result.spend_by_stage[stage]
        assert spend.calls - spend.unanswered == alone.spend_by_stage[stage].calls
        assert spend.total_tokens == alone.spend_by_stage[stage].total_tokens


async def stopped(config, wanted, lm=None, **arguments):
    """Cancel a run when event number `count` of a kind has come; its id."""
    kind, count = wanted
    seen, reached = [], asyncio.Event()

    def follow(event):
        seen.append(event)
        if sum(item.kind == kind for item in seen) == count:
            reached.set()

    lm = lm or offline_lm(latency=0.005)
    once = arguments.pop("once", None)
    pipeline = pipeline_for(config, lm=lm, on_event=follow, **arguments)
    task = asyncio.create_task(pipeline.run_optimization(request(), training_data=colours(), once=once))
    await asyncio.wait_for(reached.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return seen[0].optimization_id


@pytest.fixture(scope="module")
def undisturbed():
    return asyncio.run(
        OptimizationPipeline(
            AsyncClassifier(), lm=offline_lm(), enable_tracking=False, seed=3
        ).run_optimization(request(), training_data=colours())
    )


@pytest.mark.parametrize(
    "wanted",
    [
        ("run_started", 1),
        ("example_measured", 7),
        ("baseline_measured", 1),
        ("step_finished", 1),
        ("candidate_proposed", 1),
        ("trial_finished", 1),
        ("trial_finished", 3),
        ("step_finished", 3),
        ("example_measured", 60),
    ],
    ids=str,
)
async def test_a_stopped_run_ends_as_an_undisturbed_one(config, undisturbed, wanted):
    run_id = await stopped(config, wanted)
    assert open_journal().stream(run_id).finished
    result = await pipeline_for(config).resume(run_id)
    assert figures(result) == figures(undisturbed)
    assert_paid_once(result, undisturbed)
    assert result.optimization_id == run_id
    tracker = MLflowTracker(config)
    (run,) = await tracker.search_runs()
    assert (run.info.run_id, run.info.status) == (result.run_id, "FINISHED")
    assert run.data.tags["optimization_status"] == "completed"
    assert run.data.metrics["lm_calls"] == result.spend.calls
    history = MlflowClient(config.tracking_uri).get_metric_history(run.info.run_id, "validation_score")
    assert [(item.step, item.value) for item in history] == [
        (item["trial"], item["score"]) for item in undisturbed.optimization_details["trials"]
    ]
    with pytest.raises(ConfigurationError, match="has already finished"):
        await pipeline_for(config).resume(run_id)


async def test_nothing_is_paid_for_twice(config, undisturbed):
    first, second = offline_lm(latency=0.005), offline_lm()
    run_id = await stopped(config, ("trial_finished", 2), lm=first)
    journal = open_journal()
    before = {
        (item.event.evaluation, item.event.candidate, item.event.record["digest"])
        for item in journal.read(run_id, of=ExampleMeasured)
    }
    await pipeline_for(config, lm=second).resume(run_id)
    after = [
        (item.event.evaluation, item.event.candidate, item.event.record["digest"])
        for item in journal.read(run_id, of=ExampleMeasured)
    ]
    assert len(after) == len(set(after))
    assert before < set(after)
    assert [item.event.trial for item in journal.read(run_id, of=TrialFinished)] == [0, 1, 2, 3]
    # At most what was in flight when it stopped was asked again.
    assert first.engine.calls + second.engine.calls <= undisturbed.spend.calls + 16


async def test_a_run_stopped_again_and_again(config, undisturbed):
    run_id = await stopped(config, ("example_measured", 3))
    for wanted in (5, 12, 10):
        seen, reached = [], asyncio.Event()

        def follow(event, seen=seen, wanted=wanted, reached=reached):
            seen.append(event)
            if sum(item.kind == "example_measured" for item in seen) == wanted:
                reached.set()

        pipeline = pipeline_for(config, lm=offline_lm(latency=0.005), on_event=follow)
        task = asyncio.create_task(pipeline.resume(run_id))
        await asyncio.wait_for(reached.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert figures(await pipeline_for(config).resume(run_id)) == figures(undisturbed)


async def test_a_run_that_failed_goes_on_once_the_model_answers(config, undisturbed):
    lm = offline_lm(num_retries=0)
    events = []

    def follow(event):
        events.append(event)
        if event.kind == "trial_finished" and event.trial == 1:
            lm.engine.error_rate = 1.0

    with pytest.raises(LMUnavailableError):
        await pipeline_for(config, lm=lm, on_event=follow).run_optimization(
            request(), training_data=colours()
        )
    tracker = MLflowTracker(config)
    (run,) = await tracker.search_runs()
    assert run.info.status == "FAILED"
    result = await pipeline_for(config).resume(run.info.run_id)
    assert figures(result)[:-1] == figures(undisturbed)[:-1]
    (run,) = await tracker.search_runs()
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("program", [Classifier, AsyncClassifier])
async def test_synchronous_programs_resume_too(config, program):
    alone = await OptimizationPipeline(
        program(), lm=offline_lm(), enable_tracking=False, seed=3
    ).run_optimization(request(), training_data=colours())
    run_id = await stopped(config, ("trial_finished", 2), program=program())
    result = await pipeline_for(config, program=program()).resume(run_id)
    assert figures(result) == figures(alone)
    assert_paid_once(result, alone)


async def test_a_time_limit_counts_the_time_before(config):
    constraints = {"max_optimization_time": 1.5}
    asked = request(constraints=constraints, settings={**QUICK, "num_trials": 200})
    reached = asyncio.Event()

    def follow(event):
        if event.kind == "trial_finished":
            reached.set()

    lm = offline_lm(latency=0.25)
    pipeline = pipeline_for(config, lm=lm, on_event=follow)
    task = asyncio.create_task(pipeline.run_optimization(asked, training_data=colours()))
    await asyncio.wait_for(reached.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (stream,) = open_journal().streams()
    result = await pipeline_for(config, lm=offline_lm(latency=0.25)).resume(stream.id)
    assert result.status == "budget_exhausted"
    assert len(result.optimization_details["trials"]) >= 1


@pytest.mark.parametrize("limit", [80, 100])
async def test_a_call_limit_counts_the_calls_before(config, limit):
    first, second = offline_lm(latency=0.005), offline_lm()
    asked = request(constraints={"max_lm_calls": limit})
    reached = asyncio.Event()

    def follow(event):
        if event.kind == "trial_finished":
            reached.set()

    task = asyncio.create_task(
        pipeline_for(config, lm=first, on_event=follow).run_optimization(asked, training_data=colours())
    )
    await asyncio.wait_for(reached.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (stream,) = open_journal().streams()
    result = await pipeline_for(config, lm=second).resume(stream.id)
    assert result.spend.calls <= limit
    # What was in flight when it stopped is on nobody's account.
    assert first.engine.calls + second.engine.calls <= limit + 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"program": Classifier()}, "the program differs"),
        ({"metric": lambda example, prediction: True}, "the metric differs"),
        ({"lm": dspy.LM("openai/x", api_key="sk-abcdefgh", temperature=0.3)}, "the language model differs"),
    ],
)
async def test_another_pipeline_is_refused(config, change, message):
    run_id = await stopped(config, ("baseline_measured", 1))
    with pytest.raises(ConfigurationError, match=message) as refusal:
        await pipeline_for(config, **change).resume(run_id)
    assert "sk-abcdefgh" not in str(refusal.value)
    assert open_journal().acquire(run_id, "work").result() is not None


async def test_a_run_has_one_owner(config):
    run_id = await stopped(config, ("baseline_measured", 1))
    running = asyncio.Event()
    first = pipeline_for(config, lm=offline_lm(latency=0.2), on_event=lambda event: running.set())
    task = asyncio.create_task(first.resume(run_id))
    await asyncio.wait_for(running.wait(), 30)
    with pytest.raises(ConfigurationError, match="another process is working on run"):
        await pipeline_for(config).resume(run_id)
    assert (await task).status == "completed"


async def test_a_named_run_is_made_once(config, undisturbed):
    """The call is safe to repeat: begun, gone on with, and refused once it has finished."""
    lm, given = offline_lm(), {"training_data": colours(), "once": "job-7"}
    reached = asyncio.Event()
    first = pipeline_for(config, lm=lm, on_event=lambda e: e.kind == "baseline_measured" and reached.set())
    task = asyncio.create_task(first.run_optimization(request(), **given))
    await asyncio.wait_for(reached.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    told = []
    result = await pipeline_for(config, lm=lm, on_event=told.append).run_optimization(request(), **given)
    (resumed,) = [event for event in told if event.kind == "run_resumed"]
    assert resumed.examples >= result.comparison.examples
    assert figures(result) == figures(undisturbed)
    assert_paid_once(result, undisturbed)
    with pytest.raises(RunFinishedError, match="has already finished") as refusal:
        await pipeline_for(config).run_optimization(request(), **given)
    assert refusal.value.run_id == result.run_id
    assert len(await MLflowTracker(config).search_runs()) == 1
    other = await pipeline_for(config).run_optimization(request(), **{**given, "once": "job-8"})
    assert other.optimization_id != result.optimization_id


async def test_two_that_begin_under_one_name_at_once_are_one_run(config):
    lm = offline_lm()
    given = {"training_data": colours(), "once": "job-7"}
    results = await asyncio.gather(
        *(pipeline_for(config, lm=lm).run_optimization(request(), **given) for _ in range(3)),
        return_exceptions=True,
    )
    finished = [item for item in results if isinstance(item, RunFinishedError)]
    (made,) = [item for item in results if not isinstance(item, BaseException)]
    assert [item.run_id for item in finished] == [made.run_id] * 2
    assert len(await MLflowTracker(config).search_runs()) == 1
    (stream,) = open_journal().streams()
    kinds = [entry.event.kind for entry in open_journal().read(stream.id)]
    assert kinds.count("run_finished") == kinds.count("run_started") == 1


async def test_a_name_whose_run_the_journal_forgot_leaves_that_run_alone(config):
    """MLflow has it still: the new run is another one, and no double of it."""
    given = {"training_data": colours(), "once": "job-7"}
    before = await pipeline_for(config).run_optimization(request(), **given)
    await pipeline_for(config).flush()
    open_journal().discard(before.optimization_id)
    again = await pipeline_for(config).run_optimization(request(), **given)
    await pipeline_for(config).flush()
    assert again.optimization_id != before.optimization_id
    assert {run.info.run_id for run in await MLflowTracker(config).search_runs()} == {
        again.run_id,
        before.run_id,
    }


async def test_a_name_stands_for_what_it_was_begun_with(config):
    given = {"training_data": colours(), "once": "job-7"}
    await pipeline_for(config).run_optimization(request(), **given)
    with pytest.raises(ConfigurationError, match="was started with different constraints: use another name"):
        await pipeline_for(config).run_optimization(request(constraints={"max_lm_calls": 5000}), **given)
    with pytest.raises(ConfigurationError, match="was started with other examples"):
        await pipeline_for(config).run_optimization(request(), **{**given, "training_data": colours(90)})
    with pytest.raises(ConfigurationError, match="an empty name"):
        await pipeline_for(config).run_optimization(request(), **{**given, "once": " "})


async def test_a_named_run_waits_until_a_process_that_died_elsewhere_has_lost_its_lease(config, monkeypatch):
    """A Job's pod that was killed holds its leases for a while, and nobody can see that it is dead."""
    run_id = await stopped(config, ("baseline_measured", 1), once="job-7")
    journal = open_journal()
    elsewhere = "another-host|boot|1|1|x"
    for stream in (run_id, run_id[:16]):
        soon = leases_module.now_ms() + 3000
        values = {"owner": elsewhere, "until_ms": soon}

        def hold(connection, stream=stream, values=values):
            where = (leases_module.leases.c.stream == stream) & (leases_module.leases.c.role == "work")
            assert connection.execute(leases_module.leases.update().where(where).values(**values)).rowcount

        journal._writer.submit(hold).result()
    given = {"training_data": colours(), "once": "job-7"}
    with monkeypatch.context() as patched:
        patched.setattr("agentcore.dspy_optimization.pipeline.LEASE_PATIENCE", 0.3)
        with pytest.raises(ConfigurationError, match="another process is working on the run named 'job-7'"):
            await pipeline_for(config).run_optimization(request(), **given)
    result = await pipeline_for(config).run_optimization(request(), **given)
    assert (result.status, result.optimization_id) == ("completed", run_id)


async def test_a_named_run_needs_the_journal():
    with pytest.raises(ConfigurationError, match="once needs tracking"):
        await OptimizationPipeline(lm=offline_lm(), enable_tracking=False).run_optimization(
            request(), training_data=colours(), once="x"
        )


async def test_whoever_loses_its_run_stops(config):
    """Its lease ran out, say while the machine slept, and another process has taken the run over."""
    taken, journal = [], open_journal()

    def follow(event):
        if event.kind == "baseline_measured":
            stream = event.optimization_id

            def steal(connection):
                from agentcore.journal._schema import leases

                connection.execute(leases.update().where(leases.c.stream == stream).values(until_ms=0))

            journal._writer.submit(steal).result()
            taken.append(journal.acquire(stream, "work").result())

    lm = offline_lm(latency=0.02)
    with pytest.raises(JournalError, match="taken over by another process: this one stops"):
        await pipeline_for(config, lm=lm, on_event=follow).run_optimization(
            request(), training_data=colours()
        )
    assert lm.engine.calls < 45  # it stops at its next event, and pays for no more
    (lease,) = taken
    journal.release(lease).result()
    result = await pipeline_for(config).resume(lease.stream)
    assert result.status == "completed"


@pytest.mark.parametrize(
    ("run_id", "message"),
    [("zzz", "has no run 'zzz'"), ("", "has no run ''"), ("local-zzz", "has no run 'local-zzz'")],
)
async def test_unknown_runs(config, run_id, message):
    with pytest.raises(ConfigurationError, match=message):
        await pipeline_for(config).resume(run_id)


async def test_a_run_that_is_no_optimization(config):
    run_id = await MLflowTracker(config).start_run(request())
    with pytest.raises(ConfigurationError, match="is not an optimization"):
        await pipeline_for(config).resume(run_id)


async def test_a_run_of_another_server(config):
    run_id = await stopped(config, ("baseline_measured", 1))
    other = config.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(ConfigurationError, match=r"is tracked at sqlite:.*set MLFLOW_TRACKING_URI"):
        await pipeline_for(other).resume(run_id)


async def test_a_run_that_failed_and_was_resumed_has_no_error(config):
    lm = offline_lm(num_retries=0, error_rate=1.0)
    with pytest.raises(LMUnavailableError):
        await pipeline_for(config, lm=lm).run_optimization(request(), training_data=colours())
    tracker = MLflowTracker(config)
    (run,) = await tracker.search_runs()
    assert "language model failed" in run.data.tags["error"]
    await pipeline_for(config).resume(run.info.run_id)
    (run,) = await tracker.search_runs()
    assert (run.info.status, run.data.tags["error"]) == ("FINISHED", "")


@pytest.mark.parametrize("wrong", ["cancelled", "journal away"])
async def test_what_comes_after_the_end_does_not_undo_it(config, monkeypatch, wrong):
    """The result is durable, and the process just waits for MLflow's id."""
    ended = asyncio.Event()

    def follow(event):
        if event.kind == "run_finished":
            ended.set()

    def wait_for_run(self, stream, seconds):
        if wrong == "journal away":
            raise JournalError("can't be read")
        time.sleep(1)

    monkeypatch.setattr(Delivery, "wait_for_run", wait_for_run)
    task = asyncio.create_task(
        pipeline_for(config, on_event=follow).run_optimization(request(), training_data=colours())
    )
    await asyncio.wait_for(ended.wait(), 60)
    if wrong == "cancelled":
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        assert (await task).status == "completed"
    (run,) = await MLflowTracker(config).search_runs()
    assert (run.info.status, run.data.tags["optimization_status"]) == ("FINISHED", "completed")


async def test_trials_that_were_paid_for_count_though_no_time_is_left(config, undisturbed):
    run_id = await stopped(config, ("stage_started", 3))
    journal = open_journal()
    (stream,) = journal.find(run_id)

    def spend_all_time(connection):
        from agentcore.journal._schema import events

        rows = connection.execute(events.select().where(events.c.stream == stream.id)).all()
        for row in rows:
            body = json.loads(row.body)
            where = (events.c.stream == row.stream) & (events.c.seq == row.seq)
            if row.kind == "spend_counted":
                text = json.dumps({**body, "search_seconds": 7199.999})
                connection.execute(events.update().where(where).values(body=text))
            elif row.kind == "step_finished" and body["step"] == "search":
                connection.execute(events.delete().where(where))  # it died a moment earlier

    journal._writer.submit(spend_all_time).result()
    result = await pipeline_for(config).resume(run_id)
    assert result.optimization_details["trials"] == undisturbed.optimization_details["trials"]
    assert program_state(result.program) == program_state(undisturbed.program)


async def test_a_journal_that_fails_while_a_run_is_cancelled(config, monkeypatch):
    """The cancellation stays one, and the run can be resumed as soon as the disk has room."""
    reached, full = asyncio.Event(), True

    def follow(event):
        if event.kind == "trial_finished":
            reached.set()

    journal = open_journal()
    pipeline = pipeline_for(config, lm=offline_lm(latency=0.01), on_event=follow)
    task = asyncio.create_task(pipeline.run_optimization(request(), training_data=colours()))
    await asyncio.wait_for(reached.wait(), 60)
    real = journal._writer._durably

    def durably(group):
        if full:
            raise sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full"))
        return real(group)

    monkeypatch.setattr(journal._writer, "_durably", durably)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, JournalError)):  # whichever an example meets first
        await task
    full = False
    monkeypatch.setattr(leases_module, "_RENEW_SECONDS", 0.05)
    (stream,) = journal.streams()
    async with asyncio.timeout(20):
        while journal.stream(stream.id).working != "no":
            await asyncio.sleep(0.05)
    assert (await pipeline_for(config).resume(stream.id)).status == "completed"


async def test_a_cancellation_stays_one_when_its_end_cannot_be_written(config, monkeypatch):
    reached = asyncio.Event()
    told, writers = [], []

    def follow(event):
        told.append(event.kind)
        if event.kind == "baseline_measured":
            reached.set()

    def post(writer, events):
        writers.append(writer)
        real(writer, events)

    real = RunWriter.post
    monkeypatch.setattr(RunWriter, "post", post)
    pipeline = pipeline_for(config, lm=offline_lm(latency=0.3), on_event=follow, max_concurrency=64)
    task = asyncio.create_task(pipeline.run_optimization(request(), training_data=colours()))
    await asyncio.wait_for(reached.wait(), 60)
    await asyncio.sleep(0.05)  # the search's first calls take 0.3 s

    def durably(group):
        raise sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(open_journal()._writer, "_durably", durably)
    real(writers[0], [StageStarted(optimization_id="x", stage="lost")])
    async with asyncio.timeout(10):
        while writers[0]._failed is None:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told[-1] == "run_finished"
    assert told[-2] == "warning"


async def test_a_resume_that_cannot_start_leaves_no_lease(config):
    run_id = await stopped(config, ("baseline_measured", 1))

    def sink(progress):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await pipeline_for(config, on_progress=sink).resume(run_id)
    assert (await pipeline_for(config).resume(run_id)).status == "completed"


async def test_cancelling_a_resume_leaves_no_lease(config):
    run_id = await stopped(config, ("baseline_measured", 1))
    for seconds in (0, 0.005, 0.02):
        task = asyncio.create_task(pipeline_for(config).resume(run_id))
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(20):
        while open_journal().stream(run_id).working != "no":
            await asyncio.sleep(0.02)
    assert (await pipeline_for(config).resume(run_id)).status == "completed"


async def test_a_model_that_answers_no_unicode(config):
    """A lone surrogate in an answer ends neither the run nor its resumption."""
    program = AsyncClassifier()

    class Odd(AsyncClassifier):
        async def aforward(self, thing):
            answer = await super().aforward(thing)
            return dspy.Prediction(colour=answer.colour, note="\ud83d")

    result = await pipeline_for(config, program=Odd()).run_optimization(request(), training_data=colours())
    assert result.status == "completed"
    assert program.predict.signature


def start_job(tmp_path, *run, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.job", str(tmp_path / "calls"), *run],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_after(job, events):
    """kill -9 after so many events; the optimization's id."""
    for line in job.stdout:
        if line.startswith("event "):
            run_id, events = line.split()[2], events - 1
        if not events:
            break
    job.kill()
    job.communicate()
    assert not events, "it ended before"
    return run_id


def finish_job(job):
    output, _ = job.communicate(timeout=90)
    assert job.returncode == 0
    return json.loads(output.splitlines()[-1].removeprefix("result "))


def seen_in(stack, experiment, result):
    """What MLflow has of a job's one run, but for times, ids, and the account: what was in flight when a
    process was killed may be on it twice."""
    client = MlflowClient(stack.uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    key = run.info.run_id
    return (
        {name: value for name, value in result.items() if name not in ("id", "calls")},
        {name: value for name, value in run.data.metrics.items() if name not in TIMES | ACCOUNT},
        {name: value for name, value in run.data.params.items() if name not in OF_THE_PROCESS},
        [(item.step, item.value) for item in client.get_metric_history(key, "validation_score")],
        {item.path for folder in ("", "models", "plots") for item in client.list_artifacts(key, folder)},
        run.info.status,
        len(run.inputs.dataset_inputs),
        len(run.outputs.model_outputs),
    )


@pytest.fixture(scope="module")
def undisturbed_job(stack, tmp_path_factory):
    """What MLflow has of a job that nobody kills, and how many LM calls it makes."""
    directory = tmp_path_factory.mktemp("undisturbed")
    job = start_job(
        directory,
        MLFLOW_TRACKING_URI=stack.uri,
        MLFLOW_EXPERIMENT_NAME="undisturbed",
        AGENTCORE_STATE_DIR=str(directory / "state"),
    )
    result = finish_job(job)
    return seen_in(stack, "undisturbed", result), len((directory / "calls").read_text().splitlines())


@pytest.mark.parametrize("lines", [6, 75])
def test_kill_9_and_resume_on_a_real_server(stack, tmp_path, undisturbed_job, lines):
    """Killed after so many events; the resumed run is in MLflow what an undisturbed one is."""
    wanted, calls = undisturbed_job
    experiment = f"kill-{lines}"
    environment = {"MLFLOW_TRACKING_URI": stack.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
    run_id = kill_after(start_job(tmp_path, **environment), lines)
    result = finish_job(start_job(tmp_path, run_id, **environment))
    assert seen_in(stack, experiment, result) == wanted
    assert wanted[5] == "FINISHED"
    # What was in flight, or answered and not yet on disk, is asked again.
    assert calls <= len((tmp_path / "calls").read_text().splitlines()) <= calls + 2 * CONCURRENCY


def test_a_cap_holds_over_kills(tmp_path):
    """What a killed process had reserved counts as spent: the provider answers no more than the cap."""
    cap = 70
    environment = {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db", "JOB_CAP": str(cap)}
    run_id = None
    for lines in (8, 12, 16):
        job = start_job(tmp_path, *([run_id] if run_id else []), **environment)
        run_id = kill_after(job, lines)
    result = finish_job(start_job(tmp_path, run_id, **environment))
    answered = len((tmp_path / "calls").read_text().splitlines())
    assert answered <= result["calls"] <= cap
    assert result["status"] == "budget_exhausted"


def test_the_command_line_resumes_what_it_started(tmp_path, monkeypatch):
    (tmp_path / "work.py").write_text(
        "from agentcore.lm import offline_lm\nfrom tests.support import AsyncClassifier, colours\n"
        "import json, pathlib\n"
        "pathlib.Path('data.jsonl').write_text('\\n'.join(json.dumps(row) for row in colours(60).rows()))\n"
        "program = AsyncClassifier()\nprogram.predict.lm = offline_lm(latency=0.05)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", "import work"], cwd=tmp_path, env=environment, check=True)

    def agentcore(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "agentcore", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )

    command = ["optimize", "work:program", "--data", "data.jsonl", "--lm", "offline/knn"]
    job = subprocess.Popen(
        [sys.executable, "-m", "agentcore", *command, "--set", "max_labeled_demos=8"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    for line in job.stderr:
        if "trial 1:" in line:
            break
    job.kill()
    job.communicate()
    listed = agentcore("runs")
    assert "resumable" in listed.stdout
    short = listed.stdout.split("agentcore resume ")[1].split()[0]
    assert "resumable" in agentcore("journal", "ls").stdout
    resumed = agentcore("resume", short)
    assert resumed.returncode == 0, resumed.stderr
    assert "(completed)" in resumed.stdout
    shown = agentcore("show", short)
    assert "FINISHED" in shown.stdout
    assert "run_finished" in agentcore("journal", "show", short).stdout
    again = agentcore("resume", short)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "has already finished" in again.stderr
    pruned = agentcore("journal", "prune", "--older-than", "0")
    assert "removed 1 run" in pruned.stdout


def test_a_journal_that_machines_share(own_stack, tmp_path, monkeypatch):
    """Killed where one home is, resumed where another is: all that is shared is Postgres."""
    monkeypatch.setenv("AGENTCORE_JOURNAL_URL", own_stack.journal_url)
    environment = {"MLFLOW_TRACKING_URI": own_stack.uri, "MLFLOW_EXPERIMENT_NAME": "shared-journal"}
    job = start_job(tmp_path, **environment, AGENTCORE_STATE_DIR=str(tmp_path / "one"))
    run_id = kill_after(job, 60)
    result = finish_job(start_job(tmp_path, run_id, **environment, AGENTCORE_STATE_DIR=str(tmp_path / "two")))
    assert result["status"] == "completed"
    assert not list((tmp_path / "two").rglob("*.db"))
    tracker = MLflowTracker(MLflowConfig(tracking_uri=own_stack.uri, experiment_name="shared-journal"))
    (run,) = tracker.sync.search_runs()
    assert run.info.status == "FINISHED"
    stop_deliveries()
    close_journals()
