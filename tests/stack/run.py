"""The compose stack for real: `python tests/stack/run.py`, with a Docker engine and Compose 2.

Up on a fresh project, a demo tracked and its artifacts read back from S3; each service restarted and killed
while a run is tracked; down and up; a run delivered by the profile `sync`; backed up, destroyed, restored;
archived and removed; Prometheus's figures; passwords asked for under `auth`, and changed. It uses ports and a
project of its own, and removes them in the end. Exits 1 with what was not as it should be,
4 where there is no engine.
"""

import argparse
import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
    tells_its_figures,
    tracks_a_demo,
    variables,
)

NO_ENGINE = 4
PORTS = {"MLFLOW_PORT": "5790", "POSTGRES_PORT": "5791", "S3_PORT": "5792"}
API_PORT = "5793"
KNOWN = "only-for-loopback"
STACK = Stack(
    f"http://127.0.0.1:{PORTS['MLFLOW_PORT']}", f"http://127.0.0.1:{PORTS['S3_PORT']}", KNOWN, KNOWN
)


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


# The steps


def comes_up(compose: Compose) -> None:
    """Healthy with the passwords that everybody knows; only this machine reaches it."""
    compose.up()
    states = [json.loads(line) for line in compose("ps", "-a", "--format", "json").splitlines()]
    found = {item["Service"]: (item["State"], item.get("Health")) for item in states}
    expect(found["migrate"][0] == "exited", f"migrate: {found['migrate']}")
    for name in ("postgres", "s3", "mlflow"):
        expect(found[name] == ("running", "healthy"), f"{name}: {found[name]}")
    ports = [item for state in states for item in state.get("Publishers") or [] if item["PublishedPort"]]
    expect({item["URL"] for item in ports} == {"127.0.0.1"}, f"ports are open to others: {ports}")


def is_locked_down(compose: Compose) -> None:
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


def disturbed(compose: Compose, service: str, how: str) -> None:
    container = compose("ps", "-q", service).decode().strip()
    if how == "restart":
        subprocess.run(["docker", "restart", "-t", "3", container], check=True, capture_output=True)
    else:
        subprocess.run(["docker", "kill", container], check=True, capture_output=True)
        subprocess.run(["docker", "start", container], check=True, capture_output=True)


def tells_what_ails_it(compose: Compose) -> None:
    """Without its database a server is not ready, and restarting it would not help; stuck, it would."""

    def told(probe: str) -> int:
        container = compose("ps", "-q", "mlflow").decode().strip()
        command = ["docker", "exec", container, "python3", "/etc/serve.py", probe]
        return subprocess.run(command, capture_output=True).returncode

    expect((told("healthy"), told("alive")) == (0, 0), "the probes fail although all is well")
    compose("stop", "postgres")
    expect((told("healthy"), told("alive")) == (1, 0), "without a database: neither unready nor left alone")
    compose.up()
    compose("exec", "-T", "mlflow", "bash", "-c", "kill -STOP -1")  # all but the first process and itself
    expect((told("healthy"), told("alive")) == (1, 1), "a server that is stuck is not restarted")
    compose("exec", "-T", "mlflow", "bash", "-c", "kill -CONT -1")
    STACK.wait()


def comes_back(compose: Compose, directory: Path, run_id: str) -> None:
    """Down and up: everything is there."""
    before = STACK.everything()
    compose("down")
    compose.up()
    STACK.is_as(before, "down and up")
    agentcore(directory, "show", run_id, MLFLOW_TRACKING_URI=STACK.uri)


def is_delivered_by_the_daemon(compose: Compose, directory: Path) -> None:
    """The profile sync: a run of a time without MLflow, kept in the shared journal, is delivered."""
    build = ["docker", "build", "--quiet", "--network", "host", "--tag", "agentcore:local", str(ROOT)]
    done = subprocess.run(build, env=compose.environment, capture_output=True, text=True)
    expect(not done.returncode, f"docker build: {done.stderr[-2000:]}")
    place = directory / "sync"
    place.mkdir()
    compose("stop", "mlflow")
    journal = f"postgresql+psycopg://mlflow:{KNOWN}@127.0.0.1:{PORTS['POSTGRES_PORT']}/agentcore"
    environment = {"AGENTCORE_JOURNAL_URL": journal, "MLFLOW_TRACKING_URI": STACK.uri}
    told = agentcore(place, "demo", **environment, check=False)
    expect("agentcore sync" in told.stdout + told.stderr, f"a demo without MLflow: {told.stdout[-800:]}")
    compose.write(COMPOSE_PROFILES="sync", MLFLOW_TRACKING_URI=STACK.uri)
    compose.up()
    deadline = time.monotonic() + 120
    while "wait for MLflow" in (
        told := agentcore(place, "doctor", "--only", "journal", **environment).stdout
    ):
        expect(time.monotonic() < deadline, f"the daemon delivered nothing: {told}")
        time.sleep(1)
    agentcore(place, "show", "latest", **environment)
    is_locked_down(compose)
    compose("rm", "--stop", "--force", "sync")
    compose.write()


def serves_an_agent(compose: Compose, directory: Path) -> None:
    """The profile api: two replicas on one port and one journal; one is killed while it optimizes."""
    programs, data = example(directory), directory / "data"
    make_data(str(data / "evaluation"))
    compose.write(
        COMPOSE_PROFILES="api",
        MLFLOW_TRACKING_URI=STACK.uri,
        AGENTCORE_API_TOKENS=TOKENS,
        AGENTCORE_API_PORT=API_PORT,
        API_PROGRAMS=str(programs),
        API_DATA=str(data),
    )
    compose("up", "-d", "--scale", "api=2", "--wait", "--wait-timeout", "300", check=False)
    api = Api(f"http://127.0.0.1:{API_PORT}")
    api.wait()
    is_locked_down(compose)
    replicas = compose("ps", "-q", "api").decode().split()
    expect(len(replicas) == 2, f"replicas: {replicas}")

    def kill(operation: str) -> None:
        logs = {item: subprocess.run(["docker", "logs", item], capture_output=True) for item in replicas}
        working = [item for item, done in logs.items() if operation.encode() in done.stderr]
        expect(len(working) == 1, f"replicas that work on {operation}: {working}")
        subprocess.run(["docker", "kill", *working], check=True, capture_output=True)

    goes_on_once(STACK, api, kill)
    ready = api.ask("/ready")
    expect(ready["ready"], f"ready: {ready}")
    compose("rm", "--stop", "--force", "api")
    compose.write()


def backed_up_and_restored(compose: Compose, run_id: str) -> None:
    """What docs/operations.md says, step by step: backed up, destroyed, restored, nothing differs."""
    is_promoted(STACK, run_id)
    before = STACK.everything()
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
    STACK.is_as(before, "restored")


def is_collected(compose: Compose, directory: Path, run_id: str) -> None:
    """What docs/operations.md says of old runs: archived, then removed for good."""
    collect = ("run", "--rm", "-e", "MLFLOW_GC_OLDER_THAN=0s", "migrate", "python3", "/etc/serve.py", "gc")
    deletes_for_good(STACK, directory, run_id, lambda: compose(*collect) and None)


def figures(compose: Compose) -> None:
    compose.write(MLFLOW_PROMETHEUS="1")
    compose.up()
    STACK.post(SEARCH, {"max_results": 1})
    with urllib.request.urlopen(f"{STACK.uri}/metrics", timeout=20) as reply:
        tells_its_figures(reply.read().decode())
    compose.write()


def asks_for_a_password(compose: Compose, directory: Path) -> Path:
    """Under `auth`: refuses to start where anybody could enter, then answers nobody without a password."""
    compose("down")
    compose("--profile", "auth", "up", "-d", check=False)  # which MLflow can't see
    expect(STACK.post(SEARCH, {"max_results": 1}) == 0, "--profile auth started MLflow without a password")
    expect("set COMPOSE_PROFILES=auth" in compose("logs", "auth").decode(), "auth doesn't say what to do")
    compose.write(COMPOSE_PROFILES="auth")
    told = compose("up", "-d", "--wait", check=False).decode()
    expect("didn't complete successfully" in told, f"auth started without passwords: {told[-800:]}")
    expect("not set" in compose("logs", "auth").decode(), "auth doesn't say what is missing")
    compose("down", "--volumes")
    own = directory / "auth"
    own.mkdir()
    agentcore(own, "stack", "init", "--auth")
    adopt(compose, own, **{**variables(own / ".env.mlflow"), "MLFLOW_TRACKING_URI": STACK.uri})
    compose.up()
    expect(STACK.post(SEARCH, {"max_results": 1}) == 401, "MLflow answers without a password")
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
    is_refused(own)
    return own


def adopt(compose: Compose, own: Path, **values: str) -> None:
    """Both the stack and AgentCore take these variables."""
    compose.write(**values)
    (own / ".env.mlflow").write_text(compose.variables.read_text())
    (own / ".env.mlflow").chmod(0o600)


def is_refused(own: Path) -> None:
    refused = agentcore(own, "runs", MLFLOW_TRACKING_PASSWORD="a-wrong-password", check=False)
    expect(refused.returncode == 3, f"a wrong password: {refused.returncode} {refused.stderr}")
    expect("Traceback" not in refused.stderr, "a wrong password gives a traceback")


def changes_its_passwords(compose: Compose, own: Path) -> None:
    """What docs/operations.md says of each password: all of them new, and the runs are there."""
    values = variables(own / ".env.mlflow")
    before = values["MLFLOW_TRACKING_PASSWORD"]
    old = base64.b64encode(f"admin:{before}".encode()).decode()
    changed = {name: secrets.token_hex(20) for name in CHANGED}
    administrator = changed["MLFLOW_AUTH_ADMIN_PASSWORD"]
    body = {"username": "admin", "password": administrator, "current_password": before}
    request = urllib.request.Request(
        f"{STACK.uri}/api/2.0/mlflow/users/update-password",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {old}"},
        method="PATCH",
    )
    urllib.request.urlopen(request, timeout=20).close()
    statement = f"ALTER USER mlflow PASSWORD '{changed['POSTGRES_PASSWORD']}'\n"
    compose("exec", "-T", "postgres", "psql", "-U", "mlflow", "-d", "mlflow", data=statement.encode())
    adopt(compose, own, **{**values, **changed, "MLFLOW_TRACKING_PASSWORD": administrator})
    compose.up()
    told = agentcore(own, "runs", MLFLOW_TRACKING_PASSWORD=before, check=False)
    expect(told.returncode == 3, "the administrator's old password still serves")
    agentcore(own, "show", "latest")
    agentcore(own, "demo")


CHANGED = (
    "POSTGRES_PASSWORD",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without restarting and killing services")
    parser.add_argument("--keep", action="store_true", help="leave the stack as it is in the end")
    given = parser.parse_args()
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        print("no Docker engine here: the stack is not checked", file=sys.stderr)
        sys.exit(NO_ENGINE)
    timings = Timings()
    with tempfile.TemporaryDirectory(prefix=f"stack-{secrets.token_hex(3)}-") as scratch:
        directory = Path(scratch)
        compose = Compose(directory)
        compose.write()
        try:
            check(compose, directory, timings.step, faults=not given.quick)
        except Wrong as wrong:
            print(f"WRONG: {wrong}", file=sys.stderr)
            sys.exit(1)
        finally:
            if not given.keep:
                compose("--profile", "*", "down", "--volumes", "--remove-orphans", check=False)
    timings.tell()


def check(compose: Compose, directory: Path, step: Callable[[str], Any], *, faults: bool) -> None:
    compose("--profile", "*", "down", "--volumes", "--remove-orphans")
    with step("up, healthy"):
        comes_up(compose)
    with step("a demo, its artifacts in S3"):
        run_id = tracks_a_demo(STACK, directory)
    with step("foreign hosts, pages and S3 clients refused"):
        answers_nobody_else(STACK)
    with step("containers locked down"):
        is_locked_down(compose)
    for service in ("mlflow", "postgres", "s3") if faults else ():
        for how in ("restart", "kill"):
            with step(f"{service}: {how} while a run is tracked"):
                survives(STACK, directory, f"{service}-{how}", partial(disturbed, compose, service, how))
    with step("probes"):
        tells_what_ails_it(compose)
    with step("down and up"):
        comes_back(compose, directory, run_id)
    with step("a run of a time without MLflow, delivered by the daemon"):
        is_delivered_by_the_daemon(compose, directory)
    with step("two replicas of the API, one killed while it optimizes"):
        serves_an_agent(compose, directory)
    with step("backed up, destroyed, restored"):
        backed_up_and_restored(compose, run_id)
    with step("archived, and removed for good"):
        is_collected(compose, directory, run_id)
    with step("figures for Prometheus"):
        figures(compose)
    with step("a password asked for"):
        own = asks_for_a_password(compose, directory)
    with step("all passwords changed"):
        changes_its_passwords(compose, own)


if __name__ == "__main__":
    main()
