"""Progress display of an optimization: a live view in a terminal, lines elsewhere."""

import contextlib
import io
import re
import sys
import threading
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from agentcore.cli._terminal import SafeConsole
from agentcore.dspy_optimization import STAGES, Printer, figures, line_of
from agentcore.dspy_optimization.events import RunFinished, RunResumed
from agentcore.journal import Event

# Progress output of DSPy's bootstrapping and of tqdm.
_NOISE = re.compile(
    r"Bootstrapp(ing|ed) |\d+%\|.*\|.*(it/s|s/it|\?it)|^Average Metric|^\w+ Optimization:|^\s*$"
)


class LiveView(Printer):
    """Displays the pipeline's events and progress; wrap the run in `running()`."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        # Bound to the real stream: while the view runs, sys.stderr is redirected to this console.
        self.console = SafeConsole(file=sys.stderr, highlight=False)
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
        try:
            with live, _prints_above(self.console):
                yield self
        finally:
            self.end()

    def say(self, line: str) -> None:
        self.console.print(escape(line), soft_wrap=True)

    def note(self, message: str) -> None:
        self.console.print(f"[yellow]note:[/] {escape(message)}", soft_wrap=True)

    def warned(self, message: str) -> None:
        """Printed with the result, or at the end if there is none."""
        self.warnings.append(message)

    def finished(self, event: RunFinished) -> None:
        if event.status in ("failed", "cancelled"):
            for message in self.warnings:
                self.note(message)

    @property
    def began(self) -> bool:
        return bool(self.optimization_id)

    def delivering(self) -> None:
        """The run is over; only delivery is left."""
        if self.progress is not None:
            self.progress.begin("delivering")
        if not self.console.is_terminal:
            self.say(f"{STAGES['delivering']} …")

    def _tell(self, line: str) -> None:
        """In a terminal, the live view shows it."""
        if not self.console.is_terminal:
            super()._tell(line)

    def event(self, event: Event) -> None:
        super().event(event)
        if self.console.is_terminal and isinstance(event, RunResumed) and (line := line_of(event)):
            self.say(line)

    def _render(self) -> Group | Text:
        progress = self.progress
        if progress is None:
            return Text("loading …")
        first = Table.grid(padding=(0, 1))
        title = STAGES.get(progress.stage, progress.stage)
        bar = (
            ProgressBar(total=progress.total, completed=progress.done, width=16)
            if progress.total
            else Text("")
        )
        first.add_row(self._spinner, Text(title, no_wrap=False), bar)
        return Group(first, Text("  " + " · ".join(figures(progress)), style="dim"))


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
