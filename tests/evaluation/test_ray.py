"""Programs on Ray's workers: the same figures, caps and models kept here, dead workers made good."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time

import dspy
import psutil
import pytest
import pytest_asyncio

pytest.importorskip("ray", reason="Ray has no wheel for this Python")

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.errors import ConfigurationError, ExecutorError, LMUnavailableError
from agentcore.evaluation import (
    EvaluationLimits,
    RayExecutor,
    ScoredMetric,
    evaluate,
    exact_match,
    resolve_executor,
)
from agentcore.lm import offline_lm
from agentcore.lm.offline import AsyncOfflineEngine, OfflineEngine
from tests.support import AsyncClassifier, Classifier, TwoSteps, colours, request

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def shared():
    """One worker for all tests that need no other: each takes seconds to import DSPy."""
    async with RayExecutor(workers=1).open(8) as place:
        yield place
    import ray

    ray.shutdown()


@pytest.fixture(autouse=True)
def _shared(shared, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PLACE", shared)


PLACE = None


class Remembering(OfflineEngine):
    """Calls a hook with the number of each request."""

    def __init__(self, hook=lambda number: None):
        super().__init__()
        self.hook = hook

    def _begin(self):
        failing = super()._begin()
        self.hook(self.calls)
        return failing


def lm_of(engine, **settings):
    return dspy.LM(
        "offline/knn", engine=engine, async_engine=AsyncOfflineEngine(engine), cache=False, **settings
    )


def workers():
    """This process's Ray workers that run programs, the shared one first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie's too
            if any("ray::Worker" in part for part in process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


async def measure(program, *, lm=None, rows=None, executor=None, **limits):
    data = rows or colours(12)
    lm = lm or offline_lm()
    async with executor.open(8) if executor else contextlib.nullcontext(PLACE) as place:
        return await evaluate(
            program,
            data.examples,
            ScoredMetric(exact_match),
            lm=lm,
            limits=EvaluationLimits(8, **limits),
            place=place,
        )


@pytest.mark.parametrize("program", [Classifier, AsyncClassifier])
async def test_a_search_on_ray_is_the_search_here(program):
    async def search(executor):
        lm = offline_lm()
        pipeline = OptimizationPipeline(program(), lm=lm, enable_tracking=False, executor=executor)
        return await pipeline.run_optimization(request(), training_data=colours(60)), lm.engine.calls

    (here, calls_here), (there, calls_there) = await search("local"), await search(RayExecutor(workers=2))
    assert there.status == "completed"
    assert here.optimized_performance.quality_score > here.measured_baseline.quality_score
    for name in ("measured_baseline", "optimized_performance"):
        assert getattr(there, name).quality_score == getattr(here, name).quality_score
    trials = [result.optimization_details["trials"] for result in (here, there)]
    assert trials[0] == trials[1]
    assert there.program.dump_state() == here.program.dump_state()
    assert there.spend_by_stage == here.spend_by_stage
    assert calls_there == calls_here == there.spend.calls


async def test_a_cap_holds_on_ray():
    lm = offline_lm()
    pipeline = OptimizationPipeline(
        Classifier(), lm=lm, enable_tracking=False, executor=RayExecutor(workers=2)
    )
    result = await pipeline.run_optimization(
        request(constraints={"max_lm_calls": 90}), training_data=colours(60)
    )
    assert result.status == "budget_exhausted"
    assert lm.engine.calls == result.spend.calls <= 90


async def test_a_killed_workers_examples_run_again_and_pay_nothing_twice():
    killed = []

    def kill(number):
        if number == 10:
            victim = workers()[-1]
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

    class Slow(Remembering):
        def complete(self, given):
            time.sleep(0.02)  # so that calls are under way when the worker dies
            return super().complete(given)

    engine = Slow(kill)
    rows = colours(40)
    report = await measure(TwoSteps(), lm=lm_of(engine), rows=rows, executor=RayExecutor(workers=2))
    assert killed
    assert [record.failed for record in report.records] == [None] * 40
    assert [record.lm_calls for record in report.records] == [2] * 40
    assert engine.calls == 80  # neither what was answered nor what was under way is asked again


class Deadly(dspy.Module):
    """Ends its process on one example."""

    def __init__(self, on):
        super().__init__()
        self.on = on
        self.answer = dspy.Predict("thing -> colour")

    def forward(self, thing):
        found = self.answer(thing=thing)
        if thing == self.on:
            os._exit(1)
        return found


async def test_an_example_that_kills_its_worker_fails_and_no_other():
    rows = colours(12)
    engine = OfflineEngine()
    report = await measure(Deadly(rows.examples[3].inputs["thing"]), lm=lm_of(engine), rows=rows)
    (failed,) = report.failures
    assert failed.failed == "program"
    assert failed.score == 0
    assert "the Ray worker died 3 times" in failed.error
    assert failed.index == 3
    assert engine.calls == 12  # what had been answered was not asked again


class Failing(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("thing -> colour")

    async def aforward(self, thing):
        await self.answer.acall(thing=thing)
        raise LookupError(f"no {thing}")


async def test_a_programs_own_error_is_told_as_it_is_here():
    there = await measure(Failing(), max_error_rate=1.0)
    here = await measure(Failing(), max_error_rate=1.0, executor=resolve_executor("local"))
    assert [record.error for record in there.records] == [record.error for record in here.records]
    assert all(record.error.startswith("LookupError: ") for record in there.records)


async def test_an_outage_is_an_outage_on_ray():
    with pytest.raises(LMUnavailableError, match="failure requested by error_rate"):
        await measure(Classifier(), lm=offline_lm(error_rate=1.0, num_retries=0))


class Exits(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("thing -> colour")

    async def aforward(self, thing):
        if thing.endswith(" 3"):
            raise SystemExit(2)
        return await self.answer.acall(thing=thing)


async def test_a_program_that_exits_fails_alone():
    report = await measure(Exits())
    (failed,) = report.failures
    assert failed.error == "RuntimeError: the program raised SystemExit: 2"


async def test_a_model_that_is_cancelled_is_an_error_like_any():
    class Cancelling(AsyncOfflineEngine):
        async def complete(self, given):
            raise asyncio.CancelledError

    engine = OfflineEngine()
    lm = dspy.LM("offline/knn", engine=engine, async_engine=Cancelling(engine), cache=False)
    report = await measure(AsyncClassifier(), lm=lm, rows=colours(3), max_error_rate=1.0)
    assert all("raised CancelledError" in record.error for record in report.records)


class Confiding(dspy.Module):
    """Tells what it can read of its model's error."""

    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("thing -> colour")

    def forward(self, thing):
        try:
            return self.answer(thing=thing)
        except Exception as error:
            return dspy.Prediction(colour=repr((error, vars(error))))


async def test_an_errors_key_stays_here_and_classes_that_workers_lack_do_no_harm(tmp_path, monkeypatch):
    (tmp_path / "gateway.py").write_text("class GatewayError(Exception):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    from gateway import GatewayError

    class Refusing(OfflineEngine):
        def complete(self, given):
            raise GatewayError("401 for https://x/?key=sk-very-secret")

    lm = lm_of(Refusing(), num_retries=0)
    lm.kwargs["api_key"] = "sk-very-secret"
    (record, *_) = (await measure(Confiding(), lm=lm, rows=colours(3))).records
    assert "401 for" in record.prediction["colour"]
    assert "sk-very-secret" not in record.prediction["colour"]
    # Let through, it is the error that was raised here.
    report = await measure(Classifier(), lm=lm, rows=colours(3), tolerated=3)
    assert all("401 for" in record.error for record in report.records)


class AnotherModel(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("thing -> colour")

    def forward(self, thing):
        with dspy.context(lm=dspy.settings.lm.copy(model="offline/other")):
            return self.answer(thing=thing)


async def test_a_copy_with_another_model_is_refused():
    with pytest.raises(ConfigurationError, match=r"created a model while it ran \(offline/other\)"):
        await measure(AnotherModel())


async def test_what_is_not_carried_is_refused():
    with dspy.context(track_usage=True), pytest.raises(ConfigurationError, match="leave track_usage out"):
        await measure(Classifier())
    with pytest.raises(ConfigurationError, match=r"RayExecutor\(options=…\)"):
        await measure(Classifier(), executor=RayExecutor(workers=1, options={"cpus": 2}))
    with pytest.raises(
        ConfigurationError, match=r"connected to the Ray cluster at .*, not 203\.0\.113\.9:6379"
    ):
        await measure(Classifier(), executor=RayExecutor("203.0.113.9:6379"))


class MakesItsOwn(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("thing -> colour")

    def forward(self, thing):
        with dspy.context(lm=dspy.LM("openai/made-in-forward", api_key="sk-none")):
            return self.answer(thing=thing)


async def test_a_model_that_no_account_would_know_of_is_refused():
    with pytest.raises(ConfigurationError, match="created a model while it ran"):
        await measure(MakesItsOwn())


class Telling(dspy.Module):
    """Answers with what it can learn of its model."""

    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("thing -> colour")

    def forward(self, thing):
        lm = dspy.settings.lm
        self.answer(thing=thing)
        return dspy.Prediction(colour=repr((os.getpid(), lm.model, sorted(lm.kwargs.items()), vars(lm))))


async def test_a_worker_never_has_a_models_key():
    lm = offline_lm()
    lm.kwargs.update(api_key="sk-very-secret", api_base="http://secret-host", max_tokens=77)
    report = await measure(Telling(), lm=lm)
    told = [record.prediction["colour"] for record in report.records]
    assert all("offline/knn" in text and "('max_tokens', 77)" in text for text in told)
    assert not any("secret" in text for text in told)
    assert {text.split(",")[0].strip("(") for text in told}.isdisjoint({str(os.getpid())})


class Copying(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("thing -> colour")

    def forward(self, thing):
        with dspy.context(lm=dspy.settings.lm.copy(temperature=0.7)):
            return self.answer(thing=thing)


async def test_a_copied_models_settings_reach_the_model():
    asked = []

    class Listening(OfflineEngine):
        def complete(self, given):
            asked.append(given.config.temperature)
            return super().complete(given)

    await measure(Copying(), lm=lm_of(Listening(), temperature=0.1), rows=colours(3))
    assert asked == [0.7] * 3


class BlocksItsLoop(dspy.Module):
    """Asks synchronously from a coroutine: nothing else may run in its loop until the answer is there."""

    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("thing -> colour")

    async def aforward(self, thing):
        return self.answer(thing=thing)


async def test_a_program_that_blocks_its_loop_gets_its_answer():
    report = await measure(BlocksItsLoop(), executor=RayExecutor(workers=1))
    assert not report.failures


async def test_a_cancelled_search_ends_its_workers():
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    lm = lm_of(Remembering(lambda number: loop.call_soon_threadsafe(begun.set)))
    pipeline = OptimizationPipeline(
        Classifier(), lm=lm, enable_tracking=False, executor=RayExecutor(workers=1)
    )
    work = asyncio.ensure_future(pipeline.run_optimization(request(), training_data=colours(60)))
    await begun.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    calls = lm.engine.calls
    deadline = time.monotonic() + 30
    while len(workers()) > 1 and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert len(workers()) == 1
    assert lm.engine.calls == calls


class Unsendable(Classifier):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def __deepcopy__(self, memo):
        return self


async def test_what_cant_be_sent_is_said():
    with pytest.raises(ConfigurationError, match=r"can't be sent to Ray's workers.*in its forward"):
        await measure(Unsendable())


async def test_no_room_for_a_worker_is_said():
    executor = RayExecutor(workers=1, options={"resources": {"unobtainium": 1}}, patience=3)
    with pytest.raises(ExecutorError, match=r"no Ray worker has started within 3 s.*RayExecutor\(workers"):
        await measure(Classifier(), executor=executor)


async def test_a_worker_that_cant_have_the_programs_code_is_said(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text(
        "import dspy\n\n\nclass Program(dspy.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.answer = dspy.Predict('thing -> colour')\n\n"
        "    def forward(self, thing):\n        return self.answer(thing=thing)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with pytest.raises(ConfigurationError, match=r"No module named 'only_here'.*working_dir"):
        await measure(only_here.Program())


async def test_executors_by_name():
    assert isinstance(resolve_executor("ray"), RayExecutor)
    with pytest.raises(ConfigurationError, match="no executor 'dask'"):
        OptimizationPipeline(executor="dask")
    with pytest.raises(ConfigurationError, match="workers must be at least 1"):
        RayExecutor(workers=0)


async def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "agentcore.evaluation.ray")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'agentcore\[ray\]'"):
        resolve_executor("ray")
