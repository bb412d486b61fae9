"""Stopping in the middle, in process by cancelling and from a terminal by Ctrl-C."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.dspy_optimization.tracking import MLflowTracker
from agentcore.lm import offline_lm
from agentcore.tracking import model_names
from tests.support import AsyncClassifier, Classifier, colours, request

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("program_class", [Classifier, AsyncClassifier])
@pytest.mark.parametrize("stage", ["baseline", "search", "trials", "winner"])
async def test_cancelling_stops_all_calls_and_keeps_the_best(config, stage, program_class):
    reached = asyncio.Event()

    def follow(event):
        wanted = "trial_finished" if stage == "trials" else "stage_started"
        if event.kind == wanted and (stage == "trials" or event.stage == stage):
            asyncio.get_running_loop().call_later(0.1, reached.set)

    lm = offline_lm(latency=0.05)
    pipeline = OptimizationPipeline(program_class(), lm=lm, mlflow_config=config, on_event=follow)
    task = asyncio.create_task(pipeline.run_optimization(request(), training_data=colours(90)))
    await reached.wait()
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 2
    calls = lm.engine.calls
    await asyncio.sleep(0.3)
    assert lm.engine.calls == calls
    (run,) = await MLflowTracker(config).search_runs()
    assert run.info.status == "KILLED"
    assert run.data.tags["optimization_status"] == "cancelled"
    tracker = MLflowTracker(config)
    if stage in ("trials", "winner"):
        assert model_names(run) == ["best_so_far"]
        assert await tracker.read_prompt(run.info.run_id, "best_so_far")
    else:
        assert model_names(run) == []


@pytest.mark.parametrize(
    ("program", "number", "code"),
    [("sync", signal.SIGINT, 130), ("async", signal.SIGTERM, 143)],
)
def test_ctrl_c_in_a_terminal(tmp_path, program, number, code):
    """The process ends within 2 s of the signal, with the run KILLED and its best candidate kept."""
    (tmp_path / "task.py").write_text(
        "from agentcore.lm import offline_lm\n"
        "from tests.support import AsyncClassifier, Classifier, colours\n"
        "import json, pathlib\n"
        "pathlib.Path('data.jsonl').write_text('\\n'.join(json.dumps(row) for row in colours(120).rows()))\n"
        f"program = {'AsyncClassifier' if program == 'async' else 'Classifier'}()\n"
        "program.predict.lm = offline_lm(latency=0.05)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import task"], cwd=tmp_path, env=environment, check=True)
    command = [
        *(sys.executable, "-m", "agentcore", "optimize", "task:program", "--data", "data.jsonl"),
        *("--lm", "offline/knn", "--auto", "light"),
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "trial 1:" in line:
            break
    assert process.poll() is None, "".join(lines)
    started = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert time.monotonic() - started < 2.0
    assert process.returncode == code
    assert "stopped: the run " in output
    assert "; the best candidate so far" in output
    assert "Resume it: agentcore resume" in output
    assert "Traceback" not in output
    shown = subprocess.run(
        [sys.executable, "-m", "agentcore", "show", "latest"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "KILLED" in shown
    assert "model best_so_far (measured on validation only)" in shown
    assert "Name the colour of the thing." in shown


@pytest.mark.parametrize("seconds", [2.5])
def test_ctrl_c_while_the_first_store_is_made(tmp_path, seconds):
    """Its migrations take seconds; a store that was left in the middle of them would never open again."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "agentcore"]
    process = subprocess.Popen(
        [*command, "demo"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in output
    listed = subprocess.run([*command, "runs"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert "RUNNING" not in listed.stdout
    assert not list(tmp_path.glob(".new-*"))


def test_sigterm_ends_a_background_job_of_a_shell(tmp_path):
    """Its shell had it ignore Ctrl-C."""
    code = "import agentcore.cli as cli, time\ncli._run = lambda: (print('on', flush=True), time.sleep(60))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code + "cli.main()"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
