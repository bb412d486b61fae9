"""A server with an agent in production, as a process: for the other benchmarks."""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from agentcore.data import DatasetManager
from agentcore.dspy_optimization import OptimizationPipeline
from agentcore.registry import Registry
from agentcore.settings import MLflowConfig

ROOT = Path(__file__).parents[2]
AGENT = "loan_approval"
TOKEN = secrets.token_hex(16)


@dataclass
class Server:
    url: str
    log: Path
    config: MLflowConfig

    def client(self, **options: Any) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=120, **options)


def prepared(directory: Path) -> MLflowConfig:
    """Data sets, a champion and a challenger."""
    sys.path.insert(0, str(ROOT))
    from examples.loan_approval.make_data import main as make_data
    from examples.loan_approval.program import LoanApproval

    make_data()
    config = MLflowConfig(tracking_uri=f"sqlite:///{directory / 'mlflow.db'}")
    registry = Registry(AGENT, config)
    data = DatasetManager(directory / "data" / "evaluation").load_dataset("loan_approval_train")
    for k, to in ((16, "production"), (8, "staging")):
        pipeline = OptimizationPipeline(LoanApproval(), lm="offline/knn", mlflow_config=config, agent=AGENT)
        request = {
            "target": {"type": "agent", "id": AGENT},
            "algorithms": ["labeled_few_shot"],
            "optimizer_settings": {"labeled_few_shot": {"k": k}},
        }
        result = pipeline.sync.run_optimization(request, training_data=data)
        pipeline.sync.flush()
        force = "for the benchmark" if to == "production" else None
        registry.sync.promote(str(result.run_id), to, lm="offline/knn", force=force)
    return config


@contextlib.contextmanager
def served(port: int = 8390, **environment: str) -> Iterator[Server]:
    with TemporaryDirectory(prefix="agentcore-api-") as name:
        directory = Path(name)
        os.chdir(directory)
        os.environ["AGENTCORE_STATE_DIR"] = str(directory / "state")
        config = prepared(directory)
        log = directory / "serve.log"
        command = [sys.executable, "-m", "agentcore", "serve", "--port", str(port)]
        command += ["--agents", str(ROOT / "examples/loan_approval/agents.toml")]
        given = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": config.tracking_uri,
            "AGENTCORE_API_TOKENS": f"bench:promote:{TOKEN}",
            "AGENTCORE_API_RATE": "1000000",
            **environment,
        }
        with log.open("w") as out:
            process = subprocess.Popen(command, env=given, stdout=out, stderr=out)
        try:
            server = Server(f"http://127.0.0.1:{port}", log, config)
            deadline = time.monotonic() + 90
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{server.url}/health", timeout=2).status_code == 200:
                        break
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            process.wait(60)
