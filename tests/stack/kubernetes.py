"""The manifests for real, without a cluster: `python tests/stack/kubernetes.py --play COMMAND`.

Needs kubectl, Podman 4, the images (agentcore:local too, by `podman build -t agentcore:local .`), and a
command that plays manifests with it: `COMMAND up --publish WORKLOAD=HOST:CONTAINER`, which reads them from
standard input and waits for Jobs, and `COMMAND down`. It has Podman to itself, and removes all pods.

The local overlay comes up; a demo is tracked and its artifacts read back from S3; each server is killed while
a run is tracked; the components' Jobs optimize, back up, restore and collect; `auth` asks for a password.
Exits 1 with what was not as it should be, 4 where there is no Podman.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import yaml
from checks import (
    ROOT,
    SEARCH,
    TOKENS,
    Api,
    Stack,
    Timings,
    Wrong,
    agentcore,
    answers_nobody_else,
    deletes_for_good,
    example,
    expect,
    goes_on_once,
    is_promoted,
    make_data,
    survives,
    tracks_a_demo,
    variables,
)

NO_PODMAN = 4
PUBLISHED = {
    "mlflow": "5795:5000",
    "s3": "5797:8333",
    "agentcore-api": "5798:8000",
    "agentcore-api-2": "5799:8000",
}
SERVERS = ("postgres", "s3", "mlflow-migrate", "mlflow")
COMPONENTS = ("backup", "gc", "optimize", "api", "schedules")
ALERTS = 5794
UID = "5f0c54a6-4f0e-4b0a-9a53-0a6b2f0b7a11"
"""What Kubernetes would call the Job."""


def podman(*arguments: str) -> str:
    return subprocess.run(["podman", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def gateway() -> str:
    """The address by which pods reach this machine."""
    if "standins" not in podman("network", "ls", "--format", "{{.Name}}").split():
        podman("network", "create", "standins")
    (network,) = json.loads(podman("network", "inspect", "standins"))
    return str(network["subnets"][0]["gateway"])


def logs(container: str) -> str:
    """What it printed; nothing where there is no such container."""
    done = subprocess.run(["podman", "logs", container], capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode == 0 else ""


def until_told(container: str, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in logs(container):
        expect(time.monotonic() < deadline, f"{container} does not say {text!r}: {logs(container)}")
        time.sleep(0.05)


class Cluster:
    """The local overlay in a directory of its own, with its passwords."""

    def __init__(self, play: str, directory: Path) -> None:
        self.play = shlex.split(play)
        self.overlay = directory / "k8s" / "overlays" / "local"
        shutil.copytree(ROOT / "k8s", directory / "k8s", ignore=shutil.ignore_patterns("secrets.env"))
        agentcore(self.overlay, "stack", "init", "--kubernetes", "--file", "secrets.env")
        self.secrets = variables(self.overlay / "secrets.env")
        self.journal_password = token_hex(16)
        self.written = yaml.safe_load((self.overlay / "kustomization.yaml").read_text())
        self.api = directory / "k8s" / "components" / "api"

    @property
    def stack(self) -> Stack:
        mlflow, s3 = (f"http://127.0.0.1:{PUBLISHED[name].partition(':')[0]}" for name in ("mlflow", "s3"))
        return Stack(mlflow, s3, self.secrets["AWS_ACCESS_KEY_ID"], self.secrets["AWS_SECRET_ACCESS_KEY"])

    def choose(self, *components: str) -> None:
        """Add components to the overlay, and the image as it is named here."""
        chosen = {**self.written, "components": [f"../../components/{name}" for name in components]}
        image = {"name": "registry.example.com/agentcore", "newName": "localhost/agentcore-loan"}
        chosen["images"] = [{**image, "newTag": "local"}]
        journal = f"postgresql+psycopg://journal:{self.journal_password}@postgres/agentcore"
        own = {
            "name": "agentcore",
            "literals": [
                f"AGENTCORE_JOURNAL_URL={journal}",
                f"AGENTCORE_API_TOKENS={TOKENS}",
                f"AGENTCORE_ALERT_URLS=json://{gateway()}:{ALERTS}/",
                *(f"{name}={self.secrets[name]}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
            ],
        }
        chosen["secretGenerator"] = [*self.written["secretGenerator"], own]
        (self.overlay / "kustomization.yaml").write_text(yaml.safe_dump(chosen))
        rendered = subprocess.run(["kubectl", "kustomize", str(self.overlay)], capture_output=True, text=True)
        expect(not rendered.returncode, rendered.stderr)
        self.objects = [playable(item) for item in yaml.safe_load_all(rendered.stdout) if item]
        # `kube play` runs one replica of a Deployment.
        for item in list(self.objects):
            if (item["kind"], item["metadata"]["name"]) == ("Deployment", "agentcore-api"):
                second = json.loads(json.dumps(item))
                second["metadata"]["name"] = "agentcore-api-2"
                self.objects.append(second)

    def up(self, *names: str) -> None:
        """Start these workloads, Jobs to their end."""
        shared = ("ConfigMap", "Secret", "Service", "PersistentVolumeClaim")
        chosen = [item for item in self.objects if item["kind"] in shared]
        for name in names:
            found = [
                item
                for item in self.objects
                if item["kind"] in WORKLOADS and item["metadata"]["name"] == name
            ]
            expect(found, f"no workload {name}")
            chosen += [job for item in found for job in in_order(item)]
        command = [*self.play, "up"]
        for name in PUBLISHED.keys() & set(names):
            command += ["--publish", f"{name}={PUBLISHED[name]}"]
        done = subprocess.run(command, input=yaml.safe_dump_all(chosen), capture_output=True, text=True)
        expect(not done.returncode, f"{' '.join(names)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")

    def down(self) -> None:
        subprocess.run([*self.play, "down"], check=True, capture_output=True)

    def destroy(self, *volumes: str) -> None:
        there = podman("volume", "ls", "-q").split()
        for name in volumes:
            if name in there:
                podman("volume", "rm", name)


WORKLOADS = ("StatefulSet", "Deployment", "Job")


def playable(item: dict[str, Any]) -> dict[str, Any]:
    """An object as Podman 4's `kube play` can run it."""
    name = (item["kind"], item["metadata"]["name"])
    if name == ("StatefulSet", "postgres"):
        # An emptyDir has the owner that the directory has in the image, where Kubernetes gives it the pod's
        # group: Postgres keeps its socket in its own file system.
        (container,) = item["spec"]["template"]["spec"]["containers"]
        container["securityContext"]["readOnlyRootFilesystem"] = False
        container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "run"]
    if name[0] == "Deployment":
        # It restarts init containers for ever; what this one waits for was waited for before.
        item["spec"]["template"]["spec"].pop("initContainers", None)
    if name[0] == "PersistentVolumeClaim":  # no fsGroup
        item["metadata"]["annotations"] = {"volume.podman.io/uid": "10001", "volume.podman.io/gid": "10001"}
    if name == ("Job", "optimize"):
        (container,) = item["spec"]["template"]["spec"]["containers"]
        container["env"] = [entry for entry in container["env"] if entry["name"] != "JOB_UID"]
        container["args"] = [text.replace("$(JOB_UID)", UID) for text in container["args"]]
    if name[0] == "CronJob":
        return {**item, "apiVersion": "batch/v1", "kind": "Job", "spec": item["spec"]["jobTemplate"]["spec"]}
    return item


def in_order(item: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """A Job's init containers as Jobs before it."""
    spec = item["spec"].get("template", {}).get("spec", {})
    first = spec.get("initContainers", []) if item["kind"] == "Job" else []
    for container in first:
        job = json.loads(json.dumps(item))
        job["metadata"]["name"] += f"-{container['name']}"
        job["spec"]["template"]["spec"].update(initContainers=[], containers=[container])
        yield job
    if first:
        item = json.loads(json.dumps(item))
        item["spec"]["template"]["spec"].pop("initContainers")
    yield item


def container_of(workload: str) -> str:
    (name,) = [
        name
        for name in podman("ps", "--format", "{{.Names}}").split()
        if name.startswith((f"{workload}-pod", f"{workload}-{workload}")) and not name.endswith("-infra")
    ]
    return name


def process_of(workload: str) -> int:
    """The first process of its container."""
    return int(podman("inspect", "--format", "{{.State.Pid}}", container_of(workload)))


def killed(workload: str) -> None:
    """kill -9, as the kernel does where memory ends: it is restarted."""
    os.kill(process_of(workload), signal.SIGKILL)


# The steps


def optimizes(cluster: Cluster) -> None:
    """The component optimize: its pod is killed in the middle, and another one goes on with the same run."""

    # As docs/operations.md makes the journal's role.
    statements = (
        f"CREATE ROLE journal LOGIN PASSWORD '{cluster.journal_password}'",
        "GRANT ALL ON SCHEMA public TO journal",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO journal",
        "REVOKE CONNECT ON DATABASE mlflow FROM PUBLIC",
    )
    told = [part for statement in statements for part in ("-c", statement)]
    podman("exec", container_of("postgres"), "psql", "-U", "mlflow", "-d", "agentcore", *told)

    def first() -> None:
        with contextlib.suppress(Wrong):  # a Job that failed
            cluster.up("optimize")

    begun = threading.Thread(target=first)
    begun.start()
    until_told("optimize-optimize", "loading DSPy")
    process = process_of("optimize")
    until_told("optimize-optimize", "trial 2:")
    os.kill(process, signal.SIGKILL)
    begun.join()
    podman("pod", "rm", "-f", "optimize")
    cluster.up("optimize")
    told = logs("optimize-optimize")
    expect("resuming run" in told and "gain in quality score" in told, f"it did not go on: {told}")
    mlflow = cluster.stack.client()
    experiment = mlflow.get_experiment_by_name("dspy-optimization")
    named = uuid.uuid5(uuid.NAMESPACE_OID, UID).hex[:16]  # how an id tells the name given by --once
    found = mlflow.search_runs([experiment.experiment_id], f"tags.`agentcore.key` LIKE '{named}%'")
    expect([run.info.status for run in found] == ["FINISHED"], f"the Job's runs: {found}")


def serves_an_agent(cluster: Cluster, directory: Path) -> None:
    """The components api and schedules: two replicas, one killed while it optimizes; the CronJobs once."""
    cluster.up("agentcore-api")
    cluster.up("agentcore-api-2")
    both = {
        name: Api(f"http://127.0.0.1:{PUBLISHED[name].partition(':')[0]}")
        for name in ("agentcore-api", "agentcore-api-2")
    }
    for api in both.values():
        api.wait()

    # Only one of them works on it: it is asked for where it will stay.
    def kill(operation: str) -> None:
        working = [name for name in both if operation in logs(container_of(name))]
        expect(len(working) == 1, f"replicas that work on {operation}: {working}")
        killed(working[0])

    run_id = goes_on_once(cluster.stack, both["agentcore-api-2"], kill)
    api = both["agentcore-api-2"]
    api.wait()
    promotion = api.ask("/api/v1/loan_approval/promote", {"run": run_id})
    promotion = api.until(promotion["id"], lambda found: found["status"] not in ("queued", "running"))
    expect(promotion["status"] == "completed" and promotion["result"]["promoted"], f"promotion: {promotion}")
    answer = api.ask(
        "/api/v1/loan_approval/predict",
        {"inputs": {"annual_income": 85000, "credit_score": 750, "loan_amount": 250000}},
    )
    expect(answer["version"] == "1", f"the answer: {answer}")
    cluster.up("agentcore-evaluate")
    receiver = subprocess.Popen(
        [sys.executable, "-c", RECEIVER, str(ALERTS)], stdout=subprocess.PIPE, text=True
    )
    try:
        with contextlib.suppress(Wrong):  # there is drift: the Job fails
            cluster.up("agentcore-drift")
        told = logs("agentcore-drift-agentcore-drift")
        expect("Performance drift" in told, f"the drift check: {told[-2000:]}")
        assert receiver.stdout is not None
        expect("Drift of loan_approval" in receiver.stdout.readline(), "no alert")
    finally:
        receiver.kill()


RECEIVER = """
import http.server, json, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["title"], flush=True)
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("0.0.0.0", int(sys.argv[1])), Receiver).serve_forever()
"""


def backed_up_and_restored(cluster: Cluster, run_id: str) -> None:
    is_promoted(cluster.stack, run_id)
    before = cluster.stack.everything()
    cluster.up("mlflow-backup")
    cluster.down()
    cluster.destroy("postgres-data", "s3-data")
    cluster.up("postgres", "s3", "mlflow-restore")
    cluster.up("mlflow-migrate", "mlflow")
    cluster.stack.wait()
    cluster.stack.is_as(before, "restored")


def is_collected(cluster: Cluster, directory: Path, run_id: str) -> None:
    for item in cluster.objects:
        if item["metadata"]["name"] == "mlflow-gc" and item["kind"] == "Job":
            (container,) = item["spec"]["template"]["spec"]["containers"]
            container["env"] = [{"name": "MLFLOW_GC_OLDER_THAN", "value": "0s"}]
    deletes_for_good(cluster.stack, directory, run_id, lambda: cluster.up("mlflow-gc"))


def asks_for_a_password(cluster: Cluster, directory: Path) -> None:
    cluster.down()
    cluster.destroy("postgres-data", "s3-data")
    cluster.choose("auth")
    cluster.up(*SERVERS)
    cluster.stack.wait(401)
    expect(cluster.stack.post(SEARCH, {"max_results": 1}) == 401, "MLflow answers without a password")
    agentcore(
        directory,
        "demo",
        MLFLOW_TRACKING_URI=cluster.stack.uri,
        MLFLOW_TRACKING_USERNAME="admin",
        MLFLOW_TRACKING_PASSWORD=cluster.secrets["MLFLOW_AUTH_ADMIN_PASSWORD"],
    )


def check(cluster: Cluster, directory: Path, step: Callable[[str], Any]) -> None:
    stack = cluster.stack
    with step("up, healthy"):
        cluster.up(*SERVERS)
        stack.wait()
    with step("a demo, its artifacts in S3"):
        run_id = tracks_a_demo(stack, directory)
    with step("foreign hosts, pages and S3 clients refused"):
        answers_nobody_else(stack)
    for workload in ("mlflow", "postgres", "s3"):
        with step(f"{workload}: killed while a run is tracked"):
            survives(stack, directory, f"{workload}-killed", partial(killed, workload))
    with step("a Job optimizes"):
        optimizes(cluster)
    with step("two replicas of the API, one killed while it optimizes; the schedules"):
        serves_an_agent(cluster, directory)
    with step("backed up, destroyed, restored"):
        backed_up_and_restored(cluster, run_id)
    with step("archived, and removed for good"):
        is_collected(cluster, directory, run_id)
    with step("a password asked for"):
        asks_for_a_password(cluster, directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--play", required=True, metavar="COMMAND", help="plays manifests with Podman")
    parser.add_argument("--keep", action="store_true", help="leave it as it is in the end")
    given = parser.parse_args()
    missing = [name for name in ("podman", "kubectl") if shutil.which(name) is None]
    if missing:
        print(f"no {' and no '.join(missing)} here: the manifests are not run", file=sys.stderr)
        sys.exit(NO_PODMAN)
    timings = Timings()
    with tempfile.TemporaryDirectory(prefix="kubernetes-") as scratch:
        programs = example(Path(scratch)).parent
        # In the image: not every S3 server has the conditional writes that data sets need.
        make_data(str(programs / "examples" / "data"))
        podman(
            *("build", "-q", "-t", "agentcore-loan:local", "--build-arg", "BASE=localhost/agentcore:local"),
            *("-f", str(ROOT / "examples/loan_approval/Dockerfile"), str(programs)),
        )
        cluster = Cluster(given.play, Path(scratch))
        shutil.copy(programs / "examples/loan_approval/agents.toml", cluster.api / "agents.toml")
        given_data = cluster.api / "kustomization.yaml"
        text = given_data.read_text().replace("s3://mlflow/agentcore-data", "/app/examples/data")
        given_data.write_text(text)
        cluster.choose(*COMPONENTS)
        cluster.down()
        cluster.destroy("postgres-data", "s3-data", "mlflow-backups")
        try:
            check(cluster, Path(scratch), timings.step)
        except Wrong as wrong:
            print(f"WRONG: {wrong}", file=sys.stderr)
            sys.exit(1)
        finally:
            if not given.keep:
                cluster.down()
                cluster.destroy("postgres-data", "s3-data", "mlflow-backups")
    timings.tell()


if __name__ == "__main__":
    main()
