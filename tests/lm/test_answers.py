"""What counts as an answer, and what a failed attempt may have cost."""

import asyncio

import dspy
import pytest

from agentcore.lm import Amount, Control, Ledger, Meter, NoAnswerError, is_lm_failure, manage, offline_lm
from agentcore.lm._answers import may_have_been_answered, no_answer

FORMATTED = [{"role": "system", "content": "… [[ ## answer ## ]] …"}]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([""], "an empty text"),
        ([None], "an empty text"),
        (["  \n"], "an empty text"),
        ([{"text": None}], "an empty text"),
        ([{"text": "", "logprobs": [1]}], "an empty text"),
        ([], "no choices"),
        (["The service is temporarily unavailable."], "'The service is temporarily unavailable.'"),
        (["502 Bad Gateway"], "'502 Bad Gateway'"),
    ],
)
def test_none(answer, reason):
    assert no_answer(answer, FORMATTED) == reason


@pytest.mark.parametrize(
    "answer",
    [
        ["x"],
        [None, "x"],
        [{"text": None, "tool_calls": [{"name": "search"}]}],
        [{"text": "", "reasoning_content": "so"}],
        ["[[ ## answer ## ]]\nThe service is temporarily unavailable."],
        ['{"answer": "try again later"}'],
        ["Overloaded: " + "x" * 400],
        "a typed response",
    ],
)
def test_an_answer(answer):
    assert no_answer(answer, FORMATTED) is None


def test_a_program_that_asks_for_plain_text_may_get_an_apology():
    asked = [{"role": "user", "content": "Write a status page."}]
    assert no_answer(["We are temporarily unavailable."], asked) is None


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (dspy.LMTimeoutError("x"), True),
        (dspy.LMTransportError("connection reset"), True),
        (dspy.LMServerError("x", status=504), True),
        (dspy.LMServerError("x", status=500), False),
        (dspy.LMRateLimitError("x", status=429), False),
        (dspy.LMAuthError("x"), False),
        (dspy.LMInvalidRequestError("x"), False),
        (asyncio.CancelledError(), True),
        (TimeoutError(), True),
    ],
    ids=repr,
)
def test_what_an_attempt_may_have_cost(error, may):
    assert may_have_been_answered(error) is may


def test_a_connection_that_was_never_made_cost_nothing():
    error = dspy.LMTransportError("x")
    error.__cause__ = ConnectionRefusedError()
    assert not may_have_been_answered(error)


class Answers:
    """An engine that gives these texts, one after the other."""

    def __init__(self, *texts):
        self.texts = list(texts)
        self.calls = 0

    def complete(self, request):
        from dspy.lm15 import Message, Response, Usage

        self.calls += 1
        text = self.texts.pop(0)
        if isinstance(text, Exception):
            raise text
        usage = Usage(input_tokens=10, output_tokens=1)
        return Response(
            id=None, model=request.model, message=Message.assistant(text), finish_reason="stop", usage=usage
        )


def managed(engine, retries, **caps):
    meter = Meter()
    control = Control(Ledger(meter, Amount(**caps)), 4, {})
    lm = dspy.LM("own/model", engine=engine, cache=False, num_retries=retries, max_tokens=10)
    return manage(control, lm), control, meter


REAL = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"


def test_what_is_no_answer_is_asked_for_again_counted_and_told(monkeypatch):
    monkeypatch.setattr("agentcore.lm._call.LONGEST_PAUSE", 0.01)
    engine = Answers("", "", REAL)
    lm, control, meter = managed(engine, 3)
    with meter.stage("trials"), dspy.context(lm=lm):
        assert dspy.Predict("question -> answer")(question="x").answer == "yes"
    assert (engine.calls, control.no_answers, meter.total.calls) == (3, 2, 3)


def test_after_its_retries_it_is_the_models_failure():
    lm, _, meter = managed(Answers(""), 0)
    with (
        meter.stage("trials"),
        dspy.context(lm=lm),
        pytest.raises(NoAnswerError, match="an empty text") as caught,
    ):
        dspy.Predict("question -> answer")(question="x")
    assert is_lm_failure(caught.value)


def test_attempts_that_may_have_been_answered_are_on_the_account(monkeypatch):
    from dspy.lm15 import TimeoutError as EngineTimeout

    monkeypatch.setattr("agentcore.lm._call.LONGEST_PAUSE", 0.01)
    engine = Answers(EngineTimeout("slow"), EngineTimeout("slow"), REAL)
    lm, _, meter = managed(engine, 3, calls=10)
    with meter.stage("trials"), dspy.context(lm=lm):
        dspy.Predict("question -> answer")(question="x")
    assert (meter.total.calls, meter.total.unanswered) == (3, 2)


async def test_so_is_a_call_that_is_cancelled_in_flight():
    meter = Meter()
    control = Control(Ledger(meter, Amount()), 4, {})
    lm = manage(control, offline_lm(latency=5))
    with meter.stage("trials"), dspy.context(lm=lm):
        task = asyncio.create_task(dspy.Predict("question -> answer").acall(question="x"))
        while not lm.engine.calls:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (meter.total.calls, meter.total.unanswered) == (1, 1)
    assert {name: spend.calls for name, spend in meter.by_stage().items()} == {"trials": 1}
