"""What holds for a running stack, whoever started it: the compose file or the manifests."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SEARCH = "/api/2.0/mlflow/experiments/search"
BUCKET = "mlflow"


class Wrong(Exception):
    pass


def expect(condition: object, message: str) -> None:
    if not condition:
        raise Wrong(message)


class Timings:
    """What each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        say(name)
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    def tell(self) -> None:
        for name, seconds in self.seconds.items():
            print(f"{seconds:6.1f} s  {name}")


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def agentcore(directory: Path, *arguments: str, check: bool = True, **environment: str) -> Any:
    command = [sys.executable, "-m", "agentcore", *arguments]
    given = {**os.environ, "AGENTCORE_STATE_DIR": str(directory / "state"), "COLUMNS": "150", **environment}
    done = subprocess.run(command, cwd=directory, env=given, capture_output=True, text=True)
    if check and done.returncode:
        raise Wrong(
            f"agentcore {' '.join(arguments)}: {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}"
        )
    return done


def variables(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@dataclass(frozen=True)
class Stack:
    """Where it is reached from this machine, and S3's keys."""

    uri: str
    s3: str
    key: str
    secret: str

    # MLflow, which asks nobody for a password

    def post(self, path: str, body: dict[str, Any], **headers: str) -> int:
        """The status of the answer; 0 where there is none."""
        request = urllib.request.Request(
            f"{self.uri}{path}", json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def wait(self, status: int = 200, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.post(SEARCH, {"max_results": 1})) != status:
            expect(time.monotonic() < deadline, f"MLflow answers {found} after {seconds:.0f} s")
            time.sleep(1)

    def client(self) -> Any:
        # As docs/operations.md says: without these it would ask S3 itself, by its name inside the stack.
        os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"] = "false"
        os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] = "false"
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def everything(self) -> dict[str, Any]:
        """All that MLflow tells: runs with their figures and artifacts, registered models, aliases."""
        from mlflow.entities import ViewType

        mlflow, found = self.client(), {}
        for experiment in mlflow.search_experiments(view_type=ViewType.ALL):
            for run in mlflow.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL):
                told = run.to_dictionary()
                told["inputs"]["dataset_inputs"].sort(key=str)  # MLflow tells them in any order
                found[run.info.run_id] = {**told, "artifacts": self.artifacts(run.info.run_id)}
        for model in mlflow.search_registered_models():
            versions = mlflow.search_model_versions(f"name = '{model.name}'")
            found[f"model {model.name}"] = {
                "aliases": mlflow.get_registered_model(model.name).aliases,
                "versions": sorted((str(item.version), item.source, item.run_id) for item in versions),
            }
        return found

    def is_as(self, before: dict[str, Any], when: str) -> None:
        """Nothing was lost, and nothing is other than before."""
        after = self.everything()
        lost, new = before.keys() - after.keys(), after.keys() - before.keys()
        expect(not lost and not new, f"{when}: lost {sorted(lost)}, new {sorted(new)}")
        for key, value in before.items():
            other = [part for part in value if value[part] != after[key][part]]
            told = [(value[part], after[key][part]) for part in other]
            expect(not other, f"{when}: {key} has other {other}: {str(told)[:2000]}")

    def artifacts(self, run_id: str) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as scratch:
            self.client().download_artifacts(run_id, "", scratch)
            return {
                str(path.relative_to(scratch)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(Path(scratch).rglob("*"))
                if path.is_file()
            }

    # S3, past MLflow

    def bucket(self, key: str | None = None, secret: str | None = None, *, anonymous: bool = False) -> Any:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.s3,
            aws_access_key_id=None if anonymous else key or self.key,
            aws_secret_access_key=None if anonymous else secret or self.secret,
            config=Config(signature_version=UNSIGNED) if anonymous else None,
            region_name="us-east-1",
        )

    def objects(self) -> list[str]:
        pages = self.bucket().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


# What a stack that asks for no password has to do


def tracks_a_demo(stack: Stack, directory: Path) -> str:
    """The README's steps to a finished demo; its artifacts are in S3. Returns the run's id."""
    done = agentcore(directory, "demo", MLFLOW_TRACKING_URI=stack.uri)
    told = re.search(r"^run .*?([0-9a-f]{32}) in MLflow", done.stdout, re.MULTILINE)
    expect(told, f"the demo doesn't tell MLflow's id: {done.stdout[-500:]}")
    assert told is not None
    run_id = told.group(1)
    keys = stack.objects()
    for name in ("training_data.json", "key_improvements.txt", "models/optimized_model.json"):
        expect(
            any(key.endswith(f"{run_id}/artifacts/{name}") for key in keys), f"{name} is not in S3: {keys}"
        )
    return run_id


def answers_nobody_else(stack: Stack) -> None:
    """A foreign Host and a foreign page are refused, and S3 without keys."""
    from botocore.exceptions import ClientError

    ask = {"max_results": 1}
    expect(stack.post(SEARCH, ask) == 200, "MLflow doesn't answer")
    expect(stack.post(SEARCH, ask, Host="evil.example") == 403, "a foreign Host is answered")
    expect(stack.post(SEARCH, ask, Origin="http://evil.example") == 403, "a foreign page is answered")
    for how, client in (
        ("a wrong key", stack.bucket(secret="wrong")),
        ("without keys", stack.bucket(anonymous=True)),
    ):
        try:
            client.list_objects_v2(Bucket=BUCKET)
        except ClientError:
            continue
        raise Wrong(f"S3 answers {how}")


def survives(stack: Stack, directory: Path, name: str, disturb: Callable[[], None]) -> None:
    """Something happens while a run is tracked: in the end it is complete."""
    place = directory / name
    place.mkdir()
    running = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, stack.uri, name],
        cwd=place,
        env={**os.environ, "AGENTCORE_STATE_DIR": str(place / "state")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    expect(running.stdout.readline().startswith("searching"), f"{name}: the run did not begin")
    disturb()
    told, errors = running.communicate(timeout=300)
    expect(running.returncode == 0, f"{name}: {errors[-1500:]}")
    stack.wait()
    agentcore(place, "sync", MLFLOW_TRACKING_URI=stack.uri)
    is_complete(stack, json.loads(told.splitlines()[-1]), name)


def is_complete(stack: Stack, result: dict[str, Any], name: str) -> None:
    """There is one run of this result, with its figures and its trials."""
    mlflow = stack.client()
    experiment = mlflow.get_experiment_by_name("dspy-optimization")
    found = mlflow.search_runs([experiment.experiment_id], f"tags.`agentcore.key` = '{result['id']}'")
    expect(len(found) == 1, f"{name}: {len(found)} runs with the key {result['id']}")
    (run,) = found
    expect(run.info.status == "FINISHED", f"{name}: {run.info.status}")
    for metric, value in result["metrics"].items():
        expect(abs(run.data.metrics[metric] - value) < 1e-9, f"{name}: {metric}")
    logged = mlflow.get_metric_history(run.info.run_id, "validation_score")
    expect(len(result["trials"]) == len(logged), f"{name}: trials are missing")


# The HTTP API

TOKEN = "a-token-of-the-checks"
TOKENS = f"check:promote:{TOKEN}"
PATIENCE = 240
OPTIMIZE = {
    "agent": "loan_approval",
    "dataset_name": "loan_approval_train",
    "settings": {"max_labeled_demos": 16},
    "sealed": 400,
}


def example(directory: Path) -> Path:
    """A copy of the example whose model takes its time."""
    place = directory / "programs" / "examples"
    shutil.copytree(ROOT / "examples", place)
    (place / "slow.py").write_text("from agentcore.lm import offline_lm\n\nlm = offline_lm(latency=0.15)\n")
    agents = place / "loan_approval" / "agents.toml"
    agents.write_text(re.sub(r'lm = "offline/knn"', 'lm = "examples.slow:lm"', agents.read_text()))
    return place


def make_data(where: str, **environment: str) -> None:
    command = [sys.executable, str(ROOT / "examples/loan_approval/make_data.py")]
    given = {**os.environ, "AGENTCORE_DATA": where, **environment}
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    expect(not done.returncode, f"make_data: {done.stderr[-1000:]}")


@dataclass(frozen=True)
class Api:
    """Where a replica is reached from this machine."""

    url: str

    def ask(self, path: str, body: Any = None) -> Any:
        """The reply; None where there is none."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            raise Wrong(f"{path}: {error.code} {error.read().decode()[:500]}") from None
        except OSError:
            return None

    def wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.ask("/health") is None:
            expect(time.monotonic() < deadline, f"{self.url} does not answer")
            time.sleep(0.5)

    def until(self, operation: str, enough: Callable[[Any], bool]) -> Any:
        """An operation once it is so far."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.ask(f"/api/v1/operations/{operation}")) is None or not enough(found):
            expect(time.monotonic() < deadline, f"operation {operation}: {found}")
            time.sleep(0.3)
        return found


def goes_on_once(stack: Stack, left: Api, kill: Callable[[str], None]) -> str:
    """One of two replicas is killed while it optimizes: the other one goes on with the same run.
    Returns the run's id."""
    operation = left.ask("/api/v1/optimizations", OPTIMIZE)["id"]
    left.until(operation, lambda found: found["progress"] and found["progress"]["trials"] >= 2)
    kill(operation)
    found = left.until(operation, lambda found: found["status"] not in ("queued", "running"))
    expect(found["status"] == "completed", f"the operation: {found}")
    expect(found["result"]["verdict"] == "better", f"the verdict: {found['result']}")
    mlflow = stack.client()
    experiment = mlflow.get_experiment_by_name("/Shared/loan_approval_development")
    runs = mlflow.search_runs([experiment.experiment_id])
    expect([run.info.run_id for run in runs] == [found["run_id"]], f"the operation's runs: {runs}")
    expect(runs[0].info.status == "FINISHED", f"the run: {runs[0].info.status}")
    return str(found["run_id"])


SLOW_RUN = """
import asyncio, json, sys
from agentcore import MLflowConfig, OptimizationPipeline
from agentcore.lm import offline_lm

async def main():
    began = asyncio.Event()
    def tell(event):
        if event.kind == "trial_finished" and not began.is_set():
            began.set()
            print("searching", flush=True)
    pipeline = OptimizationPipeline(
        lm=offline_lm(latency=0.15), mlflow_config=MLflowConfig(tracking_uri=sys.argv[1]),
        on_event=tell, max_concurrency=8)
    result = await pipeline.run_optimization(
        {"target": {"id": sys.argv[2]}}, training_data="iris")
    print(json.dumps({
        "id": result.optimization_id,
        "metrics": {"optimized_quality_score": result.optimized_performance.quality_score,
                    "improvement_percentage": result.improvement_percentage},
        "trials": result.optimization_details["trials"]}), flush=True)

asyncio.run(main())
"""


def is_promoted(stack: Stack, run_id: str) -> None:
    """A run's model becomes a version that an alias names."""
    mlflow = stack.client()
    mlflow.create_registered_model("checked")
    (model,) = mlflow.get_run(run_id).outputs.model_outputs
    version = mlflow.create_model_version(
        "checked", f"models:/{model.model_id}", run_id, model_id=model.model_id
    )
    mlflow.set_registered_model_alias("checked", "champion", version.version)


def deletes_for_good(stack: Stack, directory: Path, promoted: str, collect: Callable[[], None]) -> None:
    """Archived, a run can be restored; after `mlflow gc` it is gone with its objects, a promoted one not."""
    from mlflow.exceptions import MlflowException

    if not deletes_many(stack):
        say("  with nothing to remove: this S3 refuses DeleteObjects as boto3 signs it")
        collect()
        return
    run_id = tracks_a_demo(stack, directory)
    (model,) = stack.client().get_run(run_id).outputs.model_outputs
    before = stack.everything()[promoted]
    everything = ("--older-than", "0h", "--keep-best", "0", "--with-models")
    agentcore(directory, "runs", "archive", *everything, "--yes", MLFLOW_TRACKING_URI=stack.uri)
    expect(stack.client().get_run(run_id).info.lifecycle_stage == "deleted", "the run was not archived")
    collect()
    try:
        stack.client().get_run(run_id)
    except MlflowException:
        pass
    else:
        raise Wrong("mlflow gc left the run")
    left = [key for key in stack.objects() if run_id in key or model.model_id in key]
    expect(not left, f"mlflow gc left {left}")
    expect(stack.everything()[promoted] == before, "mlflow gc touched a promoted run")


def deletes_many(stack: Stack) -> bool:
    """Whether this S3 takes DeleteObjects from today's boto3, by which MLflow's server deletes."""
    from botocore.exceptions import ClientError

    stack.bucket().put_object(Bucket=BUCKET, Key="check", Body=b"x")
    try:
        stack.bucket().delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "check"}]})
    except ClientError:
        stack.bucket().delete_object(Bucket=BUCKET, Key="check")
        return False
    return True


def tells_its_figures(text: str) -> None:
    """/metrics has every series and label that the dashboard and docs/operations.md name."""
    board = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = [expression for expression in asked if "mlflow_" in expression]
    told = "\n".join([*asked, (ROOT / "docs" / "operations.md").read_text()])
    names = set(re.findall(r"\bmlflow_http_[a-z_]+", told))
    grouped = {name.strip() for group in re.findall(r"by \(([^)]*)\)", told) for name in group.split(",")}
    labels = grouped | set(re.findall(r"mlflow_http_\w+\{(\w+)=", told))
    expect(len(names) >= 2 and len(labels) >= 3, f"only {names} with {labels} are named")
    for name in sorted(names):
        expect(re.search(rf"^{name}(_bucket)?\{{", text, re.MULTILINE), f"/metrics has no {name}")
    for label in sorted(labels):
        expect(re.search(rf'^mlflow_http_.*[{{,]{label}="', text, re.MULTILINE), f"/metrics has no {label}")
