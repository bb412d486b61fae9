"""Consoles, errors, and the configuration that commands share."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from agentcore.settings import MLflowConfig

T = TypeVar("T")

LOCAL_TRACKING = "sqlite:///mlflow.db"

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def fail(message: str, code: int) -> NoReturn:
    """One line on stderr, then exit."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


def tracking_config(experiment: str | None = None) -> MLflowConfig:
    """The configured MLflow, else a SQLite file in the working directory, so that nothing has to run."""
    config = MLflowConfig(experiment_name=experiment) if experiment else MLflowConfig()
    if "tracking_uri" not in config.model_fields_set:
        config = config.model_copy(update={"tracking_uri": LOCAL_TRACKING})
    return config


def quiet_libraries() -> None:
    """DSPy, MLflow and Alembic log each step; errors reach the user through our own."""
    import logging

    for name in ("dspy", "LiteLLM"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("mlflow", "alembic", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C cancels it and exits 130."""
    quiet_libraries()
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
