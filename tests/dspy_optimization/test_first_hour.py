"""What a user sees first: the verdict in words, how optimizers compare, progress, errors with what to do."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace

import dspy
import pytest
from mlflow import MlflowClient

from agentcore.dspy_optimization import OptimizationPipeline, Printer, _printer, figures
from agentcore.dspy_optimization._provenance import command_line, git_commit
from agentcore.dspy_optimization.optimizers import make_optimizer
from agentcore.errors import ConfigurationError, LMUnavailableError
from agentcore.lm import Meter, offline_lm
from agentcore.settings import nearest
from tests.support import QUICK, AsyncClassifier, Classifier, colours, request

BOTH = {"miprov2": QUICK, "labeled_few_shot": {}}


def both(**values):
    return {
        "target": {"id": "colours"},
        "algorithms": list(BOTH),
        "optimizer_settings": BOTH,
        **values,
    }


async def run(asked=None, lm=None, config=None, **options):
    pipeline = OptimizationPipeline(
        options.pop("program", None) or AsyncClassifier(),
        lm=lm or offline_lm(),
        mlflow_config=config,
        enable_tracking=config is not None,
        **options,
    )
    result = await pipeline.run_optimization(asked or request(), training_data=colours())
    if config is not None:
        await pipeline.flush(30)
    return result


async def test_a_result_says_its_verdict_in_words():
    result = await run()
    text = str(result)
    assert text.startswith("better: the optimized program is better, and the gain is proven\n")
    assert "examples fixed, 0 broken, of 17 test examples that no optimizer saw" in text
    quality = next(line for line in text.splitlines() if line.startswith("quality score"))
    before, after = result.measured_baseline.quality_score, result.optimized_performance.quality_score
    assert quality.split()[2:] == [
        f"{before:.3f}",
        f"{after:.3f}",
        f"{after - before:+.3f}",
        f"({(after - before) / before:+.0%})",
    ]
    assert max(map(len, text.splitlines()[:12])) <= 110
    html = result._repr_html_()
    assert html.count("<tr>") == 6
    assert f"<td>{after:.3f}</td>" in html


async def test_hostile_text_stays_text():
    result = await run()
    hostile = result.model_copy(update={"warnings": ["<script>alert(1)</script> [x](http://evil) | *b*"]})
    assert "<script>" not in hostile._repr_html_()
    from agentcore.dspy_optimization import summary

    told = summary.markdown(hostile)
    assert "<script>" not in told
    assert "\\[x\\](http" in told


async def test_several_optimizers_are_compared():
    result = await run(both())
    compared = result.optimization_details["optimizers"]
    assert list(compared) == list(BOTH)
    assert result.winning_optimizer == result.optimization_details["winner"] in BOTH
    search = result.spend.calls - sum(
        result.spend_by_stage[stage].calls
        for stage in ("baseline", "winner")
        if stage in result.spend_by_stage
    )
    assert 0 < sum(item["lm_calls"] for item in compared.values()) <= search
    assert all(item["seconds"] > 0 for item in compared.values())
    assert f"{result.winning_optimizer} (winner)" in str(result)


async def test_a_resumed_comparison_keeps_its_accounts(config):
    seen, reached = [], asyncio.Event()

    def follow(event):
        seen.append(event)
        if event.kind == "step_finished" and event.step == "miprov2-account":
            reached.set()

    def pipeline(**options):
        return OptimizationPipeline(AsyncClassifier(), mlflow_config=config, **options)

    first = pipeline(lm=offline_lm(latency=0.002), on_event=follow)
    task = asyncio.create_task(first.run_optimization(both(), training_data=colours()))
    await asyncio.wait_for(reached.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    told = next(event.value for event in seen if getattr(event, "step", "") == "miprov2-account")
    result = await pipeline(lm=offline_lm()).resume(seen[0].optimization_id)
    miprov2 = result.optimization_details["optimizers"]["miprov2"]
    assert {name: miprov2[name] for name in told} == told


async def test_the_original_program_has_no_winning_optimizer():
    class Same(Classifier):
        def forward(self, thing):
            self.predict(thing=thing)
            return dspy.Prediction(colour="green")

    result = await run(program=Same())
    assert result.winning_optimizer is None
    assert result.verdict == "not proven"
    assert "prove neither a gain nor a loss" in str(result)


@pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
async def test_what_a_team_mate_sees_in_mlflow(config, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/agentcore", "optimize", "auto", "--api-key", "sk-x"])
    lm = dspy.LM("openai/local", api_base="http://u:p@127.0.0.1:9/v1?key=k", api_key="x", temperature=0.5)
    lm.forward = lambda prompt=None, messages=None, **_: answered(messages)
    result = await run(both(), lm=lm, config=config)
    run_ = MlflowClient(config.tracking_uri).get_run(result.run_id)
    tags, params = run_.data.tags, run_.data.params
    assert tags["mlflow.note.content"].startswith("**better: the optimized program is better")
    assert "| quality score |" in tags["mlflow.note.content"]
    assert tags["winning_optimizer"] == result.winning_optimizer
    assert tags["examples_fixed"] == str(len(result.comparison.fixed))
    assert tags["examples_broken"] == str(len(result.comparison.broken))
    assert tags["cost_usd"] == "unknown: a model has no price"
    assert "cost_usd" not in run_.data.metrics
    assert "agentcore.optimization_id" not in tags
    assert params["lm.endpoint"] == "http://127.0.0.1:9/v1"
    assert params["lm.temperature"] == "0.5"
    assert params["program"] == "tests.support:AsyncClassifier"
    assert params["metric"] == "exact_match"
    assert params["command"] == "agentcore optimize auto --api-key '[redacted]'"
    assert "optimization_time" not in params
    assert {"validation_score", "best_validation_score"} <= run_.data.metrics.keys()
    assert not {"trial_score", "best_score"} & run_.data.metrics.keys()


def answered(messages):
    from tests.programs.test_models import response

    return response(messages)


def test_programs_without_a_path_are_described_by_their_fields():
    from agentcore.dspy_optimization._job import program_text

    assert program_text(dspy.ChainOfThought("a, b -> c")) == "ChainOfThought(a, b -> reasoning, c)"


def test_the_command_line_has_no_secrets():
    told = command_line(["x/agentcore", "run", "--db-password=abc", "--token", "t", "--lm", "m", "-v"])
    assert told == "agentcore run '--db-password=[redacted]' --token '[redacted]' --lm m -v"
    plain = ["agentcore", "optimize", "--lm-arg", "max_tokens=200", "--max-tokens", "9000"]
    assert command_line(plain) == " ".join(plain)


def test_the_commit_of_the_working_directory(tmp_path):
    assert git_commit() is None
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)
    commit = git_commit()
    assert len(commit) == 40
    (tmp_path / "a").write_text("a")
    subprocess.run(["git", "add", "a"], cwd=tmp_path, check=True)
    assert git_commit() == f"{commit}-dirty"


async def test_progress_in_a_script(capsys):
    await run(progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("note: offline/knn")
    assert lines[1] == "measuring the baseline on the test split …"
    assert any(line.startswith("  trial 1: ") for line in lines)


def test_silence_is_broken_and_the_first_failure_is_told(monkeypatch):
    monkeypatch.setattr(_printer, "_SILENCE", 0.0)
    told = []

    class Told(Printer):
        def say(self, line):
            told.append(line)
            if len(told) == 3:
                self.end()

    progress = SimpleNamespace(
        stage="search",
        done=3,
        total=65,
        trial=2,
        trials=9,
        best_score=0.5,
        meter=Meter(),
        in_flight=4,
        failed=2,
        last_error="LMTimeoutError: too slow",
        seconds=3.0,
    )
    printer = Told()
    printer.started(progress)
    assert printer._ended.wait(30)
    assert told[0] == "  a call failed: LMTimeoutError: too slow"
    assert told[1] == (
        "  3 of 65 examples · trial 2 of 9 · best so far 0.500 · 4 calls in flight, 0 answered · 2 failed "
        "(last: LMTimeoutError: too slow) · 0 tokens · $0 · 3.0 s"
    )
    assert figures(progress)


async def test_calls_in_flight_and_failures_are_counted():
    seen = []
    lm = offline_lm(latency=0.01, error_rate=0.2, num_retries=8)
    await run(lm=lm, on_progress=seen.append)
    (progress,) = seen
    assert progress.failed > 0
    assert "requested by error_rate" in progress.last_error
    assert progress.in_flight == 0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "mipro",
            {},
            r"no optimizer 'mipro' \(did you mean miprov2\?\): use one of bootstrap_random_search, ",
        ),
        ("xyz", {}, r"no optimizer 'xyz': use one of"),
        ("miprov2", {"max_label_demos": 1}, r"unknown name \(did you mean max_labeled_demos\?\). Use auto, "),
        ("copro", {"nonsense": 1}, r"nonsense: unknown name. Use breadth, depth, init_temperature"),
    ],
)
def test_near_misses_get_a_suggestion(name, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make_optimizer(name, settings)
    assert nearest("max_cost", ["max_cost_usd", "seed"]) == " (did you mean max_cost_usd?)"


async def test_unknown_constraints_too():
    with pytest.raises(ConfigurationError, match=r"max_calls: unknown name \(did you mean max_lm_calls\?\)"):
        await run({"target": {"id": "x"}, "constraints": {"max_calls": 5}})


async def test_a_reached_cap_says_what_was_kept_for_the_winner():
    result = await run(request(constraints={"max_lm_calls": 75}))
    assert any(
        "max_lm_calls (75, of which 17 were kept to measure the winner)" in note for note in result.warnings
    )


async def test_an_outage_names_the_address_and_the_run_once(config):
    lm = dspy.LM("openai/local", api_base="http://127.0.0.1:9/v1", api_key="x", num_retries=0, cache=False)
    with pytest.raises(LMUnavailableError) as caught:
        await run(lm=lm, config=config)
    told = str(caught.value)
    assert told.count("openai/local at http://127.0.0.1:9/v1") == 1
    assert told.count("pipeline.resume('") == 1


async def test_a_plan_is_readable():
    pipeline = OptimizationPipeline(
        AsyncClassifier(), lm=dspy.LM("openai/no-price", api_key="x"), enable_tracking=False
    )
    plan = await pipeline.plan(request(constraints={"max_lm_calls": 300}), colours())
    text = str(plan)
    assert "total, at most       300 LM calls" in text
    assert "cost unknown (no price known for openai/no-price" in text
    assert "cost cost" not in text
    assert "<td>300</td>" in plan._repr_html_()
