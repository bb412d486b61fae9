"""The commands as a user types them, in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agentcore.cli import main
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.settings import MLflowConfig, shown_uri
from tests.dspy_optimization.test_pipeline import ARTIFACTS, METRICS
from tests.support import colours

ROOT = Path(__file__).parents[2]

PROGRAMS = """
import dspy
from tests.support import AsyncClassifier, Classifier, NotAProgram
program = AsyncClassifier()
wrong = 3
class Empty(dspy.Module):
    def forward(self, thing): return None
empty = Empty()
class NoForward(dspy.Module):
    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("thing -> colour")
def broken(example, prediction): raise ValueError("no idea")
def text(example, prediction): return "good"
def nothing(example, prediction): pass
def nan(example, prediction): return float("nan")
def percent(example, prediction): return 87
"""


@pytest.fixture
def workplace(tmp_path, migrated_store):
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    (tmp_path / "work.py").write_text(PROGRAMS.replace(", NotAProgram", ""))
    write_jsonl(tmp_path / "data.jsonl", colours().rows())
    return tmp_path


@pytest.fixture
def inside(workplace, monkeypatch, capsys):
    """Runs a command in this process, which spares the imports; returns what `agentcore` does."""
    monkeypatch.setattr(sys, "path", [str(workplace), *sys.path])
    monkeypatch.delitem(sys.modules, "work", raising=False)

    def run(*arguments, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["agentcore", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code, captured.out, captured.err)

    yield run
    sys.modules.pop("work", None)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def agentcore(directory, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "agentcore", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(directory), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", [("runs",), ("journal", "ls"), ("best",), ("show", "best"), ("sync",)])
def test_only_commands_that_run_the_users_program_import_from_here(workplace, command):
    for name in ("dspy", "mlflow", "rich", "yaml", "sqlalchemy", "dotenv"):
        (workplace / f"{name}.py").write_text("open('executed', 'a').write(__name__)\n")
    done = agentcore(workplace, *command)
    assert not (workplace / "executed").exists(), done.stderr
    assert "Traceback" not in done.stderr


def test_from_optimizing_to_looking_at_it(workplace):
    done = agentcore(
        workplace,
        *(
            "optimize",
            "work:program",
            "--data",
            "data.jsonl",
            "--metric",
            "exact_match",
            "--lm",
            "offline/knn",
        ),
        *("--auto", "light", "--set", "max_labeled_demos=8", "--seed", "1", "--objective", "quality_score:2"),
    )
    assert done.returncode == 0, done.stderr
    assert "optimized" in done.stdout
    assert "95% interval" in done.stdout
    assert "not a large language model" in done.stdout
    assert "trial 1:" in done.stderr
    assert "Bootstrapp" not in done.stdout + done.stderr
    run_id = done.stdout.split("\nrun ")[1].split()[0]

    listed = agentcore(workplace, "runs")
    assert run_id[:8] in listed.stdout
    assert "FINISHED" in listed.stdout
    shown = agentcore(workplace, "show", run_id[:6])
    assert "quality score" in shown.stdout
    assert "Name the colour of the thing." in shown.stdout
    assert "→ colour=" in shown.stdout
    assert " fixed" in shown.stdout
    best = agentcore(workplace, "best", "--metric", "optimized_quality_score")
    assert run_id in best.stdout
    none = agentcore(workplace, "best", "--metric", "nothing")
    assert (none.returncode, "no finished run" in none.stdout) == (1, True)


def test_a_plan_several_optimizers_and_a_start_from_their_winner(workplace, inside):
    asked = ("optimize", "work:program", "--data", "data.jsonl", "--lm", "offline/knn")
    both = ("--optimizer", "labeled_few_shot", "--optimizer", "bootstrap_random_search")
    few = ("--set", "bootstrap_random_search.num_candidate_programs=3")
    plan = inside(*asked, *both, *few, "--plan", "--price", "offline/knn=1,2", "--latency", "0.5")
    assert plan.returncode == 0, plan.stderr
    assert "estimate, assuming that every answer parses" in plan.stdout
    assert "at 0.5 s per call with 16 in flight" in plan.stdout
    assert "cost $0." in plan.stdout

    done = agentcore(workplace, *asked, *both, *few, "--max-tokens", "400000")
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split("\nrun ")[1].split()[0]
    again = agentcore(
        workplace, *asked, "--optimizer", "labeled_few_shot", "--start-from", run_id[:8], "--freeze", "demos"
    )
    assert again.returncode == 0, again.stderr
    assert "kept the original program" in again.stdout  # frozen, there is nothing else to try


def test_the_users_own_prints_come_through_whole(workplace):
    (workplace / "chatty.py").write_text(
        "def metric(example, prediction):\n    print('judging', example.thing)\n    return True\n"
    )
    done = agentcore(
        workplace,
        "optimize",
        "work:program",
        "--data",
        "data.jsonl",
        "--lm",
        "offline/knn",
        *("--metric", "chatty:metric", "--auto", "none"),
        *("--set", "num_candidates=2", "--set", "num_trials=1", "--set", "minibatch=false"),
    )
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stderr.splitlines() if "judging" in line]
    assert len(printed) >= 17
    assert all(line.startswith("judging ") and " number " in line for line in printed)


def test_a_signature_is_a_program(workplace):
    rows = [
        {"question": f"what is {index}?", "answer": "odd" if index % 2 else "even"} for index in range(30)
    ]
    write_jsonl(workplace / "qa.jsonl", rows)
    done = agentcore(
        workplace,
        "optimize",
        "question -> answer",
        "--data",
        "qa.jsonl",
        "--lm",
        "offline/knn",
        *("--auto", "none", "--set", "num_candidates=2", "--set", "num_trials=1", "--set", "minibatch=false"),
    )
    assert done.returncode == 0, done.stderr


def test_a_job_that_is_started_again_runs_once(workplace, inside):
    command = ["optimize", "work:program", "--data", str(workplace / "data.jsonl"), "--lm", "offline/knn"]
    command += ["--auto", "none", "--set", "num_candidates=2", "--set", "num_trials=1", "--once", "a-job"]
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{workplace / 'mlflow.db'}"}
    assert "gain in quality score" in inside(*command, **uri).stdout
    again = inside(*command)
    assert again.returncode == 0
    assert "has already finished. See it with: agentcore show" in again.stdout
    assert inside("runs").stdout.count("FINISHED") == 1


def test_a_finished_job_that_is_started_again_delivers_what_waits(workplace, inside, own_stack):
    """It may have died while MLflow was told: done is only what MLflow has."""
    command = ["optimize", "work:program", "--data", str(workplace / "data.jsonl"), "--lm", "offline/knn"]
    command += ["--auto", "none", "--set", "num_candidates=2", "--set", "num_trials=1", "--once", "a-job"]
    uri = {"MLFLOW_TRACKING_URI": own_stack.uri, "MLFLOW_EXPERIMENT_NAME": "started-again"}
    own_stack.kill_mlflow()
    try:
        assert "wait" in inside(*command, **uri).stdout
        again = inside(*command)
        assert again.returncode == 3
        assert "has already finished" in again.stdout
    finally:
        own_stack.start_mlflow()
    assert inside(*command).returncode == 0
    assert inside("doctor", "--only", "journal").stdout.count("wait for MLflow") == 0


def test_a_resumed_run_says_what_it_has(capsys):
    from agentcore.cli._live import LiveView
    from agentcore.dspy_optimization.events import RunResumed

    LiveView().event(RunResumed(optimization_id="5" * 32, trials=3, examples=120))
    told = capsys.readouterr().err
    assert told == "resuming run 55555555: 3 trials finished, 120 examples measured\n"


def test_the_demo_proves_its_gain_and_leaves_everything(workplace):
    done = agentcore(workplace, "demo")
    assert done.returncode == 0, done.stderr
    tracker = MLflowTracker(MLflowConfig(tracking_uri=f"sqlite:///{workplace / 'mlflow.db'}"))
    run = tracker.sync.get_best_run()
    assert 0.2 < run.data.metrics["baseline_quality_score"] < 0.47  # three species
    assert run.data.metrics["optimized_quality_score"] >= 0.85
    assert run.data.metrics["statistical_significance"] < 0.01
    assert set(run.data.metrics) >= METRICS
    for path in ARTIFACTS:
        assert (
            workplace / "mlruns" / run.info.experiment_id / run.info.run_id / "artifacts" / path
        ).is_file(), path
    shown = agentcore(workplace, "show", "best", "--examples", "1")
    assert "petal_width" in shown.stdout


OPTIMIZE = ("optimize", "work:program", "--data", "data.jsonl", "--lm", "offline/knn")


def replaced(**values):
    words = list(OPTIMIZE)
    for name, value in values.items():
        if name == "program":
            words[1] = value
        elif f"--{name}" in words:
            words[words.index(f"--{name}") + 1] = value
        else:
            words += [f"--{name.replace('_', '-')}", value]
    return words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            replaced(optimizer="magic"),
            "no optimizer 'magic': use one of bootstrap_random_search, copro, gepa",
        ),
        (replaced(freeze="nothing"), "freeze 'nothing': no such part; the program's predictors are predict"),
        (replaced(price="offline/knn=1"), "write model=input,output in USD per million tokens"),
        (replaced(max_lm_calls="20"), "max_lm_calls=20 leaves nothing for the search"),
        (replaced(set="gepa.auto=light"), "write optimizer.name=value, for one of miprov2"),
        (replaced(lm="gpt"), "'gpt' is not a language model"),
        (replaced(program="nowhere:program"), "no module named 'nowhere'"),
        (replaced(program="work:missing"), "work has no 'missing'"),
        (replaced(program="work:wrong"), "must be a dspy.Module instance, got int"),
        (replaced(program="work:empty"), "has no dspy.Predict inside"),
        (replaced(program="work:NoForward"), "has no forward method"),
        (replaced(program="thing -> color"), "none of its labels (colour) is an output of the program"),
        (replaced(program="just words"), "use package.module:name"),
        (replaced(program="question -> answer: nosuchtype"), "is not a valid signature"),
        (replaced(data="gone.jsonl"), "gone.jsonl: no such file"),
        (replaced(metric="f1"), "use package.module:name or one of exact_match"),
        (replaced(metric="work:broken"), "metric broken raised ValueError: no idea"),
        (replaced(metric="work:text"), "metric text returned str instead of"),
        (replaced(metric="work:nothing"), "does it lack a return?"),
        (replaced(metric="work:nan"), "metric nan returned NaN"),
        (replaced(metric="work:percent"), "metric percent returned 87: scale it to 0–1"),
        (replaced(auto="huge"), "optimizer miprov2: auto:"),
        (replaced(set="nothing=1"), "optimizer miprov2: nothing:"),
        (replaced(set="x"), "write name=value"),
        (replaced(objective="speed"), "objectives.0.metric: Input should be"),
        (replaced(inputs="thong"), "no field 'thong'"),
        (["show", "0000"], "no run '0000'"),
        (["show", "best"], "there is no run with a proven gain"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_users_mistake_is_one_line(workplace, inside, arguments, message):
    is_one_line(inside(*arguments), message)


def is_one_line(done, message, code=2):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert message in line


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no examples"),
        (colours(1).rows(), "1 distinct example, but at least 10 are needed"),
        (colours(9).rows(), "9 distinct examples, but at least 10 are needed"),
        ([*colours(20).rows(), {"thing": "x"}], "row 21: its fields differ from row 1's"),
        ([*colours(20).rows(), {"thing": "x", "colour": None}], "row 21, field 'colour': missing value"),
    ],
    ids=["empty", "one", "too few", "differing", "missing"],
)
def test_unusable_data_is_one_line(workplace, inside, rows, message):
    write_jsonl(workplace / "data.jsonl", rows)
    is_one_line(inside(*OPTIMIZE), message)


def test_a_label_that_no_answer_is(workplace, inside):
    """An error for a signature; a `forward` of one's own may turn an answer into it."""
    write_jsonl(workplace / "data.jsonl", [*colours(20).rows(), {"thing": "x", "colour": "mauve"}])
    signature = ["optimize", "thing -> colour: Literal['green', 'red', 'yellow']", *OPTIMIZE[2:]]
    is_one_line(inside(*signature), "row 21: label colour='mauve' is not an answer that")
    done = inside(*OPTIMIZE)
    assert done.returncode == 0
    assert "note: no predictor of the program can answer colour=mauve" in done.stdout


def test_the_same_row_in_two_splits_is_one_line(workplace, inside):
    rows = colours(60).rows()
    for name, part in (("data", rows[:20]), ("validation", rows[20:40]), ("test", [*rows[40:], rows[3]])):
        write_jsonl(workplace / f"{name}.jsonl", part)
    done = inside(*OPTIMIZE, "--validation", "validation.jsonl", "--test", "test.jsonl")
    is_one_line(done, "row 21 of the test split is also in the train split")


def test_an_unreachable_server_is_one_line(workplace, inside):
    is_one_line(
        inside("runs", MLFLOW_TRACKING_URI="http://127.0.0.1:9"),
        "MLflow at http://127.0.0.1:9: can't be reached",
        code=3,
    )


def test_a_place_to_run_that_is_not_there_is_one_line(inside):
    pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    is_one_line(inside(*OPTIMIZE, "--executor", "dask"), "no executor 'dask': use 'local', 'ray'")
    done = inside(*OPTIMIZE, "--executor", "ray", RAY_ADDRESS="127.0.0.1:9")
    is_one_line(done, "the Ray cluster at 127.0.0.1:9 can't be reached or started", code=3)


def test_a_malformed_environment_file_is_one_line(workplace, inside):
    (workplace / ".env.mlflow").write_text("MLFLOW_TRACKING_URI=http://127.0.0.1:9\nnonsense here\n")
    is_one_line(inside("runs"), ".env.mlflow, line 2: expected NAME=value")


def test_a_changed_artifact_is_one_line(workplace):
    assert agentcore(workplace, *OPTIMIZE, "--set", "max_labeled_demos=8").returncode == 0
    for path in (workplace / "mlruns").rglob("models/optimized_model.json"):
        path.write_bytes(path.read_bytes().replace(b"colour", b"color!", 1))
    is_one_line(
        agentcore(workplace, "show", "latest"), "optimized_model.json was changed after it was logged", 3
    )


def test_wrong_usage_exits_2(workplace):
    assert agentcore(workplace, "optimize").returncode == 2
    assert agentcore(workplace, "nothing").returncode == 2
    done = agentcore(workplace, "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "agentcore")


def test_a_server_that_is_away_costs_nothing(workplace, own_stack):
    """The result is printed and kept; `agentcore sync` delivers it once the server is there."""
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "AGENTCORE_STATE_DIR": str(workplace / "state")}
    there = {**away, "MLFLOW_TRACKING_URI": own_stack.uri}
    done = agentcore(workplace, *OPTIMIZE, "--set", "max_labeled_demos=8", "--seed", "1", **away)
    assert done.returncode == 0, done.stderr
    assert "1 run waits in the journal; deliver with: agentcore sync" in done.stdout
    elsewhere = agentcore(workplace, "sync", **there)
    assert elsewhere.returncode == 0
    assert "1 run waits for http://127.0.0.1:9: set MLFLOW_TRACKING_URI to it" in elsewhere.stderr


def test_no_password_of_a_tracking_uri_is_shown():
    assert shown_uri("http://user:hunter2@host:1/x") == "http://host:1/x"
    assert shown_uri("postgresql+psycopg://u:secretpw@h/db") == "postgresql+psycopg://h/db"
    assert shown_uri("sqlite:///mlflow.db") == "sqlite:///mlflow.db"
