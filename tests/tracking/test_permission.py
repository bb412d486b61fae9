"""A server that asks for a password, over TLS with an authority of its own: clear errors, nothing lost."""

import asyncio
import datetime
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agentcore.doctor import Places, diagnose
from agentcore.settings import MLflowConfig, StackSettings
from agentcore.tracking import RunTracker
from tests.support import Classifier, colours
from tests.support.ports import free_port, wait_for

pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")

ADMIN = ("admin", "an-administrators-password")
READER = ("reader", "a-readers-long-password")
MODULE = "import dspy\nfrom tests.support import AsyncClassifier\nprogram = AsyncClassifier()\n"


def certificate(directory):
    """An authority's certificate that serves for the server too, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"a private authority {directory.name}")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (directory / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return directory / "ca.pem", directory / "key.pem"


class Guarded:
    """`mlflow server` with basic auth and TLS."""

    def __init__(self, directory, store, admin=ADMIN):
        self.admin = admin
        self.authority, key = certificate(directory)
        (directory / "auth.ini").write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{directory / 'auth.db'}\n"
            f"admin_username = {admin[0]}\nauth_cache_ttl_seconds = 60\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        port = free_port()
        self.uri = f"https://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{store}"),
            *("--artifacts-destination", str(directory / "artifacts")),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--uvicorn-opts", f"--ssl-keyfile {key} --ssl-certfile {self.authority}"),
        ]
        environment = {
            **os.environ,
            "MLFLOW_AUTH_CONFIG_PATH": str(directory / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": admin[1],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-this-test-only",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        log = directory / "mlflow.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env=environment, cwd=directory, start_new_session=True
            )
        wait_for(lambda: self.answers(), "MLflow with a password", log)

    def answers(self):
        try:
            return self.ask("GET", "experiments/search?max_results=1").status_code == 200
        except requests.RequestException:
            return False

    def ask(self, method, path, body=None, user=None, version="2.0"):
        return requests.request(
            method,
            f"{self.uri}/api/{version}/mlflow/{path}",
            json=body,
            auth=user or self.admin,
            verify=str(self.authority),
            timeout=10,
        )

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, migrated_store):
    directory = tmp_path_factory.mktemp("guarded")
    shutil.copy(migrated_store, directory / "mlflow.db")
    server = Guarded(directory, directory / "mlflow.db")
    made = server.ask("POST", "users/create", {"username": READER[0], "password": READER[1]})
    assert made.status_code == 200, made.text
    made = server.ask("POST", "experiments/create", {"name": "theirs"})
    server.experiment = made.json()["experiment_id"]
    yield server
    server.stop()


def agentcore(place, guarded, *arguments, user=READER, authority=True):
    """A command in a process of its own, with its credentials in the environment."""
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": guarded.uri,
        "MLFLOW_TRACKING_USERNAME": user[0],
        "MLFLOW_TRACKING_PASSWORD": user[1],
        "MLFLOW_EXPERIMENT_NAME": "theirs",
        "AGENTCORE_STATE_DIR": str(place / "state"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    if authority:
        environment["MLFLOW_TRACKING_SERVER_CERT_PATH"] = str(guarded.authority)
    return subprocess.run(
        [sys.executable, "-m", "agentcore", *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_a_user_without_permission_loses_nothing(guarded, tmp_path):
    """The run is made, its figures printed, and delivered once the permission is there."""
    (tmp_path / "work.py").write_text(MODULE)
    import json

    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in colours(45).rows()))
    done = agentcore(
        tmp_path,
        guarded,
        *("optimize", "work:program", "--data", "data.jsonl", "--lm", "offline/knn", "--auto", "none"),
        *("--set", "num_candidates=2", "--set", "num_trials=2", "--set", "minibatch=false"),
    )
    assert done.returncode == 0, done.stderr
    assert "Permission denied" in done.stdout
    assert "agentcore sync" in done.stdout
    assert "Traceback" not in done.stderr
    waits = agentcore(tmp_path, guarded, "sync")
    assert waits.returncode == 3
    assert "Permission denied" in waits.stderr
    granted = guarded.ask(
        "POST",
        "users/permissions/grant",
        {
            "username": READER[0],
            "resource_type": "experiment",
            "resource_id": guarded.experiment,
            "permission": "EDIT",
        },
        version="3.0",
    )
    assert granted.status_code == 200, granted.text
    assert agentcore(tmp_path, guarded, "sync").returncode == 0
    listed = agentcore(tmp_path, guarded, "runs")
    assert listed.returncode == 0
    assert "FINISHED" in listed.stdout


def test_a_wrong_password_is_one_line(guarded, tmp_path):
    done = agentcore(tmp_path, guarded, "runs", user=("admin", "not-the-password-at-all"))
    assert done.returncode == 3
    (line,) = [text for text in done.stderr.splitlines() if text]
    assert "error:" in line
    assert "MLFLOW_TRACKING_PASSWORD" in line
    assert "not-the-password" not in line


def test_an_unknown_authority_is_explained(guarded, tmp_path):
    done = agentcore(tmp_path, guarded, "doctor", "--only", "tracking", authority=False)
    assert done.returncode == 3
    assert "CERTIFICATE_VERIFY_FAILED" in done.stdout
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in done.stdout
    done = agentcore(tmp_path, guarded, "runs", authority=False)
    assert done.returncode == 3
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in done.stderr


def test_all_is_well_with_permission_and_authority(guarded, tmp_path):
    done = agentcore(tmp_path, guarded, "doctor", "--only", "tracking", "--only", "artifacts", user=ADMIN)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_token_is_sent(monkeypatch):
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(self.headers["Authorization"])
            self.send_response(401)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")  # restored, though the client sets it too
    config = MLflowConfig(tracking_uri=f"http://127.0.0.1:{server.server_address[1]}")
    places = Places(config, None, StackSettings())
    try:
        (found,) = [item async for item in diagnose(places, ["tracking"])]
    finally:
        server.shutdown()
        server.server_close()
    assert told == ["Bearer a-token"]
    assert "MLFLOW_TRACKING_TOKEN" in found.advice


async def test_two_servers_with_two_passwords_in_one_process(guarded, migrated_store, tmp_path, monkeypatch):
    """At the same time, with the artifacts that MLflow uploads from threads of its own."""
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    other = Guarded(tmp_path, tmp_path / "mlflow.db", admin=("root", "the-other-servers-password"))
    try:
        # One bundle of both authorities: that path MLflow does read from the environment.
        bundle = tmp_path / "bundle.pem"
        bundle.write_bytes(guarded.authority.read_bytes() + other.authority.read_bytes())
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(bundle))
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "of-neither")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of-neither-server")

        async def track(server):
            config = MLflowConfig(
                tracking_uri=server.uri,
                tracking_username=server.admin[0],
                tracking_password=server.admin[1],
                experiment_name="two",
                request_timeout=20,
            )
            tracker = RunTracker(config)
            run_id = await tracker.start_run(run_name=server.uri)
            for step in range(20):
                await tracker.log_metrics({"x": step}, step=step)
            await tracker.log_model_artifact(Classifier(), "model")
            await tracker.end_run()
            await tracker.flush(60)
            assert isinstance(await tracker.load_model_artifact(run_id, "model"), Classifier)
            assert await tracker.model_id(run_id, "model")
            return (await tracker.get_run(run_id)).info.run_name

        assert await asyncio.gather(track(guarded), track(other)) == [guarded.uri, other.uri]
        assert os.environ["MLFLOW_TRACKING_USERNAME"] == "of-neither"
    finally:
        other.stop()
