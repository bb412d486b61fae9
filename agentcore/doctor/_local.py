"""Local checks: settings, the language model, the journal."""

import os
import stat
import time
from pathlib import Path

from dotenv import dotenv_values
from pydantic import SecretStr

from agentcore._redaction import first_line, is_secret_name
from agentcore.doctor._finding import Finding
from agentcore.errors import AgentCoreError
from agentcore.settings import ENV_FILE, MLflowConfig, Settings, shown_uri


def check_settings(config: MLflowConfig) -> list[Finding]:
    """List the settings with secrets masked, and check that others can't read the file with the secrets."""
    told = []
    for settings, prefix in ((config, "MLFLOW_"), (Settings(), "AGENTCORE_")):
        for name in sorted(settings.model_fields_set):
            value = getattr(settings, name)
            if isinstance(value, SecretStr):
                value = "********"
            elif isinstance(value, str) and "://" in value:
                value = shown_uri(value)
            told.append(f"{prefix}{name.upper()}={value}")
    found = [Finding("settings", "ok", ", ".join(told) or "nothing is set: using the defaults")]
    path = Path(ENV_FILE)
    if os.name == "posix" and path.is_file() and _readable_secret(path):
        found.append(Finding("settings", "failed", f"others can read {ENV_FILE}", f"chmod 600 {ENV_FILE}"))
    return found


def _readable_secret(path: Path) -> bool:
    """Whether others can read a password other than the public default."""
    if not path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return False
    secrets = [value for name, value in dotenv_values(path).items() if is_secret_name(name)]
    return any(value not in ("", None, "only-for-loopback") for value in secrets)


def check_lm(name: str | None) -> list[Finding]:
    """Ask the model for one word."""
    import dspy

    from agentcore.lm import lm_secrets, resolve_lm

    if not (name or Settings().lm or dspy.settings.lm):
        return [Finding("lm", "skipped", "none is set (AGENTCORE_LM, or --lm)")]
    try:
        lm = resolve_lm(name)
    except AgentCoreError as error:
        return [Finding("lm", "failed", str(error), "Fix the model's name")]
    began = time.monotonic()
    try:
        with dspy.context(disable_history=True):
            lm.copy(cache=False)("Answer with the word ok.")
    except Exception as error:  # noqa: BLE001 - providers raise their own
        told = first_line(error, secrets=lm_secrets(lm))
        return [
            Finding("lm", "failed", f"{lm.model}: {told}", "Check the key, the model's name and the network")
        ]
    return [Finding("lm", "ok", f"{lm.model} answers in {time.monotonic() - began:.1f} s")]


def check_journal() -> list[Finding]:
    """Check that the journal is writable, and count undelivered and interrupted runs."""
    from agentcore.journal import open_journal

    try:
        home = open_journal()
        home.check_writable()
        streams = home.streams()
    except AgentCoreError as error:
        advice = "Free some space or allow writing, or set AGENTCORE_STATE_DIR or AGENTCORE_JOURNAL_URL"
        return [Finding("journal", "failed", str(error), advice)]
    waiting = [item for item in streams if item.waiting]
    interrupted = [item for item in streams if item.interrupted]
    message = f"{home.location} is writable and holds {len(streams)} run{'s' * (len(streams) != 1)}"
    notes = []
    if waiting:
        message += (
            f", {len(waiting)} of them wait for MLflow ({sum(item.waiting for item in waiting):,} entries)"
        )
        notes.append("agentcore sync delivers them")
    if interrupted:
        message += f", {len(interrupted)} were interrupted"
        notes.append("agentcore runs shows which can be resumed")
    return [Finding("journal", "ok", message, "; ".join(notes))]
