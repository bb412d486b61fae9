"""The local overlay for real, without a cluster: `kubectl kustomize … | python tests/stack/kubernetes.py`.

Prints the manifests as Podman 4's `kube play` can run them. It gives an emptyDir the owner that the directory
has in the image, where Kubernetes gives it the pod's group: Postgres keeps its socket in its own file system.
And it restarts init containers for ever: the Job that the server would wait for is waited for before.
"""

import sys

import yaml


def main() -> None:
    objects = [item for item in yaml.safe_load_all(sys.stdin) if item]
    for item in objects:
        if (item["kind"], item["metadata"]["name"]) == ("StatefulSet", "postgres"):
            (container,) = item["spec"]["template"]["spec"]["containers"]
            container["securityContext"]["readOnlyRootFilesystem"] = False
            container["volumeMounts"] = [
                mount for mount in container["volumeMounts"] if mount["name"] != "run"
            ]
        if item["kind"] == "Deployment":
            item["spec"]["template"]["spec"].pop("initContainers", None)
    yaml.safe_dump_all(objects, sys.stdout, sort_keys=False)


if __name__ == "__main__":
    main()
