"""The pipeline against an OpenAI-compatible server in another process, and that server's faults."""

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import dspy
import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.errors import AgentCoreError, EvaluationError, LMUnavailableError
from agentcore.lm import offline_lm
from tests.support import AsyncClassifier, colours, request

ROOT = Path(__file__).parents[2]


class Server:
    """The server's process; `url` gives a base URL of its own for each fault."""

    def __init__(self, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "tests.support.openai_server"]
        with log.open("w") as stream:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while not log.read_text().endswith("\n"):
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.port = log.read_text().split()[0]

    def url(self, fault: str = "none", after: int = 0) -> str:
        return f"http://127.0.0.1:{self.port}/{fault}/{after}/{uuid.uuid4().hex}/v1"

    def requests(self, url: str) -> int:
        return self.log.read_text().count(urlsplit(url).path)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server") / "log")
    yield running
    running.stop()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "log")
    yield running
    running.stop()


def connect(url: str, **values) -> dspy.LM:
    settings = {"api_key": "sk-test-key", "cache": False, "timeout": 2, "num_retries": 1, **values}
    return dspy.LM("openai/local-model", api_base=url, **settings)


async def test_the_same_pipeline_over_http_finds_the_same(server):
    url = server.url()
    results = [
        await OptimizationPipeline(AsyncClassifier(), lm=lm, enable_tracking=False, seed=1).run_optimization(
            request(), training_data=colours()
        )
        for lm in (connect(url), offline_lm())
    ]
    assert results[0].comparison == results[1].comparison
    assert results[0].optimized_performance.quality_score > 0.85
    assert results[0].spend.calls == server.requests(url) == results[1].spend.calls
    assert results[0].spend.total_tokens > 1000
    assert results[0].spend.cost_usd is None  # no price list has this model


async def test_a_rate_limit_is_waited_for(server):
    lm = connect(server.url("429"), num_retries=8)
    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=lm, enable_tracking=False, max_concurrency=4, seed=1
    )
    result = await pipeline.run_optimization(request(), training_data=colours())
    assert result.status == "completed"
    assert result.optimized_performance.quality_score > 0.85


async def fails(config, url: str) -> None:
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=connect(url), mlflow_config=config)
    started = time.monotonic()
    with pytest.raises(LMUnavailableError, match="language model failed"):
        await pipeline.run_optimization(request(), training_data=colours())
    assert time.monotonic() - started < 60
    (run,) = await MLflowTracker(config).search_runs()
    assert run.info.status == "FAILED"
    assert "language model failed" in run.data.tags["error"]
    assert "optimized_quality_score" not in run.data.metrics
    assert run.data.metrics.get("validation_score", 1) > 0


#: Requests: 17 of the baseline, then bootstrapping and proposals, then trials.
@pytest.mark.parametrize(
    ("fault", "after"), [("500", 0), ("malformed", 20), ("401", 60), ("500", 60), ("401", 0)]
)
async def test_a_server_that_fails_makes_the_run_fail(config, server, fault, after):
    await fails(config, server.url(fault, after))


@pytest.mark.parametrize("after", [0, 60], ids=["baseline", "trials"])
async def test_a_server_that_dies_makes_the_run_fail(config, mortal, after):
    await fails(config, mortal.url("die", after))


async def test_a_server_that_hangs_makes_the_run_fail_within_its_time_limits(server):
    lm = connect(server.url("hang", 30), timeout=1, num_retries=0)
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=lm, enable_tracking=False)
    started = time.monotonic()
    with pytest.raises(LMUnavailableError, match="language model failed"):
        await pipeline.run_optimization(request(), training_data=colours())
    assert time.monotonic() - started < 30


async def test_no_server_at_all():
    lm = connect("http://127.0.0.1:9/v1", num_retries=0)
    with pytest.raises(LMUnavailableError, match=r"the language model failed .*: LMTransportError"):
        await OptimizationPipeline(AsyncClassifier(), lm=lm, enable_tracking=False).run_optimization(
            request(), training_data=colours()
        )


async def test_a_model_that_never_follows_the_format_is_no_outage():
    """The program fails then, not the model; the error says which."""
    from dspy.lm15 import Message, Response, Usage

    class Mumbling:
        async def complete(self, request):
            return self.answer(request)

        def answer(self, request):
            return Response(
                id=None,
                model=request.model,
                message=Message.assistant("hm"),
                finish_reason="stop",
                usage=Usage(input_tokens=1, output_tokens=1),
            )

    class Sync(Mumbling):
        def complete(self, request):
            return self.answer(request)

    lm = dspy.LM("own/mumbler", engine=Sync(), async_engine=Mumbling(), cache=False)
    with pytest.raises(AgentCoreError, match=r"AdapterParseError") as caught:
        await OptimizationPipeline(AsyncClassifier(), lm=lm, enable_tracking=False).run_optimization(
            request(), training_data=colours()
        )
    assert type(caught.value) is EvaluationError


NO_ANSWERS = ["empty", "null", "filtered", "sorry", "error", "nochoices"]


@pytest.mark.parametrize(
    ("fault", "after"), [(fault, 30 * (number % 2)) for number, fault in enumerate(NO_ANSWERS)]
)
async def test_a_run_of_answers_that_are_none_is_an_outage(server, fault, after):
    """They came with status 200, and would be scored 0."""
    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=connect(server.url(fault, after), num_retries=0), enable_tracking=False
    )
    with pytest.raises(LMUnavailableError, match="the language model failed"):
        await pipeline.run_optimization(request(), training_data=colours())


@pytest.mark.parametrize("fault", NO_ANSWERS)
async def test_a_single_one_is_asked_for_again_and_told(server, fault):
    url = server.url(f"{fault}25")
    pipeline = OptimizationPipeline(AsyncClassifier(), lm=connect(url, num_retries=2), enable_tracking=False)
    result = await pipeline.run_optimization(request(), training_data=colours())
    assert result.status == "completed"
    # DSPy takes an error object for an error: it is retried as one, and no call.
    assert result.spend.calls == server.requests(url) - (fault == "error")
    if fault != "error":
        assert any(text.startswith("1 answers were empty") for text in result.warnings), result.warnings


async def test_attempts_that_timed_out_count_towards_the_cap(server):
    """The server answers them all the same, only too late."""
    url = server.url("slow")
    pipeline = OptimizationPipeline(
        AsyncClassifier(),
        lm=connect(url, timeout=1, num_retries=3),
        enable_tracking=False,
        max_concurrency=8,
    )
    result = await pipeline.run_optimization(
        request(constraints={"max_lm_calls": 60, "max_error_rate": 0.5}), training_data=colours()
    )
    assert server.requests(url) <= result.spend.calls <= 60
    assert result.spend.calls - server.requests(url) <= 8
    assert result.spend_by_stage["baseline"].unanswered > 0
