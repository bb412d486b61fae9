"""Run comparison: what the document shows, units, changes, paired tests, formats."""

import functools
import json
import re
from html.parser import HTMLParser

import pytest

from agentcore.errors import ConfigurationError
from agentcore.monitoring import EvaluationTracker, ModelEvaluator, compare_runs, find_runs
from agentcore.monitoring._compare_text import sparkline
from agentcore.monitoring._units import better, shown, unit_of
from agentcore.tracking import RunTracker
from tests.monitoring.loans import TARGET, applications, decide, saved


@pytest.fixture
def evaluations(config, monkeypatch):
    """The two runs of the document's example."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    tracker = EvaluationTracker("/Shared/evaluations", config)
    figures = {
        "build_success_rate": 1.0,
        "runtime_success_rate": 0.0,
        "tests_pass_rate": 0.85,
        "databricks_connectivity_rate": 0.85,
        "avg_local_runability_score": 2.0,
        "avg_deployability_score": 3.0,
        "overall_quality_score": 0.9,
        "generation_cost_usd": 12.5,
    }
    tracker.track_evaluation(figures, mode="vanilla_sdk")
    figures["databricks_connectivity_rate"] = 0.9
    tracker.track_evaluation(figures, mode="mcp", model_version="newer")
    tracker.flush(60)
    return tracker


def test_what_the_document_shows(evaluations, command):
    code, told = command("compare", "--experiment", "/Shared/evaluations")
    assert code == 0
    text = told.out
    assert re.search(r"eval_mcp_20\S+ +mcp +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", text)
    assert re.search(r"eval_vanilla_sdk_20\S+ +vanilla_sdk +20\d\d-", text)
    assert text.index("eval_mcp") < text.index("eval_vanilla")  # newest first
    assert re.search(r"build_success_rate +100\.00% +100\.00%", text)
    assert re.search(r"runtime_success_rate +0\.00% +0\.00%", text)
    assert re.search(r"avg_deployability_score +3\.00 +3\.00", text)
    assert re.search(r"generation_cost_usd +\$12\.50 +\$12\.50", text)
    latest = text[text.index("Latest vs Previous Run") :]
    assert re.search(
        r"databricks_connectivity_rate +90\.00% +85\.00% +\+5\.9% +\+5\.00 points +better", latest
    )
    assert re.search(r"build_success_rate +100\.00% +100\.00% +\+0\.0%", latest)
    assert re.search(r"databricks_connectivity_rate +90\.00% \* +85\.00%", text)
    assert re.search(r"model_version +newer", latest)
    assert "no difference between them is proven" in text


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_formats(evaluations, command, tmp_path):
    every = ("compare", "--experiment", "/Shared/evaluations")
    code, told = command(*every, "--format", "json")
    found = json.loads(told.out)
    assert code == 0
    assert found["metrics"]["tests_pass_rate"] == {"unit": "percent", "values": [0.85, 0.85], "best": None}
    change = next(
        item for item in found["latest_vs_previous"] if item["metric"] == "databricks_connectivity_rate"
    )
    assert change["absolute"] == pytest.approx(0.05)
    assert change["relative"] == pytest.approx(0.05 / 0.85)
    _, told = command(*every, "--format", "md")
    assert "| tests\\_pass\\_rate | 85.00% | 85.00% |" in told.out
    page = tmp_path / "page.html"
    code, _ = command(*every, "--format", "html", "--output", str(page), "--plot", str(tmp_path / "t.png"))
    assert code == 0
    checker = Checker()
    checker.feed(page.read_text())
    assert not checker.open
    assert checker.tags.count("table") == 4
    assert not re.search(r"(src|href)=", page.read_text())  # it needs nothing else
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--format", "xml"), "table, md, json, html"),
        (("--mode", "nobody"), "no finished run with mode 'nobody'"),
        (("--agent", "a", "--experiment", "b"), "not both"),
        (("ffffffff",), "ffffffff"),
        (("--plot", "/dev/null/x.png"), "can't be drawn"),
        (("--format", "md", "--output", "/dev/null/x.md"), "can't be written"),
    ],
)
def test_wrong_usage(evaluations, command, arguments, told):
    own = arguments if "--agent" in arguments else ("--experiment", "/Shared/evaluations", *arguments)
    code, printed = command("compare", *own)
    assert code == 2
    assert told in printed.err.replace("\n", " ")


async def test_filters_and_groups(evaluations):
    tracker = evaluations.aio.tracker
    (only,) = await find_runs(tracker, mode="mcp")
    assert only.data.tags["mode"] == "mcp"
    found = await compare_runs(tracker, await find_runs(tracker), group_by="mode")
    assert [run.group for run in found.runs] == ["mcp", "vanilla_sdk"]
    one = await compare_runs(tracker, [only])
    assert one.changes == ()
    with pytest.raises(ConfigurationError, match="quote"):
        await find_runs(tracker, mode="a'b")


async def test_the_same_rows_are_paired(config, tmp_path):
    data = saved(tmp_path / "sets", rows=applications(150))
    for error in (0.3, 0.05):
        agent = functools.partial(decide, error=error)
        own = ModelEvaluator("loan_approval", agent, datasets=data, config=config)
        await own.aio.evaluate_dataset("rows", TARGET)
    await own.aio.flush(60)
    tracker = RunTracker(own.aio.experiments.stage_config("evaluation"))
    found = await compare_runs(tracker, await find_runs(tracker))
    assert found.paired.examples == 150
    assert found.paired.test.verdict == "better"
    change = next(item for item in found.changes if item.metric == "accuracy")
    assert found.paired.test.difference == pytest.approx(change.absolute)
    assert len(found.paired.fixed) - len(found.paired.broken) == round(150 * change.absolute)
    assert "expected=" in found.paired.fixed[0]
    assert not any(name.endswith(("_low", "_high")) for name in found.metrics)


async def test_hostile_names_stay_text(config, capsys):
    tracker = EvaluationTracker("/Shared/evaluations", config).aio
    for number in range(2):
        await tracker.track_evaluation(
            {"build_success_rate": number / 2, "mode": "[red]x[/red]<script>alert(1)</script>|"},
        )
    await tracker.flush(60)
    from agentcore.cli._compare import _print
    from agentcore.monitoring import comparison_markdown, comparison_page

    found = await compare_runs(tracker.tracker, await find_runs(tracker.tracker))
    assert "<script>" not in comparison_page(found)
    assert "<script>" not in comparison_markdown(found)
    _print(found)
    assert "[red]" in capsys.readouterr().out.replace("\n", "").replace(" ", "")


def test_units():
    assert [shown(name, value) for name, value in (
        ("tests_pass_rate", 0.85),
        ("accuracy", 0.9),
        ("cost_usd", 0.0123),
        ("generation_cost_usd", 1234.5),
        ("avg_latency_ms", 1250.4),
        ("p95_latency_ms", 2.345),
        ("total_tokens", 12345),
        ("overall_quality_score", 0.9),
        ("apps_per_dollar", 4.0),
        ("duration_seconds", 12.34),
        ("accuracy", None),
    )] == [
        *("85.00%", "90.00%", "$0.0123", "$1,234.50", "1,250 ms", "2.35 ms", "12,345", "0.90", "4.00"),
        *("12.3 s", ""),
    ]  # fmt: skip
    assert unit_of("accuracy_low") == "percent"
    assert [better(name) for name in ("accuracy", "avg_latency_ms", "cost_usd", "apps_per_dollar")] == [
        "higher",
        "lower",
        "lower",
        "higher",
    ]
    assert [better(name) for name in ("failures", "error_rate", "total_apps", "quality_improvement")] == [
        "lower",
        "lower",
        None,
        "higher",
    ]


def test_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, 5]) == "▄▄"
    assert sparkline([None, 1.0, 2.0]) == "·▁█"
    assert sparkline([None]) == ""
