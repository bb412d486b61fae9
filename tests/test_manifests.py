"""The manifests and the compose file: rendered, and held to what they promise."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
K8S = ROOT / "k8s"
COMPOSE = ROOT / "docker-compose.mlflow.yml"
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())


def render(directory, tmp_path, components=()):
    """An overlay's objects, of a copy with secrets and with more components."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: nothing renders the manifests")
    copy = shutil.copytree(K8S, tmp_path / "k8s", ignore=shutil.ignore_patterns("secrets.env"))
    overlay = copy / "overlays" / directory
    names = ("POSTGRES_USER", "POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    (overlay / "secrets.env").write_text("".join(f"{name}=x\n" for name in names))
    if components:
        path = overlay / "kustomization.yaml"
        chosen = yaml.safe_load(path.read_text())
        chosen["components"] = [f"../../components/{name}" for name in components]
        path.write_text(yaml.safe_dump(chosen))
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


@pytest.fixture(params=["local", "production", "everything"])
def objects(request, tmp_path):
    if request.param == "everything":
        return render("local", tmp_path, COMPONENTS)
    return render(request.param, tmp_path)


def tool(name):
    """Where a command is, of this environment or of the machine; without it the test is skipped."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


NOT_KUBERNETES = {"ExternalSecret", "RayJob", "ServiceMonitor"}
"""Kinds that operators bring: no schema of theirs comes with Kubernetes."""


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_every_object_has_kubernetes_own_schema(objects, version):
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    checked = 0
    for item in objects:
        if item["kind"] not in NOT_KUBERNETES:
            validator.validate(item, version, strict=True)
            checked += 1
    assert checked > 10


def test_policies(objects, tmp_path):
    """checkov has nothing to say but what k8s/checkov.yaml gives a reason for."""
    checkov = tool("checkov")
    path = tmp_path / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(objects))
    command = [checkov, "--config-file", str(K8S / "checkov.yaml"), "--file", str(path)]
    command += ["--skip-download", "--quiet", "--compact", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    told = json.loads(done.stdout)
    summary = [item["summary"] for item in (told if isinstance(told, list) else [told])]
    assert [item["failed"] for item in summary] == [0] * len(summary), done.stdout
    assert sum(item["passed"] for item in summary) > 200


def test_the_image_is_built_as_hadolint_wants():
    done = subprocess.run([tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def pods(objects):
    """Name and spec of each pod that Kubernetes itself would make."""
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if item["kind"] in ("Deployment", "StatefulSet", "Job", "CronJob"):
            yield f"{item['kind']} {item['metadata']['name']}", spec["template"]
        if item["kind"] == "RayJob":
            groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
            for group in groups:
                yield f"RayJob {group.get('groupName', 'head')}", group["template"]


def containers(spec):
    return [*spec.get("initContainers", []), *spec["containers"]]


def test_every_pod_is_locked_down(objects):
    found = list(pods(objects))
    assert found
    for name, template in found:
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        images_own = {"StatefulSet postgres": 999, "StatefulSet s3": 1000}
        assert spec["securityContext"]["runAsUser"] == images_own.get(name, 10001), name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(spec):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            # Ray writes beside its own code.
            assert context.get("readOnlyRootFilesystem") is True or name.startswith("RayJob"), name
            assert {"requests", "limits"} <= container["resources"].keys(), name
            assert not container["image"].endswith(":latest"), name
            assert ":" in container["image"], name


def test_probes_ask_the_database(objects):
    (server,) = [t for name, t in pods(objects) if name == "Deployment mlflow"]
    (container,) = server["spec"]["containers"]
    asks = {name: container[name]["exec"]["command"][-1] for name in container if name.endswith("Probe")}
    # A database that is away takes the traffic from a server; it must not restart it.
    assert asks == {"startupProbe": "healthy", "readinessProbe": "healthy", "livenessProbe": "alive"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > 120
    assert [item["name"] for item in server["spec"]["initContainers"]] == ["schema"]


def test_what_is_named_is_there(objects):
    """ConfigMaps, Secrets, claims and ServiceAccounts that pods name, and the pods that selectors mean."""
    made = {(item["kind"], item["metadata"]["name"]) for item in objects}
    made |= {
        ("Secret", item["spec"]["target"]["name"]) for item in objects if item["kind"] == "ExternalSecret"
    }
    made.add(("Secret", "agentcore"))  # the user's own, with the keys of the models
    labels = [template["metadata"]["labels"] for _, template in pods(objects)]
    for name, template in pods(objects):
        text = json.dumps(template)
        for kind, key in (("ConfigMap", "configMap(?:Ref|KeyRef)?"), ("Secret", "secret(?:Ref|KeyRef)")):
            for found in re.findall(rf'"{key}": (\{{[^}}]*\}})', text):
                reference = json.loads(found)
                if not reference.get("optional"):
                    assert (kind, reference["name"]) in made, f"{name}: {reference}"
        for claim in re.findall(r'"claimName": "([^"]+)"', text):
            assert ("PersistentVolumeClaim", claim) in made, name
        account = template["spec"].get("serviceAccountName", "default")
        assert account == "default" or ("ServiceAccount", account) in made, name
    for item in objects:
        if item["kind"] == "Service":
            wanted = item["spec"]["selector"].items()
            assert any(wanted <= found.items() for found in labels), item["metadata"]["name"]


def test_all_is_denied_but_what_is_named(objects):
    policies = {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        for rule in spec.get("ingress", []):
            assert rule.get("from"), f"{name} lets everybody in"


def test_a_job_that_is_begun_again_goes_on_with_its_run(tmp_path):
    objects = render("local", tmp_path, ["optimize"])
    (job,) = [item for item in objects if item["metadata"]["name"] == "optimize" and item["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # or its logs would go with it
    (usage, eviction) = job["spec"]["podFailurePolicy"]["rules"]
    assert usage["action"] == "FailJob"
    assert usage["onExitCodes"]["values"] == [2]
    assert eviction["action"] == "Ignore"
    journal = [entry for entry in container["env"] if entry["name"] == "AGENTCORE_JOURNAL_URL"]
    assert journal[0]["valueFrom"]["secretKeyRef"] == {"name": "agentcore", "key": "AGENTCORE_JOURNAL_URL"}
    assert container["args"][-2:] == ["--once", "$(JOB_UID)"]
    uid = {"fieldPath": "metadata.labels['batch.kubernetes.io/controller-uid']"}
    assert {"name": "JOB_UID", "valueFrom": {"fieldRef": uid}} in container["env"]


def test_no_secret_is_in_git():
    tracked = subprocess.run(
        ["git", "ls-files", "k8s"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert tracked
    for path in tracked:
        assert "secrets.env" not in path
        text = (ROOT / path).read_text()
        assert not re.search(r"^\s*kind: Secret$", text, re.MULTILINE), path
    assert "only-for-loopback" not in "".join(
        (ROOT / path).read_text() for path in tracked if "serve.py" not in path
    )


def test_the_database_bears_the_largest_deployment(objects):
    (scaler,) = [item for item in objects if item["kind"] == "HorizontalPodAutoscaler"]
    (config,) = [
        item["data"]
        for item in objects
        if item["kind"] == "ConfigMap" and "MLFLOW_WORKERS" in item.get("data", {})
    ]
    pool = sum(int(config[f"MLFLOW_SQLALCHEMYSTORE_{name}"]) for name in ("POOL_SIZE", "MAX_OVERFLOW"))
    assert pool >= 40  # what a server works on at once: with fewer, busy moments end in errors
    allowed = 200  # which the local overlay sets, and docs/operations.md asks for
    assert scaler["spec"]["maxReplicas"] * int(config["MLFLOW_WORKERS"]) * (pool + 3) <= 0.9 * allowed


def test_components_do_what_they_say(tmp_path):
    objects = render("local", tmp_path, COMPONENTS)
    config = {k: v for item in objects if item["kind"] == "ConfigMap" for k, v in item["data"].items()}
    assert config["MLFLOW_AUTH"] == "basic-auth"
    assert config["MLFLOW_PROMETHEUS"] == "1"
    kinds = {item["kind"] for item in objects}
    assert {"Ingress", "ServiceMonitor", "CronJob", "RayJob"} <= kinds
    jobs = {item["metadata"]["name"] for item in objects if item["kind"] in ("Job", "CronJob")}
    assert jobs == {
        *("mlflow-migrate", "mlflow-gc", "mlflow-backup", "mlflow-restore", "optimize"),
        *("agentcore-evaluate", "agentcore-drift"),
    }


def test_the_api_on_kubernetes(tmp_path):
    """Two replicas that share the journal; if MLflow is away, they are not taken out of service for it."""
    objects = render("local", tmp_path, ["api", "schedules"])
    (server,) = [
        item for item in objects if item["kind"] == "Deployment" and "api" in item["metadata"]["name"]
    ]
    assert server["spec"]["replicas"] == 2
    (container,) = server["spec"]["template"]["spec"]["containers"]
    named = {entry["name"]: entry["valueFrom"] for entry in container["env"] if "valueFrom" in entry}
    assert named.keys() == {"AGENTCORE_JOURNAL_URL", "AGENTCORE_API_TOKENS"}
    probes = {container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert probes == {"/health"}
    (config,) = [item for item in objects if item["metadata"]["name"].startswith("agentcore-agents")]
    from agentcore.api import read_agents

    allowed = read_agents(tomllib.loads(config["data"]["agents.toml"]))
    assert allowed == read_agents(ROOT / "examples/loan_approval/agents.toml")
    crons = {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "CronJob"}
    assert crons["agentcore-evaluate"]["schedule"].endswith("* * *")  # every day
    assert crons["agentcore-drift"]["schedule"].endswith("* * 1")  # every Monday
    for name, spec in crons.items():
        assert spec["concurrencyPolicy"] == "Forbid"
        (rule, _) = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
        assert rule["onExitCodes"]["values"] == [1, 2], name  # an answer, and wrong usage: not tried again


def test_the_schedule_for_databricks():
    bundle = yaml.safe_load((ROOT / "examples/loan_approval/databricks.yml").read_text())
    jobs = bundle["resources"]["jobs"].values()
    assert len(jobs) == 2
    for job in jobs:
        (task,) = job["tasks"]
        assert len(job["schedule"]["quartz_cron_expression"].split()) == 6
        command = task["spark_python_task"]
        assert (ROOT / "examples/loan_approval" / command["python_file"]).is_file()
        parameters = [text.replace("${var.data}", "nowhere") for text in command["parameters"]]
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples/loan_approval/run.py"), *parameters],
            env={**os.environ, "MLFLOW_TRACKING_URI": "sqlite:///x.db", "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2  # the options are known; the data are not there
        assert "no data set" in done.stderr


# The compose file


def compose():
    return yaml.safe_load(COMPOSE.read_text())


def test_only_this_machine_reaches_the_compose_stack():
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_compose_service_is_locked_down():
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["image"].partition(":")[2] not in ("", "latest"), name
        assert "mem_limit" in service or service["restart"] == "no", name


def test_the_images_are_those_of_the_manifests():
    images = {service["image"] for service in compose()["services"].values()}
    base = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())
    assert {f"{item['name']}:{item['newTag']}" for item in base["images"]} <= images
    for name in ("postgres", "s3"):
        (image,) = re.findall(r"image: (\S+)", (K8S / "overlays" / "local" / f"{name}.yaml").read_text())
        assert image in images


def test_what_compose_mounts_is_there():
    for config in compose()["configs"].values():
        assert "content" in config or (ROOT / config["file"]).is_file()


def test_the_dashboard_is_grafanas():
    board = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
    assert [panel["title"] for panel in board["panels"]]
    assert all(target["expr"] for panel in board["panels"] for target in panel["targets"])
