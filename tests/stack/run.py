"""The compose stack for real: `python tests/stack/run.py`, with a Docker engine and Compose 2.

Up on a fresh project, a demo tracked and its artifacts read back from S3; each service restarted and killed
while a run is tracked; down and up; passwords asked for under `auth`; backed up, destroyed, restored. It uses
the ports and the project of its own, and removes them in the end. Exits 1 with what was not as it should be,
4 where there is no engine.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NO_ENGINE = 4
PORTS = {"MLFLOW_PORT": "5790", "POSTGRES_PORT": "5791", "S3_PORT": "5792"}
URI = f"http://127.0.0.1:{PORTS['MLFLOW_PORT']}"


class Wrong(Exception):
    pass


def expect(condition: object, message: str) -> None:
    if not condition:
        raise Wrong(message)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


class Compose:
    """The stack under a project of its own, its variables in a file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.variables = directory / ".env.mlflow"
        self.environment = {**os.environ, "DOCKER_BUILDKIT": "0", "COMPOSE_PROJECT_NAME": "agentcore-check"}

    def write(self, **values: str) -> None:
        text = "".join(f"{name}={value}\n" for name, value in {**PORTS, **values}.items())
        self.variables.write_text(text)

    def __call__(self, *arguments: str, check: bool = True, data: bytes | None = None) -> bytes:
        command = ["docker", "compose", "-f", str(ROOT / "docker-compose.mlflow.yml")]
        command += ["--env-file", str(self.variables), *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, input=data)
        if check and done.returncode:
            raise Wrong(f"docker compose {' '.join(arguments)}: {done.stderr.decode()[-2000:]}")
        return done.stdout if check else done.stdout + done.stderr

    def up(self) -> None:
        self("up", "-d", "--wait", "--wait-timeout", "300")


def agentcore(directory: Path, *arguments: str, check: bool = True, **environment: str) -> Any:
    command = [sys.executable, "-m", "agentcore", *arguments]
    given = {**os.environ, "AGENTCORE_STATE_DIR": str(directory / "state"), "COLUMNS": "150", **environment}
    done = subprocess.run(command, cwd=directory, env=given, capture_output=True, text=True)
    if check and done.returncode:
        raise Wrong(
            f"agentcore {' '.join(arguments)}: {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}"
        )
    return done


def s3(values: dict[str, str] | None) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{PORTS['S3_PORT']}",
        aws_access_key_id=values["S3_ACCESS_KEY_ID"] if values else None,
        aws_secret_access_key=values["S3_SECRET_ACCESS_KEY"] if values else None,
        config=None if values else Config(signature_version=UNSIGNED),
        region_name="us-east-1",
    )


def post(path: str, body: dict[str, Any], **headers: str) -> int:
    request = urllib.request.Request(
        f"{URI}{path}", json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


SEARCH = "/api/2.0/mlflow/experiments/search"


# The steps


def comes_up(compose: Compose, directory: Path) -> None:
    """Healthy with the passwords that everybody knows; only this machine reaches it."""
    compose.up()
    states = [json.loads(line) for line in compose("ps", "-a", "--format", "json").splitlines()]
    found = {item["Service"]: (item["State"], item.get("Health")) for item in states}
    expect(found["migrate"][0] == "exited", f"migrate: {found['migrate']}")
    for name in ("postgres", "s3", "mlflow"):
        expect(found[name] == ("running", "healthy"), f"{name}: {found[name]}")
    ports = [item for state in states for item in state.get("Publishers") or [] if item["PublishedPort"]]
    expect({item["URL"] for item in ports} == {"127.0.0.1"}, f"ports are open to others: {ports}")


def tracks_a_demo(compose: Compose, directory: Path) -> str:
    """The README's steps to a finished demo; its artifacts are in S3. Returns the run's id."""
    done = agentcore(directory, "demo", MLFLOW_TRACKING_URI=URI)
    run_id = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("run "))
    known = {"S3_ACCESS_KEY_ID": "only-for-loopback", "S3_SECRET_ACCESS_KEY": "only-for-loopback"}
    keys = [item["Key"] for item in s3(known).list_objects_v2(Bucket="mlflow")["Contents"]]
    for name in ("training_data.json", "key_improvements.txt", "models/optimized_model.json"):
        expect(
            any(key.endswith(f"{run_id}/artifacts/{name}") for key in keys), f"{name} is not in S3: {keys}"
        )
    return run_id


def answers_nobody_else(compose: Compose, directory: Path) -> None:
    """A foreign Host and a foreign page are refused, and S3 without keys."""
    expect(post(SEARCH, {"max_results": 1}) == 200, "MLflow doesn't answer")
    expect(post(SEARCH, {"max_results": 1}, Host="evil.example") == 403, "a foreign Host is answered")
    expect(
        post(SEARCH, {"max_results": 1}, Origin="http://evil.example") == 403, "a foreign page is answered"
    )
    from botocore.exceptions import ClientError

    for wrong in ({"S3_ACCESS_KEY_ID": "only-for-loopback", "S3_SECRET_ACCESS_KEY": "wrong"}, None):
        try:
            s3(wrong).list_objects_v2(Bucket="mlflow")
        except ClientError:
            continue
        raise Wrong(f"S3 answers {'a wrong key' if wrong else 'without keys'}")


def is_locked_down(compose: Compose, directory: Path) -> None:
    """Read-only, without capabilities or privileges; not root but where the volume's owner is decided."""
    for line in compose("ps", "-q").split():
        (told,) = json.loads(subprocess.check_output(["docker", "inspect", line.decode()]))
        name, host, user = told["Name"], told["HostConfig"], told["Config"]["User"]
        expect(host["ReadonlyRootfs"], f"{name} can write its root file system")
        expect("ALL" in (host["CapDrop"] or []), f"{name} keeps capabilities")
        expect(
            any("no-new-privileges" in item for item in host["SecurityOpt"] or []), f"{name} may gain more"
        )
        expect(host["Memory"], f"{name} has no memory limit")
        expect(user not in ("", "root", "0:0") or "s3" in name, f"{name} runs as {user or 'root'}")


def survives(compose: Compose, directory: Path, service: str, how: str) -> None:
    """A service restarts or dies while a run is tracked: the run is complete in the end."""
    state = f"{service}-{how}"
    place = directory / state
    place.mkdir()
    running = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, URI, state],
        cwd=place,
        env={**os.environ, "AGENTCORE_STATE_DIR": str(place / "state")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    expect(running.stdout.readline().startswith("searching"), "the run did not begin")
    container = compose("ps", "-q", service).decode().strip()
    if how == "restart":
        subprocess.run(["docker", "restart", "-t", "3", container], check=True, capture_output=True)
    else:
        subprocess.run(["docker", "kill", container], check=True, capture_output=True)
        subprocess.run(["docker", "start", container], check=True, capture_output=True)
    told, errors = running.communicate(timeout=300)
    expect(running.returncode == 0, f"{state}: {errors[-1500:]}")
    compose.up()
    agentcore(place, "sync", MLFLOW_TRACKING_URI=URI)
    result = json.loads(told.splitlines()[-1])
    run = complete_run(result["id"])
    expect(run.info.status == "FINISHED", f"{state}: {run.info.status}")
    for name, value in result["metrics"].items():
        expect(abs(run.data.metrics[name] - value) < 1e-9, f"{state}: {name}")
    expect(len(result["trials"]) == len(trials_of(run.info.run_id)), f"{state}: trials are missing")


SLOW_RUN = """
import asyncio, json, sys
from agentcore import MLflowConfig, OptimizationPipeline
from agentcore.lm import offline_lm
from agentcore.data import load_dataset

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


def client() -> Any:
    # As docs/operations.md says: without these it would ask S3 itself, by its name inside the stack.
    os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"] = "false"
    os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] = "false"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=URI)


def complete_run(key: str) -> Any:
    experiment = client().get_experiment_by_name("dspy-optimization")
    found = client().search_runs([experiment.experiment_id], f"tags.`agentcore.key` = '{key}'")
    expect(len(found) == 1, f"{len(found)} runs with the key {key}")
    return found[0]


def trials_of(run_id: str) -> list[Any]:
    return list(client().get_metric_history(run_id, "trial_score"))


def comes_back(compose: Compose, directory: Path, run_id: str) -> None:
    """Down and up: everything is there."""
    before = everything()
    compose("down")
    compose.up()
    expect(everything() == before, "down and up lost something")
    expect(agentcore(directory, "show", run_id, MLFLOW_TRACKING_URI=URI).returncode == 0, "the run is gone")


def everything() -> dict[str, Any]:
    """All that MLflow tells: runs with their figures and artifacts, registered models, versions, aliases."""
    from mlflow.entities import ViewType

    mlflow, found = client(), {}
    for experiment in mlflow.search_experiments(view_type=ViewType.ALL):
        for run in mlflow.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL):
            found[run.info.run_id] = {**run.to_dictionary(), "artifacts": artifacts(run.info.run_id)}
    for model in mlflow.search_registered_models():
        versions = mlflow.search_model_versions(f"name = '{model.name}'")
        found[f"model {model.name}"] = {
            "aliases": mlflow.get_registered_model(model.name).aliases,
            "versions": sorted((str(item.version), item.source, item.run_id) for item in versions),
        }
    return found


def artifacts(run_id: str) -> dict[str, str]:
    import hashlib

    with tempfile.TemporaryDirectory() as scratch:
        client().download_artifacts(run_id, "", scratch)
        return {
            str(path.relative_to(scratch)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(scratch).rglob("*"))
            if path.is_file()
        }


def backup_and_restore(compose: Compose, directory: Path, run_id: str) -> None:
    """What docs/operations.md says, step by step: backed up, destroyed, restored, nothing differs."""
    mlflow = client()
    mlflow.create_registered_model("checked")
    (model,) = mlflow.get_run(run_id).outputs.model_outputs
    version = mlflow.create_model_version(
        "checked", f"models:/{model.model_id}", run_id, model_id=model.model_id
    )
    mlflow.set_registered_model_alias("checked", "champion", version.version)
    before = everything()
    once = ("--profile", "backup", "run", "--rm", "-e", "BACKUP_SECONDS=0")
    compose(*once, "backup-database")
    compose(*once, "backup-bucket")
    compose("down")
    for name in ("postgres", "s3"):  # the backups' own volume stays
        subprocess.run(["docker", "volume", "rm", f"agentcore-check_{name}"], check=True, capture_output=True)
    compose("up", "-d", "--wait", "postgres", "s3")
    compose("--profile", "backup", "run", "--rm", "backup-database", "bash", "/etc/backup.sh", "restore")
    compose("--profile", "backup", "run", "--rm", "backup-bucket", "python3", "/etc/backup.py", "restore")
    compose.up()
    expect(everything() == before, "what was restored differs")


def asks_for_a_password(compose: Compose, directory: Path) -> None:
    """Under `auth`: refuses to start without secrets, and then answers nobody without one."""
    compose.write(COMPOSE_PROFILES="auth")
    told = compose("up", "-d", "--wait", check=False).decode()
    expect("didn't complete successfully" in told, f"auth started without passwords: {told[-800:]}")
    expect("not set" in compose("logs", "auth").decode(), "auth doesn't say what is missing")
    compose("down", "--volumes")
    own = directory / "auth"
    own.mkdir()
    agentcore(own, "stack", "init", "--auth")
    values = dict(
        line.split("=", 1)
        for line in (own / ".env.mlflow").read_text().splitlines()
        if line and not line.startswith("#")
    )
    values["MLFLOW_TRACKING_URI"] = URI
    compose.write(**values)
    (own / ".env.mlflow").write_text(compose.variables.read_text())
    (own / ".env.mlflow").chmod(0o600)
    compose.up()
    expect(post(SEARCH, {"max_results": 1}) == 401, "MLflow answers without a password")
    doctor = agentcore(own, "doctor", "--json", check=False)
    broken = [json.loads(line) for line in doctor.stdout.splitlines()]
    # Stores older than boto3's checksums of 2025 refuse the deletion, which doctor tells.
    broken = [
        item
        for item in broken
        if item["status"] == "failed" and not item["message"].startswith("written and read, but then:")
    ]
    expect(not broken, f"doctor: {broken}")
    agentcore(own, "demo")
    refused = agentcore(own, "runs", MLFLOW_TRACKING_PASSWORD="wrong", check=False)
    expect(refused.returncode == 3, f"a wrong password: {refused.returncode} {refused.stderr}")
    expect("Traceback" not in refused.stderr, "a wrong password gives a traceback")


@contextlib.contextmanager
def step(name: str, timings: dict[str, float]) -> Iterator[None]:
    say(name)
    began = time.monotonic()
    yield
    timings[name] = time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without restarting and killing services")
    parser.add_argument("--keep", action="store_true", help="leave the stack as it is in the end")
    given = parser.parse_args()
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        print("no Docker engine here: the stack is not checked", file=sys.stderr)
        sys.exit(NO_ENGINE)
    timings: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix=f"stack-{secrets.token_hex(3)}-") as scratch:
        directory = Path(scratch)
        compose = Compose(directory)
        compose.write()
        try:
            check(compose, directory, timings, faults=not given.quick)
        except Wrong as wrong:
            print(f"WRONG: {wrong}", file=sys.stderr)
            sys.exit(1)
        finally:
            if not given.keep:
                compose("--profile", "*", "down", "--volumes", "--remove-orphans", check=False)
    for name, seconds in timings.items():
        print(f"{seconds:6.1f} s  {name}")


def check(compose: Compose, directory: Path, timings: dict[str, float], *, faults: bool) -> None:
    compose("down", "--volumes")
    with step("up, healthy", timings):
        comes_up(compose, directory)
    with step("a demo, its artifacts in S3", timings):
        run_id = tracks_a_demo(compose, directory)
    with step("foreign hosts, pages and S3 clients refused", timings):
        answers_nobody_else(compose, directory)
    with step("containers locked down", timings):
        is_locked_down(compose, directory)
    for service in ("mlflow", "postgres", "s3") if faults else ():
        for how in ("restart", "kill"):
            with step(f"{service}: {how} while a run is tracked", timings):
                survives(compose, directory, service, how)
    with step("down and up", timings):
        comes_back(compose, directory, run_id)
    with step("backed up, destroyed, restored", timings):
        backup_and_restore(compose, directory, run_id)
    with step("a password asked for", timings):
        asks_for_a_password(compose, directory)


if __name__ == "__main__":
    main()
