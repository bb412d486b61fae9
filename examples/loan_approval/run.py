"""Runs a command of AgentCore where a scheduler runs Python files, such as Databricks; see databricks.yml."""

import os
import sys
from pathlib import Path

from agentcore.cli import main

if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_TRACKING_URI", "databricks")
    os.chdir(Path(__file__).parent)  # where agent.py is
    sys.argv[0] = "agentcore"
    main()
