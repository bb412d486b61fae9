"""Progress display of an optimization: a live line in a terminal, one line per stage elsewhere."""

import contextlib
import io
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from agentcore._naming import short_id
from agentcore.cli._terminal import SafeConsole
from agentcore.dspy_optimization.events import (
    OptimizationEvent,
    RunFinished,
    RunResumed,
    StageStarted,
    TrialFinished,
    WarningRaised,
)
from agentcore.journal import Event

_STAGES = {
    "preparing": "preparing",
    "baseline": "measuring the baseline on the test split",
    "search": "searching on train and validation",
    "winner": "measuring the winner on the test split",
    "logging": "logging the result",
    "delivering": "delivering to MLflow",
}
# Progress output of DSPy's bootstrapping and of tqdm.
_NOISE = re.compile(r"Bootstrapp(ing|ed) |\d+%\|.*\|.*(it/s|s/it|\?it)|^Average Metric|^\s*$")


class LiveView:
    """Displays the pipeline's events and progress; wrap the run in `running()`."""

    def __init__(self) -> None:
        # Bound to the real stream: while the view runs, sys.stderr is redirected to this console.
        self.console = SafeConsole(file=sys.stderr, highlight=False)
        self.progress: Any = None
        self.warnings: list[str] = []
        self.optimization_id = ""
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._render,
            console=self.console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    @contextlib.contextmanager
    def running(self) -> Iterator["LiveView"]:
        live = self._live if self.console.is_terminal else contextlib.nullcontext()
        with live, _prints_above(self.console):
            yield self

    def started(self, progress: Any) -> None:
        self.progress = progress

    @property
    def began(self) -> bool:
        return bool(self.optimization_id)

    def delivering(self) -> None:
        """The run is over; only delivery is left."""
        if self.progress is not None:
            self.progress.begin("delivering")
        if not self.console.is_terminal:
            self.console.print(f"{_STAGES['delivering']} …", soft_wrap=True)

    def event(self, event: Event) -> None:
        if isinstance(event, OptimizationEvent):
            self.optimization_id = event.optimization_id
        # Warnings are printed with the result; print them here only if there is none.
        if isinstance(event, WarningRaised):
            self.warnings.append(event.message)
        elif isinstance(event, RunFinished) and event.status in ("failed", "cancelled"):
            for message in self.warnings:
                self.console.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)
        elif isinstance(event, RunResumed):
            known = f"{event.trials} trials finished, {event.examples} examples measured"
            self.console.print(f"resuming run {short_id(event.optimization_id)}: {known}", soft_wrap=True)
        elif isinstance(event, StageStarted) and not self.console.is_terminal:
            self.console.print(f"{_STAGES.get(event.stage, event.stage)} …", soft_wrap=True)
        elif isinstance(event, TrialFinished) and not self.console.is_terminal:
            part = "" if event.full else f" on {event.examples} examples"
            given_up = ", stopped" if event.stopped else ""
            best = f"(best {event.best_score:.3f})"
            self.console.print(
                f"  trial {event.trial}: {event.score:.3f}{part}{given_up} {best}", soft_wrap=True
            )

    def _render(self) -> Group | Text:
        progress = self.progress
        if progress is None:
            return Text("loading …")
        first = Table.grid(padding=(0, 1))
        title = _STAGES.get(progress.stage, progress.stage)
        bar = (
            ProgressBar(total=progress.total, completed=progress.done, width=24)
            if progress.total
            else Text("")
        )
        count = f"{progress.done}/{progress.total}" if progress.total else ""
        first.add_row(self._spinner, Text(title), bar, Text(count))
        return Group(first, Text("  " + " · ".join(_figures(progress)), style="dim"))


def _figures(progress: Any) -> list[str]:
    spend = progress.meter.total
    found = []
    if progress.stage == "search" and progress.trials:
        found.append(f"trial {progress.trial} of {progress.trials}")
    if progress.best_score is not None:
        found.append(f"best so far {progress.best_score:.3f}")
    found.append(f"{spend.calls:,} LM calls")
    found.append(f"{spend.total_tokens:,} tokens")
    found.append(cost_text(spend.cost_usd))
    found.append(f"{progress.seconds:.0f} s")
    return found


def cost_text(usd: float | None) -> str:
    return "cost unknown" if usd is None else f"${usd:.4f}" if usd else "$0"


class _Above(io.TextIOBase):
    """Prints the user's own lines above the live view, and drops the libraries' progress bars."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = threading.local()  # print() writes a line in pieces: buffer per thread

    def write(self, text: str) -> int:
        *lines, rest = re.split(r"[\n\r]", getattr(self._started, "line", "") + text)
        for line in lines:
            if not _NOISE.search(line):
                self._console.print(Text(line), soft_wrap=True)
        self._started.line = rest
        return len(text)

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def _prints_above(console: Console) -> Iterator[None]:
    # The command owns the process, so it may redirect its streams.
    above = _Above(console)
    with contextlib.redirect_stdout(above), contextlib.redirect_stderr(above):
        yield
