"""Models as the command line describes them, and where their calls go."""

import dspy
import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.errors import ConfigurationError
from agentcore.lm import endpoint_of, given_lm, offline_lm
from tests.dspy_optimization.test_http_lm import connect, server  # noqa: F401 - a fixture
from tests.programs.test_models import response
from tests.support import AsyncClassifier, Classifier, colours, request

# Of litellm's own imports and models.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
MODEL = offline_lm()


def make():
    return offline_lm()


def test_a_name_alone_stays_a_name():
    assert given_lm("openai/gpt-5-mini") == "openai/gpt-5-mini"
    assert given_lm(None) is None


def test_an_address_and_arguments(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "a-secret-token")
    lm = given_lm(
        "smol",
        "http://localhost:8080/v1",
        ["max_tokens=200", "temperature=0.7", 'stop=["END"]', "cache=false", "header.X-Auth=env:MY_TOKEN"],
    )
    assert isinstance(lm, dspy.LM)
    assert lm.model == "openai/smol"
    assert lm.cache is False
    assert lm.kwargs["max_tokens"] == 200
    assert lm.kwargs["temperature"] == 0.7
    assert lm.kwargs["stop"] == ["END"]
    assert lm.kwargs["extra_headers"] == {"X-Auth": "a-secret-token"}
    assert lm.kwargs["api_key"] == "not-needed"
    assert endpoint_of(lm) == "http://localhost:8080/v1"


def test_the_users_own_key_is_used(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    assert "api_key" not in given_lm("openai/x", "http://localhost:1/v1").kwargs
    monkeypatch.setenv("OTHER", "sk-other")
    assert (
        given_lm("openai/x", "http://localhost:1/v1", ["api_key=env:OTHER"]).kwargs["api_key"] == "sk-other"
    )


@pytest.mark.parametrize("path", [f"{__name__}:MODEL", f"{__name__}:make"])
def test_an_object(path):
    assert given_lm(path).model == "offline/knn"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, "http://localhost:1/v1"), "pass --lm, or set AGENTCORE_LM"),
        (("openai/x", "localhost:8080"), "write an address such as"),
        (("openai/x", None, ["max_tokens"]), "write key=value"),
        (("openai/x", None, ["api_key=sk-written-out"]), "write api_key=env:NAME"),
        (("openai/x", None, ["header.Authorization=Bearer x"]), "write header.Authorization=env:NAME"),
        (("openai/x", None, ["api_key=env:NOWHERE"]), "environment variable NOWHERE is not set"),
        (("openai/x", None, ["api_base=http://x/v1"]), "pass it as --lm-base-url"),
        (("offline/knn", "http://x/v1"), "runs in this process"),
        ((f"{__name__}:MODEL", None, ["n=1"]), "leave out --lm-base-url and --lm-arg"),
        (("no.such.module:lm",), "no module named 'no'"),
        ((f"{__name__}:endpoint_of",), "can't be called without arguments"),
        ((f"{__name__}:dict",), "has no 'dict'"),
        (("tests.support:QUICK",), "is a dict, not a dspy.LM"),
    ],
)
def test_what_is_malformed_is_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        given_lm(*arguments)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:password@host:80/v1/?key=secret#x", "http://host:80/v1"),
        ("https://[::1]:8000/v1", "https://[::1]:8000/v1"),
        ("http://host:notaport/", "(not an address)"),
    ],
)
def test_an_endpoint_has_no_secrets(address, shown):
    assert endpoint_of(dspy.LM("openai/x", api_base=address, api_key="x")) == shown


def test_the_environments_endpoint(monkeypatch):
    assert endpoint_of(dspy.LM("openai/x")) is None
    monkeypatch.setenv("OPENAI_API_BASE", "http://gateway/v1")
    assert endpoint_of(dspy.LM("openai/x")) == "http://gateway/v1"
    assert endpoint_of(dspy.LM("anthropic/x")) is None


@pytest.fixture
def cache(tmp_path):
    """DSPy's cache, of this test alone."""
    before = dspy.cache
    dspy.configure_cache(
        enable_disk_cache=True, enable_memory_cache=True, disk_cache_dir=str(tmp_path / "cache")
    )
    yield
    dspy.cache = before


async def optimize(lm, program=None, **constraints):
    pipeline = OptimizationPipeline(program or AsyncClassifier(), lm=lm, enable_tracking=False, seed=1)
    return await pipeline.run_optimization(request(constraints=constraints), training_data=colours())


@pytest.mark.parametrize("program", [AsyncClassifier, Classifier])
async def test_two_servers_share_no_cached_answers(server, cache, program):  # noqa: F811
    one, other = server.url(), server.url()
    first = await optimize(connect(one, cache=True), program())
    again = await optimize(connect(one, cache=True), program())
    assert again.spend.calls == 0 < first.spend.calls == server.requests(one)
    second = await optimize(connect(other, cache=True), program())
    assert second.spend.calls == first.spend.calls == server.requests(other)


@pytest.mark.parametrize("program", [AsyncClassifier, Classifier])
async def test_cache_hits_through_litellm_are_no_calls(server, cache, monkeypatch, program):  # noqa: F811
    """An address in the environment sends calls through litellm."""
    url = server.url()
    monkeypatch.setenv("OPENAI_API_BASE", url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-key")
    lm = dspy.LM("openai/local-model", timeout=2, num_retries=1)
    first = await optimize(lm, program())
    answered = server.requests(url)
    assert first.spend.calls == answered > 0
    again = await optimize(
        dspy.LM("openai/local-model", timeout=2, num_retries=1), program(), max_lm_calls=40
    )
    assert server.requests(url) == answered
    assert (again.spend.calls, again.status) == (0, "completed")
    assert again.spend.cache_hits > 0
    assert again.measured_baseline.avg_latency_ms is None


class Cached(dspy.BaseLM):
    """A model of a gateway that asks litellm with a cache of litellm's own."""

    def __init__(self):
        super().__init__("mine")

    def forward(self, prompt=None, messages=None, **kwargs):
        made = response(messages)
        made._hidden_params = {"cache_hit": True}
        return made


async def test_litellms_own_cache_too():
    result = await optimize(Cached(), max_lm_calls=40)
    assert (result.spend.calls, result.status) == (0, "completed")
    assert result.spend.cache_hits > 40
    assert result.measured_baseline.avg_latency_ms is None
