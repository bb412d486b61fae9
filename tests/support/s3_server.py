"""An S3 server with checked keys and files on disk: OpenStack Swift, one node, one copy."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.ports import free_port

#: Swift's own form of a user: account and name.
ACCESS_KEY = "test:tester"
SECRET_KEY = "test-secret"
REGION = "us-east-1"

_STORAGE = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
disable_fallocate = true
log_address = /nolog
user = {user}
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

_PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {directory}
log_address = /nolog
user = {user}
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = {region}
check_bucket_owner = false
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{name} = {secret} .admin
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
"""

_PLAIN = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "slo", "dlo")


class S3Server:
    """Storage and proxy processes; `stop` and `start` again keep what is stored."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._configure()
        self.start()

    def _configure(self) -> None:
        from swift.common.ring import RingBuilder

        directory = self.directory
        (directory / "devices" / "one").mkdir(parents=True)
        (directory / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = t\nswift_hash_path_suffix = t\n"
            "[storage-policy:0]\nname = one\ndefault = yes\n"
        )
        user = os.environ.get("USER") or "root"
        self.storage_ports = {}
        for kind in ("account", "container", "object"):
            port = self.storage_ports[kind] = free_port()
            builder = RingBuilder(2, 1, 0)
            builder.add_dev(
                {
                    "region": 1,
                    "zone": 1,
                    "ip": "127.0.0.1",
                    "port": port,
                    "replication_ip": "127.0.0.1",
                    "replication_port": port,
                    "device": "one",
                    "weight": 1.0,
                    "meta": "",
                }
            )
            builder.rebalance()
            builder.get_ring().save(str(directory / f"{kind}.ring.gz"))
            (directory / f"{kind}.conf").write_text(
                _STORAGE.format(kind=kind, port=port, directory=directory, user=user)
            )
        account, name = ACCESS_KEY.split(":")
        proxy = _PROXY.format(
            port=self.port,
            directory=directory,
            region=REGION,
            account=account,
            name=name,
            secret=SECRET_KEY,
            user=user,
        )
        proxy += "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _PLAIN)
        (directory / "proxy.conf").write_text(proxy)

    def start(self) -> None:
        binaries = Path(sys.executable).parent
        with (self.directory / "s3.log").open("ab") as log:
            self.processes = [
                subprocess.Popen(
                    [str(binaries / f"swift-{kind}-server"), str(self.directory / f"{kind}.conf")],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONWARNINGS": "ignore"},
                    start_new_session=True,
                )
                for kind in ("account", "container", "object", "proxy")
            ]

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthcheck", timeout=2) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def stop(self) -> None:
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes = []

    def client(self) -> Any:
        """boto3 on it, past MLflow."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
