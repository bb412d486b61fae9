"""Runs the commands of a README in one shell: `python -m tests.support.readme FILE DIRECTORY`.

Prints the document with the output that each command had; with `--write`, replaces the file.
"""

import argparse
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"```console\n(.*?)```", re.DOTALL)


class Shell:
    """A bash that lives as long as the document."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            ["bash", "--norc", "-O", "expand_aliases"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self("set -m 2>/dev/null")

    def __call__(self, command: str) -> str:
        mark = uuid.uuid4().hex
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\necho; echo {mark}\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.strip() == mark:
                break
            lines.append(line)
        return "".join(lines).strip("\n")

    def close(self) -> None:
        self.process.kill()
        subprocess.run(["pkill", "-9", "-s", str(self.process.pid)], check=False)


def commands(block: str) -> Iterator[str]:
    """The commands of a block, without the output that it shows."""
    lines = iter(block.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = [line[2:]]
            while command[-1].endswith("\\"):
                command.append(next(lines))
            yield "\n".join(command)


def run(text: str, shell: Shell) -> str:
    """The document with what its commands print now."""

    def block(found: re.Match[str]) -> str:
        parts = []
        for command in commands(found.group(1)):
            printed = shell(command)
            parts.append(f"$ {command}\n" + (f"{printed}\n" if printed else ""))
        return "```console\n" + "".join(parts) + "```"

    return FENCE.sub(block, text)


def outputs(text: str) -> list[str]:
    """What the commands printed, without what differs each time: ids, dates, durations, machines."""
    found = []
    for block in FENCE.findall(text):
        for line in block.splitlines():
            line = re.sub(r"\b[0-9a-f]{8,64}\b", "ID", line)
            line = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:]+(Z| UTC)?", "TIME", line)
            line = re.sub(r"[\d,.]+ (ms|s|/s)\b", "DURATION", line)
            line = re.sub(r'"duration_ms":[\d.]+|[\d,]+ of [\d,]+ rows …', "", line)
            found.append(re.sub(r"[\s─━│┃┌┐└┘┏┓┗┛├┤┼┴┬┡┩╇]+", " ", line).strip())
    return [line for line in found if line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    text = given.file.read_text()
    shell = Shell(given.directory, {**os.environ, "COLUMNS": "110"})
    try:
        done = run(text, shell)
    finally:
        shell.close()
    if given.write:
        given.file.write_text(done)
    else:
        print(done)


if __name__ == "__main__":
    main()
