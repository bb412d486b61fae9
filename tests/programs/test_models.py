"""Any `dspy.BaseLM`: classes of one's own, DSPy's dummies, gateways that override one method."""

from types import SimpleNamespace

import dspy
import pytest
from dspy.utils import DummyLM

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.lm.offline import answer
from tests.support import QUICK, AsyncClassifier, Classifier, colours


def said(messages):
    system = next((item["content"] for item in messages if item["role"] == "system"), "")
    return answer(system, [(item["role"], item["content"]) for item in messages if item["role"] != "system"])


def response(messages):
    message = SimpleNamespace(content=said(messages))
    choices = [SimpleNamespace(message=message, finish_reason="stop")]
    return SimpleNamespace(choices=choices, usage={"prompt_tokens": 1, "completion_tokens": 1}, model="mine")


class OnlyForward(dspy.BaseLM):
    def __init__(self):
        super().__init__("mine")

    def forward(self, prompt=None, messages=None, **kwargs):
        return response(messages)


class OnlyAforward(dspy.BaseLM):
    def __init__(self):
        super().__init__("mine")

    async def aforward(self, prompt=None, messages=None, **kwargs):
        return response(messages)


class Bare(dspy.BaseLM):
    """Doesn't call `BaseLM.__init__`."""

    def __init__(self):
        self.model = "mine"

    def __call__(self, prompt=None, messages=None, **kwargs):
        return [said(messages)]


class Positional(dspy.BaseLM):
    def __init__(self):
        super().__init__("mine")

    def __call__(self, messages, temperature=0.0, n=1, max_tokens=100, rollout_id=None):
        return [said(messages)] * n


class OnlyKeywords(dspy.BaseLM):
    def __init__(self):
        super().__init__("mine")

    def __call__(self, *, messages=None, **kwargs):
        return [{"text": said(messages)}]


class Gateway(dspy.LM):
    def __init__(self, **values):
        super().__init__("openai/mine", api_key="sk-of-nobody", **values)

    def forward(self, prompt=None, messages=None, **kwargs):
        return response(messages)


def dummy():
    return DummyLM({"leaf": {"colour": "green"}, "blood": {"colour": "red"}, "lemon": {"colour": "yellow"}})


pytestmark = pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
MODELS = [OnlyForward, OnlyAforward, Bare, Positional, OnlyKeywords, Gateway, dummy]


@pytest.mark.parametrize("program", [Classifier, AsyncClassifier])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("optimizer", ["miprov2", "copro"])
async def test_a_model_of_ones_own(model, program, optimizer):
    settings = QUICK if optimizer == "miprov2" else {"breadth": 2, "depth": 1}
    pipeline = OptimizationPipeline(program(), lm=model(), enable_tracking=False)
    result = await pipeline.run_optimization(
        {
            "target": {"id": "x"},
            "algorithms": [optimizer],
            "optimizer_settings": {optimizer: settings},
            "constraints": {"max_lm_calls": 400},
        },
        training_data=colours(30),
    )
    assert result.status == "completed"
    assert result.spend.calls > 20
    wanted = 1.0 if optimizer == "miprov2" or model is dummy else 0.4
    assert result.optimized_performance.quality_score >= wanted
